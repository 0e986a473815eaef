"""What may name a job: a folder of that name must be possible on any file system that a share may be seen from."""

from __future__ import annotations

import re
import unicodedata

MOST_BYTES = 120

_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
# Reserved with any extension; the superscript digits count as digits there. See "Naming Files, Paths, and Namespaces"
# in Microsoft's documentation of Win32.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])\Z", re.IGNORECASE)


def job_id_problem(job_id: str) -> str | None:
    """Why ``job_id`` can't name a job, as the rest of a sentence ("is empty"); None when it can."""
    if not job_id:
        return "is empty"
    if not job_id.isprintable():
        return "holds a character that can't be printed"
    if forbidden := _FORBIDDEN.search(job_id):
        return f'holds {forbidden[0]}, one of / \\ : * ? " < > |'
    if job_id[0] in ". " or job_id[-1] in ". ":
        return "starts or ends with a dot or a space"
    if (size := len(job_id.encode("utf-8"))) > MOST_BYTES:
        return f"has {size} bytes in UTF-8; the limit is {MOST_BYTES}"
    if not unicodedata.is_normalized("NFC", job_id):
        return "is not in Unicode's composed form (NFC)"
    if _DEVICE.match(job_id.split(".", 1)[0].rstrip(" ")):
        return "is the name of a device on Windows"
    return None


def fold_job_id(job_id: str) -> str:
    """What two ids must not have in common: equal for names that a file system without case takes for one.

    Unicode's canonical caseless match (Standard, section 3.13, D145), composed.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", job_id).casefold())
