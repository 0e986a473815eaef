"""How pages are put together: nothing that a job says can leave its place in them."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.report import page

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "{{script}}{{data}}",
    "\u2028\u2029\0\x1b[31m",
    "\"'`${alert(1)}\\",
    "&lt;&amp;",
    "\ud800",
]


class Elements(HTMLParser):
    """The start tags of a page, and the text in each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)


@pytest.mark.parametrize("name", ["report", "status"])
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_its_place(name: str, text: str) -> None:
    """A page has the same elements whatever the data and the title are, and the data comes out as it went in."""
    harmless = Elements(page.build(name, "x", ["x"], policy="").decode("ascii"))
    hostile = Elements(page.build(name, text.replace("\ud800", ""), [text], policy="").decode("ascii"))
    assert hostile.tags == harmless.tags
    assert json.loads(hostile.scripts[0]) == [text]
    assert hostile.scripts[1:] == harmless.scripts[1:]


@given(st.recursive(st.text() | st.integers() | st.booleans() | st.none(), st.lists))
def test_embedded_json_is_json(value: object) -> None:
    """In ASCII, without the three characters that mean something in HTML."""
    text = page.embed(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


@pytest.mark.parametrize("name", ["report", "status"])
def test_the_policy_allows_the_page_its_own_script_and_style(name: str) -> None:
    """By their hashes, and nothing else: no inline handler, no style attribute, nothing from elsewhere."""
    text = page.build(name, "x", {}, policy="media-src 'self'").decode("ascii")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])  # type: ignore[index]
    directives = dict(directive.strip().partition(" ")[::2] for directive in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["media-src"] == "'self'"
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        assert (
            directives[directive]
            == f"'sha256-{base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()}'"
        )
    found = Elements(text)
    assert not [key for key, _ in found.attributes if key == "style" or key.startswith("on")]
    assert [value for key, value in found.attributes if key in ("src", "href")] in (["data:,", "#list"], ["data:,"])


def test_what_json_can_not_hold_is_refused() -> None:
    """NaN would end the page's script."""
    with pytest.raises(ValueError):
        page.embed([float("nan")])
