"""The daemon as other programs meet it: a subprocess and its folders, nothing else.

What a test waits for it looks up in files, again and again with a generous deadline; a success takes no longer than it
takes, and nothing is concluded from the passing of time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from daemon.journal import read_journal
from daemon.sample import JOB_FILE_NAME, sample_folder

ROOT = Path(__file__).resolve().parents[2]
OUR_ENGINES = Path(__file__).parent / "engines"
SHARED_ENGINES = ROOT / "tests" / "engines"
PATIENCE_S = 120.0

T = TypeVar("T")

DEFAULTS: dict[str, Any] = {
    "engine.name": "witness:Witness",
    "worker.path": [str(OUR_ENGINES), str(SHARED_ENGINES)],
    "worker.threads": 1,
    "worker.beat_seconds": 0.2,
    "worker.stop_grace_s": 2.0,
    "pool.workers": 2,
    "pool.backoff_min_s": 0.05,
    "pool.backoff_max_s": 0.2,
    "inbox.settle_seconds": 0.1,
    "inbox.grace_seconds": 0.5,
    "inbox.scan_seconds": 0.2,
    "service.progress_seconds": 0.1,
    "service.status_seconds": 0.1,
    "service.drain_seconds": 10.0,
    "log.format": "json",
}


def wait_for(look: Callable[[], T | None], what: str) -> T:
    """What ``look`` gives, once that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE_S:g} s"
        time.sleep(0.02)
    return found


def read_json(path: Path) -> Any:
    """The file's content; None while it is not there."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        return not re.search(r"^State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False


def recording(speaker: str = "ines") -> bytes:
    return sample_folder().joinpath(f"{speaker}.flac").read_bytes()


def sample_job() -> dict[str, Any]:
    """The sample scene: 6 speakers, 46 lines."""
    job: dict[str, Any] = json.loads(sample_folder().joinpath(JOB_FILE_NAME).read_bytes())
    return job


def make_job(texts: Sequence[str], *, speakers: int = 1, **more: Any) -> dict[str, Any]:
    """A job of these lines, dealt to speakers s0, s1, … in turn; their recording is anna.flac of the inbox."""
    return {
        "speakers": [
            {"id": f"s{number}", "references": [{"audio": "anna.flac", "text": f"I am number {number}."}]}
            for number in range(speakers)
        ],
        "segments": [
            {"index": index, "speaker": f"s{index % speakers}", "text": text} for index, text in enumerate(texts)
        ],
        **more,
    }


def toml(settings: Mapping[str, Any]) -> str:
    """Settings by TABLE.KEY as a config.toml."""

    def value(given: Any) -> str:
        if isinstance(given, Mapping):
            return "{" + ", ".join(f"{json.dumps(key)} = {value(item)}" for key, item in given.items()) + "}"
        return json.dumps(str(given) if isinstance(given, Path) else given)

    return "".join(f"{key} = {value(given)}\n" for key, given in settings.items())


class DaemonUnderTest:
    """One daemon over its lives: the folders stay, processes come and go."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.root = folder / "var"
        self.gate = folder / "gate"
        self.told = folder / "told"
        self.log = folder / "log"
        self.config = folder / "config.toml"
        options = {"gate": str(self.gate), "told": str(self.told)}
        self.settings: dict[str, Any] = {**DEFAULTS, "paths.root": str(self.root), "engine.options": options}
        self.configure(**settings)
        self.process: subprocess.Popen[bytes] | None = None

    # --- settings -------------------------------------------------------------------------------------------

    def configure(self, **settings: Any) -> None:
        """Change settings, named TABLE__KEY; the daemon reads them when it starts, or on SIGHUP."""
        self.settings.update({name.replace("__", "."): value for name, value in settings.items()})
        self.config.write_text(toml(self.settings), "utf-8")

    def path(self, name: str) -> Path:
        return Path(self.settings.get(f"paths.{name}", self.root / name))

    @property
    def inbox(self) -> Path:
        return self.path("inbox")

    @property
    def outbox(self) -> Path:
        return self.path("outbox")

    @property
    def rejected(self) -> Path:
        return self.path("rejected")

    @property
    def state(self) -> Path:
        return self.path("state")

    # --- life -----------------------------------------------------------------------------------------------

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        """A process of the daemon, which may or may not come up."""
        with self.log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "daemon", "run", "--config", str(self.config), *options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def start(self, *, ready: bool = True) -> DaemonUnderTest:
        """Start it and wait until it runs, its workers too if ``ready``."""
        self.process = process = self.spawn()

        def up() -> bool:
            assert process.poll() is None, self.log.read_text()[-5000:]
            return (self.status()["pid"], self.status()["state"]) == (process.pid, "running")

        wait_for(up, "the daemon's start")
        if ready:
            wait_for(lambda: all(row["loads"] for row in self.workers()), "the workers' start")
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self) -> int:
        """Its exit status, once it has ended."""
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        """As by the kernel: no word of farewell."""
        self.signal(signal.SIGKILL)
        self.ended()

    def reload(self, **settings: Any) -> None:
        """Change the configuration and have it read."""
        self.configure(**settings)
        done = len(self.lines("the configuration has been read again"))
        self.signal(signal.SIGHUP)
        wait_for(
            lambda: len(self.lines("the configuration has been read again")) > done, "the reading of the configuration"
        )

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    # --- jobs -----------------------------------------------------------------------------------------------

    def put(self, name: str, content: bytes) -> Path:
        """A file into the inbox, whole at once."""
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{abs(hash(name)):x}.part")
        part.write_bytes(content)
        return part.rename(path)

    def drop(self, name: str, job: Mapping[str, Any] | bytes, *, recorded: bool = True) -> None:
        """Drop NAME.json; the recordings it needs first."""
        self.inbox.mkdir(parents=True, exist_ok=True)
        if recorded and not isinstance(job, bytes):
            references = [
                reference for speaker in job.get("speakers", ()) for reference in speaker.get("references", ())
            ]
            for audio in {reference["audio"] for reference in references if "audio" in reference}:
                if not (self.inbox / audio).exists():
                    stem = Path(audio).stem
                    self.put(audio, recording("ines" if stem == "anna" else stem))
        self.put(f"{name}.json", job if isinstance(job, bytes) else json.dumps(job).encode())

    def run(self, name: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Drop a job and wait for its manifest."""
        self.drop(name, job)
        return self.manifest(name)

    def manifest(self, job_id: str) -> dict[str, Any]:
        """Once it is there."""
        return wait_for(lambda: self.manifest_now(job_id), f"the manifest of {job_id}")

    def manifest_now(self, job_id: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = read_json(self.outbox / job_id / "manifest.json")
        return found

    def progress(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.outbox / job_id / "progress.json") or {
            "status": None,
            "counts": {},
            "note": None,
        }
        return found

    def rejection(self, stem: str) -> list[tuple[str, str]]:
        """Path and code of every reason, once NAME.json has been rejected."""
        error = wait_for(lambda: read_json(self.rejected / f"{stem}.error.json"), f"the rejection of {stem}")
        assert all(reason["message"] for reason in error["reasons"])
        return [(reason["path"], reason["code"]) for reason in error["reasons"]]

    def journals(self) -> list[dict[str, Any]]:
        """All records of the jobs in state/."""
        return [record for path in (self.state / "jobs").glob("*/journal.jsonl") for record in read_journal(path)]

    def ok_in_journal(self) -> list[int]:
        """Positions of the segments that the journals of the jobs in state/ say are finished."""
        return [record["p"] for record in self.journals() if record["t"] == "ok"]

    # --- what it shows --------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.root / "status.json") or {"pid": None, "state": None, "workers": []}
        return found

    def workers(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.status()["workers"]
        return rows

    def job_row(self, job_id: str) -> dict[str, Any]:
        rows = [row for row in self.status().get("jobs", ()) if row["job_id"] == job_id]
        return rows[0] if rows else {"state": None, "counts": {}, "note": None}

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log's entries, those of this event if given. Everything in the log is one."""
        entries = [
            json.loads(line) for line in self.log.read_text("utf-8").splitlines(keepends=True) if line[-1:] == "\n"
        ]
        return [entry for entry in entries if event is None or entry["event"] == event]

    def told_texts(self) -> Counter[str]:
        """How often each text was spoken by the witnesses."""
        try:
            return Counter(json.loads(line)["text"] for line in self.told.read_text().splitlines())
        except FileNotFoundError:
            return Counter()

    def open_gate(self) -> None:
        self.gate.touch()

    # --- proofs ---------------------------------------------------------------------------------------------

    def check_manifest(self, manifest: Mapping[str, Any]) -> None:
        """What holds of every manifest: every segment once and in order, counts that add up, files that are what it
        says of them."""
        segments, counts = manifest["segments"], manifest["counts"]
        assert [segment["index"] for segment in segments] == sorted({segment["index"] for segment in segments})
        by_status = Counter(segment["status"] for segment in segments)
        assert {name: counts[name] for name in ("ok", "failed", "skipped", "cancelled")} == {
            name: by_status[name] for name in ("ok", "failed", "skipped", "cancelled")
        }
        assert counts["total"] == len(segments) == by_status.total()
        assert counts["cached"] == sum(segment["cached"] for segment in segments)
        folder = self.outbox / manifest["job_id"]
        for segment in segments:
            assert segment["cached"] is False or segment["status"] == "ok"
            assert (segment["error"] is None) == (segment["status"] != "failed")
            if segment["status"] == "ok":
                content = (folder / segment["file"]).read_bytes()
                assert hashlib.sha256(content).hexdigest() == segment["sha256"]
            else:
                assert segment["file"] is None
                assert segment["sha256"] is None

    def check_nothing_left(self) -> None:
        """After the last manifest: no job in state/, no claim in the inbox, no temporary file in the outbox."""
        wait_for(lambda: not list((self.state / "jobs").iterdir()), "the clearing of state/jobs")
        wait_for(
            lambda: not [path for path in self.inbox.glob(".claimed/*/*") if path.is_dir()], "the end of the claims"
        )
        assert list(self.outbox.glob("*/.*")) == []

    def end_test(self) -> None:
        """No daemon is left, and none has stumbled."""
        if self.is_alive():
            self.kill()
        with contextlib.suppress(FileNotFoundError):
            lines = self.log.read_text("utf-8").splitlines()
            assert [line for line in lines if not line.startswith("{")] == []


Make = Callable[..., DaemonUnderTest]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes daemons that are not started yet: make(settings) or make(name, settings)."""
    made: list[DaemonUnderTest] = []

    def make_one(name: str = "dubd", **settings: Any) -> DaemonUnderTest:
        folder = tmp_path / name
        folder.mkdir()
        made.append(DaemonUnderTest(folder, **settings))
        return made[-1]

    yield make_one
    for daemon in made:
        daemon.end_test()


@pytest.fixture
def dubd(make: Make) -> DaemonUnderTest:
    """A running daemon with two witnesses."""
    return make().start()


def shared_daemon(factory: pytest.TempPathFactory, **settings: Any) -> Iterator[DaemonUnderTest]:
    """For a module's own fixture: one daemon for tests that leave it as it was; the job ids must differ."""
    daemon = DaemonUnderTest(factory.mktemp("shared"), **settings)
    daemon.start()
    pid = daemon.pid
    try:
        yield daemon
        assert daemon.is_alive() and daemon.pid == pid
        assert daemon.stop() == 0
    finally:
        daemon.end_test()
