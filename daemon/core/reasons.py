"""Collects every reason why a job can't be accepted, and writes the paths and quotations in them.

What a job says is quoted in reasons and so reaches logs and reports: ``quoted`` and ``member`` keep it short and let
no control character through.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from itertools import islice

from daemon.core.job import JobRejected, Reason

MOST_REASONS = 200
"""More are counted, not listed: nobody mends a thousand lines one by one."""

_QUOTED_CHARACTERS = 60
_COMPARED_CHARACTERS = 64
_COMPARED_NAMES = 200
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}\Z")


class Reasons:
    """The reasons found so far, in the order they were found; the first MOST_REASONS in full, the rest as a number."""

    def __init__(self) -> None:
        self._listed: list[Reason] = []
        self._unlisted = 0

    def add(self, path: str, code: str, message: str) -> None:
        if self.full:
            self._unlisted += 1
        else:
            self._listed.append(Reason(path, code, message))

    def add_unlisted(self, count: int = 1) -> None:
        """Count reasons that would not be listed anyway, without the cost of wording them."""
        self._unlisted += count

    @property
    def full(self) -> bool:
        """A further reason would only be counted."""
        return len(self._listed) >= MOST_REASONS

    def rejection(self, *, incomplete: bool = False) -> JobRejected:
        reasons = list(self._listed)
        if self._unlisted:
            reasons.append(Reason("$", "more_reasons", f"and {self._unlisted} more reasons that are not listed here"))
        return JobRejected(reasons, incomplete=incomplete)

    def raise_if_any(self) -> None:
        """Raises:
        JobRejected: there is at least one reason.
        """
        if self._listed:
            raise self.rejection()


def quoted(text: str) -> str:
    """``text`` as a reason may show it: in quotes, cut short, control characters and lone surrogates escaped."""
    if len(text) > _QUOTED_CHARACTERS:
        return repr(text[:_QUOTED_CHARACTERS]) + "…"
    return repr(text)


def member(path: str, name: str) -> str:
    """The JSON path of the member ``name`` of the object at ``path``: ``$.speakers``, or ``$['two words']``."""
    return f"{path}.{name}" if _PLAIN_NAME.match(name) else f"{path}[{quoted(name)}]"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is most likely a slip for; None when none is near.

    Only short names, and the first few known ones, are compared: the comparison takes the product of the lengths.
    """
    if len(name) > _COMPARED_CHARACTERS:
        return None
    candidates = {word.casefold(): word for word in islice(known, _COMPARED_NAMES) if len(word) <= _COMPARED_CHARACTERS}
    found = difflib.get_close_matches(name.casefold(), candidates, n=1, cutoff=0.6)
    return candidates[found[0]] if found else None
