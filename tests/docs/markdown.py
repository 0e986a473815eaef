"""Markdown, as far as the tests of the pages need it: sections, code blocks, tables, spans of code."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_HEADING = re.compile(r"(#+) (.+)")
_FENCE = re.compile(r"\s*```(\w*)\s*$")
_SPAN = re.compile(r"`([^`]+)`")


@dataclass
class Section:
    """What stands under one heading, up to the next of any level. ``lines`` are all of it but the heading itself;
    ``blocks`` its fenced code, each with its language."""

    level: int
    title: str
    lines: list[str] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    blocks: list[tuple[str, list[str]]] = field(default_factory=list)

    def rows(self) -> list[list[str]]:
        """The cells of its tables' rows, heads included."""
        rows = [line.strip().strip("|") for line in self.prose if line.strip().startswith("|")]
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
        return [row for row in cells if not all(re.fullmatch(":?-+:?", cell) for cell in row)]

    def spans(self) -> list[str]:
        """What stands in backticks outside of its code blocks."""
        return spans("\n".join(self.prose))


def spans(text: str) -> list[str]:
    return [" ".join(span.split()) for span in _SPAN.findall(text)]


def sections(path: Path) -> list[Section]:
    """A page's sections, in order."""
    found: list[Section] = []
    block: list[str] | None = None
    for line in path.read_text("utf-8").splitlines():
        fence = _FENCE.match(line)
        heading = _HEADING.match(line) if block is None else None
        if heading is not None:
            found.append(Section(len(heading[1]), heading[2]))
            continue
        section = found[-1]
        section.lines.append(line)
        if block is not None and fence is not None:
            block = None
        elif block is not None:
            block.append(line)
        elif fence is not None:
            block = []
            section.blocks.append((fence[1], block))
        else:
            section.prose.append(line)
    assert block is None, f"{path} ends within a code block"
    return found
