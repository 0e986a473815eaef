"""Which folders in the outbox hold results of ours: the jobs whose manifest this daemon has written.

Kept in state/, where nobody else writes. A folder that is not listed here, or whose manifest is not the one that was
written, is somebody else's business, whatever it looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daemon.index_file import IndexFile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ended (
    folder TEXT PRIMARY KEY, job_id TEXT NOT NULL, manifest_sha256 TEXT NOT NULL, ended_at REAL NOT NULL, bytes INTEGER
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class EndedJob:
    """``folder``: where its manifest was written, and the sha256 (hex) of that; ``ended_at``: Unix time; ``bytes``:
    what the folder held when it was last looked at, None before."""

    folder: Path
    job_id: str
    manifest_sha256: str
    ended_at: float
    bytes: int | None = None


class EndedJobs(IndexFile):
    """Safe to call from any thread. What can't be written is not remembered, and its folder is kept for ever."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA)

    def record(self, ended: EndedJob) -> None:
        row = (str(ended.folder), ended.job_id, ended.manifest_sha256, ended.ended_at, ended.bytes)
        self.write("INSERT OR REPLACE INTO ended VALUES (?, ?, ?, ?, ?)", [row])

    def in_outbox(self, outbox: Path) -> list[EndedJob]:
        """Those in this folder, the one that ended first before the others."""
        rows = self.read("SELECT folder, job_id, manifest_sha256, ended_at, bytes FROM ended ORDER BY ended_at, folder")
        found = (EndedJob(Path(folder), *rest) for folder, *rest in rows)
        return [ended for ended in found if ended.folder.parent == outbox]

    def forget(self, ended: EndedJob) -> None:
        """Unless it has ended again since."""
        row = (str(ended.folder), ended.manifest_sha256)
        self.write("DELETE FROM ended WHERE folder = ? AND manifest_sha256 = ?", [row])

    def weigh(self, ended: EndedJob, size: int) -> None:
        """Remember how many bytes its folder holds."""
        row = (size, str(ended.folder), ended.manifest_sha256)
        self.write("UPDATE ended SET bytes = ? WHERE folder = ? AND manifest_sha256 = ?", [row])
