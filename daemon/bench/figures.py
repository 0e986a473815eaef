"""What was measured, and how it is shown: a table for people, a list for machines."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from daemon.commands.showing import console, plain

if TYPE_CHECKING:
    from rich.status import Status
    from rich.table import Table

Tell = Callable[[str], None]
"""Says what is being measured now."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value, the median of the repeats. ``ratio_to_stock``: how many times better than the stock way,
    None where there is none."""

    name: str
    value: float
    unit: str
    ratio_to_stock: float | None = None

    def rounded(self) -> Figure:
        """With as many digits as a measurement deserves."""
        ratio = None if self.ratio_to_stock is None else float(f"{self.ratio_to_stock:.4g}")
        return Figure(self.name, float(f"{self.value:.5g}"), self.unit, ratio)


def median(repeats: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(repeats))


@contextmanager
def telling(*, quiet: bool) -> Iterator[Tell]:
    """Shows on standard error what is being measured: on a terminal in one line that goes away again, else, unless
    ``quiet``, a line each."""
    terminal = console(error=True)
    if not terminal.is_terminal:
        yield (lambda _: None) if quiet else lambda text: print(plain(text), file=sys.stderr, flush=True)
        return
    status: Status
    with terminal.status("") as status:
        yield lambda text: status.update(plain(text))


def show(head: Mapping[str, str], figures: Sequence[Figure], *, as_json: bool) -> None:
    """For machines: the list on standard output, and what it was measured on as one object on standard error."""
    rounded = [figure.rounded() for figure in figures]
    if as_json:
        print(json.dumps(head, ensure_ascii=False), file=sys.stderr, flush=True)
        print(json.dumps([asdict(figure) for figure in rounded], indent=1), flush=True)
        return
    terminal = console()
    width = max(map(len, head), default=0)
    for name, value in head.items():
        terminal.print(f"{name:<{width}}  {plain(value)}")
    terminal.print()
    terminal.print(_table(rounded))


def _table(figures: Sequence[Figure]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("measured")
    table.add_column("median", justify="right")
    table.add_column("unit")
    table.add_column("× stock", justify="right")
    for figure in figures:
        ratio = "" if figure.ratio_to_stock is None else digits(figure.ratio_to_stock)
        table.add_row(plain(figure.name), digits(figure.value), figure.unit, ratio)
    return table


def digits(value: float) -> str:
    """Three digits that count; all of them before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}"
