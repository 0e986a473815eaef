"""Puts a page together out of its template, its style, its script and its data, as one file of HTML.

What a page shows comes from jobs, so it is believed in nothing. It stands in the page as JSON in a ``script`` element
that no browser runs, with every character escaped that could end that element; the page's own script puts it into
text nodes and nowhere else. And the page carries a Content-Security-Policy that allows the script and style that are
in it, by their hash, and nothing else to be run or fetched but sound from where the page lies.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib.resources import files as package_files
from typing import Any

_MARK = re.compile(r"\{\{(\w+)\}\}")


def build(name: str, title: str, data: Any, *, policy: str) -> bytes:
    """The page ``pages/NAME.html`` with its NAME.css and NAME.js, and shared.css and shared.js before them.

    ``data`` is what the script finds under ``data``, of JSON's types; ``policy`` are directives of the
    Content-Security-Policy beyond those that every page has.

    Raises:
        ValueError: ``data`` holds NaN or an infinity.
    """
    style, script = _read("shared.css") + _read(f"{name}.css"), _read("shared.js") + _read(f"{name}.js")
    directives = [
        "default-src 'none'",
        f"script-src {_hash_source(script)}",
        f"style-src {_hash_source(style)}",
        "img-src data:",  # an empty icon, which a server would be asked for otherwise
        "base-uri 'none'",
        "form-action 'none'",
        policy,
    ]
    parts = {
        "policy": html.escape("; ".join(directives)),
        "title": html.escape(title),
        "style": style,
        "script": script,
        "data": embed(data),
    }
    # One pass: what stands in the data is not looked through for marks.
    return _MARK.sub(lambda mark: parts[mark[1]], _read(f"{name}.html")).encode("ascii", "xmlcharrefreplace")


def embed(data: Any) -> str:
    """JSON that can stand in a ``script`` element: ASCII, without any of ``<``, ``>`` and ``&``, which JSON allows in
    texts alone and there under an escape. So no text ends the element, whatever it holds."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _read(name: str) -> str:
    return package_files(__package__).joinpath("pages", name).read_text("ascii")


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('ascii')).digest()).decode('ascii')}'"
