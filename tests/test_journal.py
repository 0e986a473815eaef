"""What the journal says is recorded is read back, whatever came between."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.journal import Journal, Record, read_journal

ROOT = Path(__file__).parents[1]
SAMPLES = Path(__file__).parent / "data" / "journals"

BEGAN: Record = {"t": "began", "p": 3}
BACK: Record = {"t": "back", "p": 3}


def test_records_come_back_in_order(tmp_path: Path) -> None:
    """Durable or not, in one call or many, any text: after closing and opening again too."""
    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == []
    journal = Journal(path)
    texts = ["plain", "Zeile\nmit\r\nEnden", "\x00\x85\u2028", "日本語", "\ud800"]
    journal.append([{"t": "x", "text": text} for text in texts])
    journal.append([BEGAN, BACK], durable=False)
    journal.append([])
    journal.close()
    journal.close()
    journal.append([BEGAN])
    journal.close()
    Journal(path).append([BACK])
    assert read_journal(path) == [*({"t": "x", "text": text} for text in texts), BEGAN, BACK, BEGAN, BACK]


def test_what_json_can_not_hold_is_refused(tmp_path: Path) -> None:
    """Nothing of the call is recorded, and the journal goes on."""
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError):
        journal.append([BEGAN, {"t": "ok", "generate_s": float("inf")}])
    journal.append([BACK])
    journal.close()
    assert read_journal(tmp_path / "journal.jsonl") == [BACK]


def test_reading_stops_at_the_first_torn_line(tmp_path: Path) -> None:
    """However many bytes of the last record a crash has left, what came before stands and can be added to."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append([BEGAN, BACK])
    journal.close()
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        kept = [BEGAN] if cut >= first else []
        assert read_journal(path) == kept
        journal = Journal(path)
        journal.append([BEGAN, BACK])
        journal.append([BACK])
        journal.close()
        assert read_journal(path) == [*kept, BEGAN, BACK, BACK], cut


def test_a_damaged_byte_ends_the_reading(tmp_path: Path) -> None:
    """A sum that does not fit is no record, wherever the damage is; nothing behind it is believed."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append([BEGAN, BACK, BEGAN])
    journal.close()
    content = path.read_bytes()
    first, second = content.index(b"\n") + 1, content.index(b"\n", content.index(b"\n") + 1) + 1
    for position in range(first, second):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x15]) + content[position + 1 :])
        assert read_journal(path) == [BEGAN], position


@given(st.binary(max_size=200))
def test_noise_is_no_record(noise: bytes) -> None:
    """Whatever stands in the file, reading raises nothing."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(noise)
        file.flush()
        assert read_journal(Path(file.name)) == []


def test_a_full_disk_in_the_middle_of_a_line(tmp_path: Path) -> None:
    """The call that failed may be made again: then its records are there once, in order, and records that were equal
    before stay as often as they were. A limit on the file's size stands for the full disk: the kernel takes part of the
    line and refuses the rest."""
    path = tmp_path / "journal.jsonl"
    code = f"""
    import resource, signal
    from pathlib import Path
    from daemon.journal import Journal, read_journal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = Path({str(path)!r})
    began, back = {BEGAN!r}, {BACK!r}
    journal = Journal(path)
    journal.append([began, back])
    size = path.stat().st_size
    for room in range(1, size + 1):
        before = read_journal(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room - 1, resource.RLIM_INFINITY))
        for attempt in range(2):  # the new file has no room either
            try:
                journal.append([began, back])
            except OSError:
                pass
            else:
                raise SystemExit(f"{{room}}: it was taken")
        assert read_journal(path)[: len(before)] == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.append([began, back])
        assert read_journal(path) == before + [began, back], room
        journal.append([began], durable=False)
        assert read_journal(path) == before + [began, back, began], room
    print(len(read_journal(path)))
    """
    done = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(read_journal(path)) > 100


def test_a_journal_that_can_not_be_made(tmp_path: Path) -> None:
    """Its folder is missing at first: an OSError, and all is well when it has come."""
    journal = Journal(tmp_path / "job" / "journal.jsonl")
    for _ in range(2):
        with pytest.raises(OSError):
            journal.append([BEGAN])
    (tmp_path / "job").mkdir()
    journal.append([BEGAN])
    journal.append([BEGAN])
    journal.close()
    assert read_journal(tmp_path / "job" / "journal.jsonl") == [BEGAN, BEGAN]


def test_journals_of_earlier_versions_read(tmp_path: Path) -> None:
    """A frozen sample with every kind of record: all of them, in order, and new ones can be added."""
    (sample,) = SAMPLES.glob("*/journal.jsonl")
    kinds = [
        "taken",
        "ignored",
        "began",
        "began",
        "began",
        "ok",
        "ok",
        "failed",
        "suspect",
        "suspect",
        "try",
        "began",
        "back",
        "stop",
        "cancel",
        "cancelled",
        "skipped",
        "try",
        "began",
        "began",
    ]
    copy = tmp_path / sample.name
    shutil.copy(sample, copy)
    assert [record["t"] for record in read_journal(copy)] == kinds
    journal = Journal(copy)
    journal.append([BEGAN])
    journal.close()
    assert [record["t"] for record in read_journal(copy)] == [*kinds, "began"]
    assert copy.read_bytes().startswith(sample.read_bytes())
