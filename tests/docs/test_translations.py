"""The Chinese pages say what the English ones say.

A machine can't read Chinese, but it can see that a section was touched on one side alone. Each Chinese section begins
with ``<!-- of: DIGEST -->``, the digest of the English section that it translates. When that has changed, the test
names the Chinese section: look whether it still says the same, mend it, and write down the new digest, as
``make translations`` does. Whatever is the same in every language is compared: the tree of headings, code blocks but
for their comments, the number of tables' rows, and all that stands in backticks.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator
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
    return found


def pairs(ours: list[Section], theirs: list[Section]) -> Iterator[tuple[Section | None, Section | None]]:
    """Each section with its translation, as the digests tell; None where one side has nothing for the other."""
    digests, marks = [digest(section) for section in ours], [recorded(section) for section in theirs]
    for _, start, end, from_, to in difflib.SequenceMatcher(None, digests, marks, autojunk=False).get_opcodes():
        yield from itertools.zip_longest(ours[start:end], theirs[from_:to])


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=[chinese for _, chinese in PAIRS])
def test_the_chinese_page_says_the_same(english: str, chinese: str) -> None:
    """Section for section; every difference at once, each with the section to look at."""
    told = []
    for our, their in pairs(sections(ROOT / english), sections(ROOT / chinese)):
        if their is None:
            assert our is not None
            told.append(f"{chinese} lacks a section for {our.title!r}")
        elif our is None:
            told.append(f"{chinese}, {their.title!r}: {english} has no such section any more")
        else:
            section = f"{chinese}, {their.title!r} (in English {our.title!r})"
            told += [f"{section} {difference}" for difference in differences(our, their)]
            if recorded(their) != digest(our):
                told.append(
                    f"{section}: the English has changed since. See whether it still says the same, then put "
                    f"<!-- of: {digest(our)} --> under its heading, or run `make translations`"
                )
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


def accept(english: Path, chinese: Path) -> None:
    """Write down in each section of ``chinese`` that it is the translation of what ``english`` says now."""
    ours, theirs = sections(english), sections(chinese)
    if len(ours) != len(theirs):
        sys.exit(f"{chinese} has {len(theirs)} sections and {english} {len(ours)}: translate what is missing first")
    for our, their in zip(ours, theirs, strict=True):
        if found := differences(our, their):
            sys.exit(f"{chinese}, {their.title!r} (in English {our.title!r}) {found[0]}")
        if recorded(their) != digest(our):
            print(f"{chinese.relative_to(ROOT)}: {their.title!r} now stands for {our.title!r} as it is")
    lines: list[str] = []
    fenced, number = False, 0
    for line in chinese.read_text("utf-8").splitlines():
        if _MARK.fullmatch(line):
            continue
        lines.append(line)
        fenced ^= line.strip().startswith("```")
        if not fenced and re.match("#+ ", line):
            lines.append(f"<!-- of: {digest(ours[number])} -->")
            number += 1
    chinese.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    for original, translation in PAIRS:
        accept(ROOT / original, ROOT / translation)
