"""The Chinese pages say what the English ones say.

A machine can't read Chinese, but it can see that a section was touched on one side alone. Each Chinese section begins
with ``<!-- of: DIGEST -->``, the digest of the English section that it translates. When that has changed, the test
names the Chinese section: look whether it still says the same, mend it, and write down the new digest, as
``make translations`` does. Whatever is the same in every language is compared: the tree of headings, code blocks but for
their comments, the number of tables' rows, and all that stands in backticks.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, Section, sections

PAIRS = (("README.md", "README.zh.md"), ("docs/migrating.md", "docs/migrating.zh.md"))

_MARK = re.compile(r"<!-- of: (\w+) -->")


def digest(section: Section) -> str:
    """Of what a section says; how its lines are broken does not matter."""
    words = [section.title, *" ".join(section.lines).split()]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:10]


def recorded(section: Section) -> str | None:
    return next((found[1] for line in section.lines if (found := _MARK.fullmatch(line))), None)


def bare(language: str, lines: list[str]) -> list[str]:
    """A code block without its comments, which are translated."""
    if language in ("sh", "toml"):
        lines = [re.sub(r"(^|\s+)#\s.*$", "", line) for line in lines]
    return [line.rstrip() for line in lines if line.strip()]


def differences(english: Section, chinese: Section) -> list[str]:
    """What the two should have alike and have not."""
    found = []
    if english.level != chinese.level:
        found.append(f"is a heading of level {chinese.level}, not {english.level}")
    ours = [(language, bare(language, lines)) for language, lines in english.blocks]
    theirs = [(language, bare(language, lines)) for language, lines in chinese.blocks]
    if ours != theirs:
        found.append(f"has other code blocks: {[block for block in ours if block not in theirs]} is missing")
    missing = Counter(english.spans()) - Counter(chinese.spans())
    surplus = Counter(chinese.spans()) - Counter(english.spans())
    if missing or surplus:
        found.append(f"lacks in backticks: {sorted(missing)}; has too much: {sorted(surplus)}")
    if len(english.rows()) != len(chinese.rows()):
        found.append(f"has {len(chinese.rows())} rows of tables, not {len(english.rows())}")
    if recorded(chinese) != digest(english):
        found.append(
            "is of another text: the English has changed since. See whether it still says the same, then put "
            f"<!-- of: {digest(english)} --> under its heading, or run `make translations`"
        )
    return found


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=[chinese for _, chinese in PAIRS])
def test_the_chinese_page_says_the_same(english: str, chinese: str) -> None:
    """Section for section; every difference at once, each with the section to look at."""
    ours, theirs = sections(ROOT / english), sections(ROOT / chinese)
    told = [
        f"{chinese}, {their.title!r} (in English {our.title!r}): {difference}"
        for our, their in zip(ours, theirs, strict=False)
        for difference in differences(our, their)
    ]
    if len(ours) != len(theirs):
        told.insert(0, f"{chinese} has {len(theirs)} sections and {english} {len(ours)}: add or take away what differs")
    assert not told, "\n".join(told)


@pytest.mark.parametrize("page", [page for pair in PAIRS for page in pair])
def test_links_within_the_pages_lead_somewhere(page: str) -> None:
    """To a file that is there, and to a heading that is there."""
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            names = [re.sub(r"[^\w\- ]", "", section.title.lower()).replace(" ", "-") for section in sections(there)]
            assert anchor in names, target


def accept(path: Path, english: Path) -> None:
    """Write down in each section of ``path`` that it is the translation of what ``english`` says now."""
    digests = [digest(section) for section in sections(english)]
    lines: list[str] = []
    fenced, number = False, 0
    for line in path.read_text("utf-8").splitlines():
        if _MARK.fullmatch(line):
            continue
        lines.append(line)
        fenced ^= line.strip().startswith("```")
        if not fenced and re.match("#+ ", line):
            lines += [f"<!-- of: {digests[number]} -->"]
            number += 1
    path.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    for one, other in PAIRS:
        if len(sections(ROOT / one)) != len(sections(ROOT / other)):
            sys.exit(f"{one} and {other} do not have the same sections yet; translate first")
        for our, their in zip(sections(ROOT / one), sections(ROOT / other), strict=True):
            if recorded(their) != digest(our):
                print(f"{other}, {their.title!r}: taken as the translation of {our.title!r} as it is now")
        accept(ROOT / other, ROOT / one)
