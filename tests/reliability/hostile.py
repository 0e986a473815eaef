"""Hostile input: whoever may write to the inbox can submit jobs, and can do nothing else.

Documents and recordings are thrown at those who read them; files are swapped between the check and the use; and a
daemon is besieged with all of it at once, while an honest job must still be done soon. Beside its folders lie files
that it must neither change nor tell of.

python -m tests.reliability --only hostile
"""

from __future__ import annotations

import contextlib
import hashlib
import html.parser
import itertools
import json
import multiprocessing
import os
import pickle
import random
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from daemon import output_files
from daemon.config import Paths
from daemon.core.job import EmbeddingsJob, Job, JobRejected, Limits, Reference
from daemon.core.job_id import job_id_problem
from daemon.core.job_parser import parse_job
from daemon.core.redo import read_request
from daemon.live_job import new_token
from daemon.references import ReferenceRefused, check_audio, check_codes, snapshot_reference
from tests.reliability import recordings
from tests.reliability.documents import document
from tests.reliability.guard import die_with_parent
from tests.reliability.lives import Life, NotSurvived, hurry, preload, until
from tests.reliability.scenes import Stage, dub
from tests.reliability.table import Row, rows_of
from tests.reliability.watching import LONGEST_SILENCE_S, MIB, MOST_MEMORY, Watch, memory_peak, processor_s

LANES = 2
BATCH = 1_000
LONGEST_CPU_S = 2.0
"""Of the processor, for one document of the fuzz or one recording."""

LONGEST_ANSWER_S = 60.0
"""Of the processor, for all that the daemon does from the drop of an honest job in the middle of a siege to its end."""

PATIENCE_S = 300.0
LIMITS = Limits()
OLD_S = 3 * 3600.0
LARGEST_SEARCHED = 100 * MIB
"""Bytes of a file that is searched for what it must not tell: one of the giants is a hole of a terabyte."""


# --- documents ----------------------------------------------------------------------------------------------


def check_document(seed: int) -> str | None:
    """What is wrong with the reading of the document of a seed; None when nothing is."""
    data = document(seed)
    started = time.process_time()
    try:
        if b"redo" in data:
            with contextlib.suppress(JobRejected):
                read_request(data, stem="film", limits=LIMITS)
        try:
            problem = check_job(parse_job(data, stem="film", limits=LIMITS))
        except JobRejected as rejected:
            problem = None
            if not rejected.reasons or not all(
                r.path.startswith("$") and r.code and r.message for r in rejected.reasons
            ):
                problem = f"rejected for {rejected.reasons}"
    except Exception as error:  # noqa: BLE001 - whatever it stumbles over is the finding
        problem = repr(error)
    elapsed = time.process_time() - started
    return problem or (f"it took {elapsed:.1f} s" if elapsed > LONGEST_CPU_S else None)


def check_job(job: Job) -> str | None:
    """What an accepted job must not be."""
    if problem := job_id_problem(job.job_id):
        return f"its job_id {problem}"
    if isinstance(job, EmbeddingsJob):
        return None
    indexes = [segment.index for segment in job.segments]
    # LocalClip's own form may ask for nothing.
    if (not indexes and job.results is None) or indexes != sorted(set(indexes)):
        return f"its indexes are {indexes}"
    speakers = {speaker.id for speaker in job.speakers}
    for segment in job.segments:
        segment.text.encode("utf-8")
        if segment.speaker not in speakers:
            return f"segment {segment.index} is of nobody"
    for speaker in job.speakers:
        if not 1 <= len(speaker.references) <= LIMITS.references_per_speaker:
            return f"{speaker.id!r} has {len(speaker.references)} references"
        if any((reference.audio is None) == (reference.codes is None) for reference in speaker.references):
            return f"{speaker.id!r} has a reference that is none"
    return None


def _check_documents(first: int, count: int) -> list[tuple[int, str]]:
    return [(seed, problem) for seed in range(first, first + count) if (problem := check_document(seed))]


def fuzz_documents(count: int) -> Row:
    """Documents of so many seeds through the reader of jobs: each is a job, or refused with reasons, in time."""
    starts = range(0, count, BATCH)
    sizes = [min(BATCH, count - start) for start in starts]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(LANES, context, initializer=die_with_parent) as lanes:
        found = list(itertools.chain.from_iterable(lanes.map(_check_documents, starts, sizes)))
    for seed, problem in found[:20]:
        print(f"document {seed}: {problem}", file=sys.stderr, flush=True)
    return Row("hostile: documents through the reader of jobs", count, count - len(found))


# --- recordings ---------------------------------------------------------------------------------------------


def _check_recordings(named: Sequence[tuple[str, bytes]], folder: Path) -> list[str]:
    problems = []
    for name, content in named:
        file = folder / "reference"
        file.write_bytes(content)
        started = time.process_time()
        try:
            (check_codes if name.endswith(".npy") else check_audio)(file, name, LIMITS)
        except ReferenceRefused:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it stumbles over is the finding
            problems.append(f"{name}: {error!r}")
        elapsed = time.process_time() - started
        if elapsed > LONGEST_CPU_S:
            problems.append(f"{name}: it took {elapsed:.1f} s")
    return problems


def fuzz_recordings(base: Path, count: int) -> Row:
    """Bombs, lies and broken files through the checks of references, in a process that must outlive them."""
    fixed = [*recordings.bombs(), *recordings.lies()]
    whole = [*fixed, *map(recordings.broken, range(count))]
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            # The libraries that decode have much to say about such files.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with open(writer, "w", encoding="utf-8", errors="replace") as told:
                told.write("\n".join(_check_recordings(whole, base)))
                peak = memory_peak(os.getpid())
                told.write("" if peak < MOST_MEMORY else f"\nit took {peak / MIB:.0f} MiB")
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as told:
        problems = told.read().splitlines()
    if status := os.waitpid(child, 0)[1]:
        raise NotSurvived(f"the reading process ended with {os.waitstatus_to_exitcode(status)}")
    for problem in problems:
        print(f"recording {problem}", file=sys.stderr, flush=True)
    return Row("hostile: recordings and codes", len(whole), len(whole) - len(problems))


# --- swaps --------------------------------------------------------------------------------------------------


class Swapper:
    """A process that puts one thing after the other at a path, as fast as it can, for as long as the block lasts.
    ``makers`` make a thing at a path; each is then renamed into place."""

    def __init__(self, path: Path, makers: Sequence[Callable[[Path], None]], seed: int = 0) -> None:
        self._path = path
        self._makers = makers
        self._seed = seed
        self._pid = 0

    def __enter__(self) -> Swapper:
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                die_with_parent()
                self._swap()
            finally:
                os._exit(0)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        _remove(self._path)

    def _swap(self) -> None:
        dice = random.Random(self._seed)
        fresh, old = self._path.with_name(".swap-new"), self._path.with_name(".swap-old")
        while True:
            with contextlib.suppress(OSError):
                dice.choice(self._makers)(fresh)
                with contextlib.suppress(FileNotFoundError):
                    self._path.rename(old)
                fresh.rename(self._path)
            for left in (fresh, old):
                _remove(left)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, where we may make one
    except OSError:
        os.mkfifo(path)


def _listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def swap_references(base: Path, tries: int) -> Row:
    """What lies at a reference's path, or at the folder above it, changes all the time: a file, a link to a secret, a
    pipe, a device, a folder. What is taken is the honest file or nothing, and nothing waits."""
    inbox, outside, taken = base / "swap-inbox", base / "swap-outside", base / "swap-taken"
    for folder in (inbox, outside, taken):
        folder.mkdir()
    honest = recordings.wav()
    secret = recordings.wav(data=b"\2\3" * 12_000)
    (outside / "voice.wav").write_bytes(secret)
    allowed = hashlib.sha256(honest).hexdigest()

    def folder_with_file(path: Path) -> None:
        path.mkdir()
        (path / "voice.wav").write_bytes(honest)

    attacks: list[tuple[Path, str, list[Callable[[Path], None]]]] = [
        (
            inbox / "voice.wav",
            "voice.wav",
            [
                lambda path: _write(path, honest),
                lambda path: path.symlink_to(outside / "voice.wav"),
                os.mkfifo,
                _device,
                _listen,
                os.mkdir,
            ],
        ),
        (inbox / "folder", "folder/voice.wav", [folder_with_file, lambda path: path.symlink_to(outside)]),
    ]
    survived = got = 0
    for path, asked, makers in attacks:
        with Swapper(path, makers):
            for _ in range(tries // len(attacks)):
                started = time.monotonic()
                try:
                    snapshot = snapshot_reference(
                        Reference(text="x", audio=asked),
                        base_folder=inbox,
                        allowed_roots=[inbox],
                        folder=taken,
                        limits=LIMITS,
                    )
                    got += 1
                    sound = snapshot.sha256 == allowed
                except ReferenceRefused:
                    sound = True
                survived += sound and time.monotonic() - started < LONGEST_SILENCE_S
    whole = tries // len(attacks) * len(attacks)
    return Row("hostile: references swapped between check and use", whole, survived, f"{got:,} were honest at the time")


def swap_outputs(base: Path, tries: int) -> Row:
    """A folder that a job wants its results in becomes a link to elsewhere, and back: nothing is written there."""
    root, outside = base / "swap-results", base / "swap-elsewhere"
    root.mkdir()
    paths = Paths.model_validate({"output_roots": (root,)})
    outside.mkdir()
    source = base / "result.wav"
    source.write_bytes(recordings.wav())
    raced = 0
    with Swapper(root / "results", [os.mkdir, lambda path: path.symlink_to(outside)]):
        for number in range(tries):
            asked = root / "results" / ("deep/" * (number % 2)) / f"{number}.wav"
            try:
                output_files.place(source, asked, paths)
            except (output_files.NotPlaced, OSError) as refused:
                raced += "Not a directory" in str(refused)  # a link by the time when the folder was opened
    output_files.place(source, root / "honest" / "result.wav", paths)
    escaped = list(outside.iterdir())
    if escaped:
        print(f"results were written outside: {escaped[:5]}", file=sys.stderr, flush=True)
    return Row(
        "hostile: results swapped away between check and use",
        tries,
        tries - len(escaped),
        f"{raced:,} were a folder at the look and a link at the use",
    )


# --- the siege ----------------------------------------------------------------------------------------------


class Outside:
    """What lies beside the daemon's folders. A marker is in all of it, which must be seen nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = f"CANARY{secrets.token_hex(8)}"
        folder.mkdir()
        secret = dub(f"This is {self.marker}.")
        (folder / "secret.json").write_text(json.dumps(secret), "utf-8")
        (folder / "voice.wav").write_bytes(recordings.wav() + self.marker.encode())
        (folder / "films").mkdir()
        for number in range(3):
            (folder / "films" / f"{number}.wav").write_bytes(self.marker.encode() * 100)
        place = folder / "corpus" / "dataset" / "speaker"
        place.mkdir(parents=True)
        (place / "u.pkl").write_bytes(pickle.dumps({"embedding": [1.0, 2.0], "utterance_id": self.marker}))
        then = time.time() - OLD_S
        for path in folder.rglob("*"):
            os.utime(path, (then, then))
        self._before = self._picture()

    def _picture(self) -> dict[str, object]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else None
            for path in self.folder.rglob("*")
        }

    def check(self, places: Sequence[Path]) -> None:
        """Raises NotSurvived: something there has changed, or is told of in ``places``."""
        if (now := self._picture()) != self._before:
            changed = sorted(now.keys() ^ self._before.keys()) or "contents"
            raise NotSurvived(f"outside of the folders something has changed: {changed}")
        marker = self.marker.encode()
        for place in places:
            for path in [place] if place.is_file() else place.rglob("*"):
                if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_SEARCHED:
                    continue
                if marker in path.read_bytes():
                    raise NotSurvived(f"{path} tells what lies outside of the folders")


class RunsCode:
    """Its pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


class Tags(html.parser.HTMLParser):
    """Counts what may run in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = self.suspects = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.suspects += tag in ("img", "iframe", "object", "embed", "base")
        self.suspects += any(name.startswith("on") for name, _ in attrs)


INJECTIONS = (
    "<script>alert('pwned')</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    'x\n{"event": "ready", "level": "info", "forged": true}',
    "\u2028\u2029 \u202e <|im_end|>",
    "\x1b]0;owned\x07\x1b[2J",
)


class Siege:
    """A daemon under all of it at once. ``documents``: how many of the fuzz are thrown in; ``giants``: whether those as
    large as they may be are."""

    def __init__(self, folder: Path, documents: int, *, giants: bool = True, seed: int = 0) -> None:
        self._stage = Stage(folder)
        self._outside = Outside(folder.with_name("outside"))
        self._documents = documents
        self._giants = giants
        self._seed = seed
        self._ran = folder.with_name("code-was-run")
        self.note = ""

    def run(self) -> None:
        """Raises NotSurvived: something got in, or the daemon gave way."""
        stage = self._stage
        stage.make(
            {
                "engine.options": {},
                "pool.workers": 2,
                "engine.retries": 0,
                "service.status_seconds": 0.5,
                "inbox.watch": True,
                "limits.segments": LIMITS.segments,
            }
        )
        self._plant()
        life = Life(stage.config, stage.log, hurry)
        watch = Watch(stage.root / "status.json")
        swaps: list[Callable[[Path], None]] = [
            lambda path: _write(path, json.dumps(dub("Swapped.")).encode()),
            lambda path: path.symlink_to(self._outside.folder / "secret.json"),
            os.mkfifo,
            _device,
        ]
        try:
            with Swapper(stage.inbox / "swap.json", swaps):
                self._throw()
                answer = self._honest_job(life)
            self._wait(life)
            peak = memory_peak(life.pid)
        finally:
            silence = watch.end()
            life.end()
        self.note = (
            f"silent for {silence:.1f} s at most, {peak / MIB:.0f} MiB, "
            f"an honest job done within {answer:.1f} s of processor time"
        )
        self._check()
        if silence > LONGEST_SILENCE_S or peak > MOST_MEMORY or answer > LONGEST_ANSWER_S:
            raise NotSurvived(f"too slow or too large: {self.note}")

    def _plant(self) -> None:
        """What lies in wait before the daemon starts: links where it keeps what it has claimed, and where the copies of
        references are cleared away."""
        stage, films = self._stage, self._outside.folder / "films"
        (stage.root / "state").mkdir()
        host = "0123456789abcdef"
        (stage.root / "state" / "host_id").write_text(host)
        claimed = stage.inbox / ".claimed" / host
        claimed.mkdir(parents=True)
        (claimed / new_token()).symlink_to(films)
        (claimed / new_token()).symlink_to(self._outside.folder)
        (stage.inbox / ".references").symlink_to(films)

    def _throw(self) -> None:
        inbox, outside = self._stage.inbox, self._outside.folder
        (inbox / "link.wav").symlink_to(outside / "voice.wav")
        (inbox / "folder").symlink_to(outside)
        (inbox / "stolen").symlink_to(outside / "corpus")
        os.mkfifo(inbox / "pipe.wav")
        _device(inbox / "device.wav")
        for number, path in enumerate(
            ("link.wav", "folder/voice.wav", str(outside / "voice.wav"), "../../../outside/voice.wav", "pipe.wav",
             "device.wav", "/dev/zero", "/proc/self/mem", "/proc/self/environ", "folder")
        ):  # fmt: skip
            job = dub("A line.")
            job["speakers"][0]["references"] = [{"audio": path, "text": "x"}]
            self._put(f"reference-{number}.json", job)
        for number, (name, content) in enumerate([*recordings.bombs(), *recordings.lies()]):
            (inbox / name).write_bytes(content)
            job = dub("A line.")
            kind = "codes" if name.endswith(".npy") else "audio"
            job["speakers"][0]["references"] = [{kind: name, "text": "x"}]
            self._put(f"recording-{number}.json", job)
        for number, path in enumerate(
            ("../../../outside/x.wav", "folder/x.wav", str(outside / "x.wav"), "folder/new/x.wav")
        ):
            task = {"segment_index": 0, "speaker_id": 0, "target_text": "A line.", "npy_file": "bo.npy",
                    "reference_text": "x", "output_file": path}  # fmt: skip
            self._put(f"results-{number}.json", {"mode": "generate", "tasks": [task]})
        self._throw_names()
        if self._giants:
            self._throw_giants()
        for number, text in enumerate(INJECTIONS):
            job = dub("A line.", text.replace("\x1b", "").replace("\x07", ""))
            job["speakers"][0]["id"] = job["segments"][0]["speaker"] = text.replace("\n", " ")[:60]
            self._put(f"injection-{number}.json", job)
        corpus = inbox / "corpus" / "dataset" / "speaker"
        corpus.mkdir(parents=True)
        (corpus / "evil.pkl").write_bytes(pickle.dumps(RunsCode(self._ran)))
        (corpus / "evil2.pkl").write_bytes(pickle.dumps({"embedding": RunsCode(self._ran)}))
        for number, path in enumerate(("corpus", "stolen", "folder/corpus", str(outside / "corpus"), "/")):
            self._put(f"embeddings-{number}.json", {"kind": "speaker_embeddings", "utterances_dir": path})
        for number in range(self._documents):
            self._put(f"fuzz_{number}.json", document(self._seed + number))

    def _throw_names(self) -> None:
        inbox, outside = self._stage.inbox, self._outside.folder
        job = json.dumps(dub("A line.")).encode()
        names = [
            b"new\nline.json", b"esc\x1b[31m.json", b"\xff\xfe.json", b"-rf.json", b"..json", b"a b\t.json",
            b"$(id).json",
            b"x" * 250 + b".json", b"<img src=x onerror=alert(1)>.json", b'{"event":"ready"}.json', b"CON.json",
            b"\xe2\x80\xae.json", b"%s%n.json", b"\xcc\x80.json", b".json.json", b"trailing .json",
            b"\nready.json",
        ]  # fmt: skip
        for name in names:
            Path(os.fsdecode(os.fsencode(inbox) + b"/" + name)).write_bytes(job)
        (inbox / "linked.json").symlink_to(outside / "secret.json")
        (inbox / "loop.json").symlink_to("loop.json")
        (inbox / "nowhere.json").symlink_to("/nowhere/at/all.json")
        os.mkfifo(inbox / "pipe.json")
        os.mkfifo(inbox / "pipe.cancel")
        _device(inbox / "device.json")
        _listen(inbox / "socket.json")
        (inbox / "folder.json").mkdir()
        (inbox / "folder.cancel").mkdir()
        (inbox / "../secret.cancel").touch()

    def _throw_giants(self) -> None:
        size = LIMITS.job_bytes
        one = json.dumps(dub("A line."))[:-1]
        giants = {
            "brackets": b"[" * size,
            "nested": b'{"a":' * (size // 5),
            "commas": b"[" + b"0," * (size // 2 - 2) + b"0]",
            "string": b'"' + b"x" * (size - 2) + b'"',
            "escapes": b'"' + b"\\u0041" * (size // 6 - 1) + b'"',
            "keys": b"{" + b",".join(b'"%d":0' % number for number in range(90_000)) + b"}",
            "same-key": b"{" + b",".join([b'"a":0'] * 90_000) + b"}",
            "padded": (one + "," + " " * (size - len(one) - 20) + '"priority":1}').encode(),
            "digits": one.encode() + b', "priority": ' + b"9" * (size - len(one) - 100) + b"}",
            "too-large": b" " * (size + 1),
            "much-too-large": b" " * (4 * size),
            "zeros": b"\0" * size,
        }
        for name, content in giants.items():
            self._put(f"giant-{name}.json", content)
        texts = [f"Line {number} {'x' * 1500}" for number in range(LIMITS.segments)]
        self._put("giant-job.json", dub(*texts))
        with (self._stage.inbox / "giant-hole.json").open("wb") as file:
            file.truncate(1 << 40)

    def _put(self, name: str, content: bytes | dict[str, Any]) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        part = self._stage.inbox / ".throw.part"
        part.write_bytes(data)
        part.rename(self._stage.inbox / name)

    def _honest_job(self, life: Life) -> float:
        """Seconds of the daemon's processor time until a small job is done, dropped now."""
        started = processor_s(life.pid)
        self._put("honest.json", {**dub("An honest line.", "And another one."), "priority": 50})
        manifest = self._stage.outbox / "honest" / "manifest.json"
        until(lambda: manifest.exists() or life.poll() is not None, "the honest job", PATIENCE_S)
        if life.poll() is not None:
            raise NotSurvived(f"the daemon ended with {life.poll()}")
        if json.loads(manifest.read_bytes())["status"] != "done":
            raise NotSurvived("the honest job was not done")
        return processor_s(life.pid) - started

    def _wait(self, life: Life) -> None:
        """Until nothing is left to be taken and nothing is under way."""

        def over() -> bool:
            if life.poll() is not None:
                raise NotSurvived(f"the daemon ended with {life.poll()}")
            left = [path for path in self._stage.inbox.glob("[!.]*.json") if path.name != "folder.json"]
            return not left and self._stage.clear_of_work()

        try:
            until(over, "the end of the siege", PATIENCE_S)
        except NotSurvived as error:
            held = [path.name for path in self._stage.inbox.glob("*.json")][:5]
            raise NotSurvived(f"{error}; in the inbox: {held}; at work: {os.listdir(self._stage.jobs)[:5]}") from error

    # --- what must be true ----------------------------------------------------------------------------------

    def _check(self) -> None:
        stage = self._stage
        self._outside.check([stage.root / "outbox", stage.rejected, stage.root / "status.json", stage.log])
        if self._ran.exists():
            raise NotSurvived("a pickle has run its code")
        entries = self._log_entries()
        if len(ready := [entry for entry in entries if entry.get("event") == "ready"]) != 1 or "forged" in ready[0]:
            raise NotSurvived(f"the log tells of {len(ready)} starts")
        manifests = list(stage.outbox.glob("*/manifest*.json"))
        for path in manifests:
            json.loads(path.read_bytes())
        reasons: dict[str, list[str]] = {}
        for path in stage.rejected.glob("*.error.json"):
            told = json.loads(path.read_bytes())
            reasons[told["name"]] = [reason["code"] for reason in told["reasons"]]
        if stumbled := [name for name, codes in reasons.items() if "internal_error" in codes]:
            raise NotSurvived(f"the daemon stumbled over {stumbled[:5]}")
        self._check_fuzz(entries, reasons)
        self._check_pages()

    def _check_fuzz(self, entries: Sequence[dict[str, Any]], reasons: dict[str, list[str]]) -> None:
        """Each document has come to one end."""
        taken = [entry["name"] for entry in entries if "name" in entry and "job" in entry and "event" in entry]
        for number in range(self._documents):
            name = f"fuzz_{number}.json"
            ends = taken.count(name) + (name in reasons)
            if ends != 1:
                raise NotSurvived(f"{name} has come to {ends} ends")

    def _log_entries(self) -> list[dict[str, Any]]:
        """Everything in the log is an object of the daemon's; but what a decoder of MP3 prints by itself."""
        entries = []
        for line in self._stage.log.read_text("utf-8").splitlines():
            if line.startswith("{"):
                entries.append(json.loads(line))
            elif not line.startswith(("Note: ", "Warning: ", "[src/libmpg123")) and line.strip():
                raise NotSurvived(f"a line of its own in the log: {line[:200]!r}")
        return entries

    def _check_pages(self) -> None:
        """No job has brought an element of its own into a page."""
        pages = list(self._stage.outbox.glob("*/report.html")) + list(self._stage.root.glob("status.html"))
        counts = set()
        for page in pages:
            tags = Tags()
            tags.feed(page.read_text("utf-8"))
            if tags.suspects:
                raise NotSurvived(f"{page} holds what may run")
            if page.name == "report.html":
                counts.add(tags.scripts)
        if len(counts) > 1:
            raise NotSurvived(f"the reports hold {counts} scripts")


def besiege(base: Path, documents: int, *, giants: bool = True) -> Row:
    """A daemon under all of it at once."""
    siege = Siege(base / "siege", documents, giants=giants)
    siege.run()
    return Row("hostile: sieges of a daemon", 1, 1, siege.note)


def attacks(share: float = 1.0) -> Iterator[Row]:
    """All of it, or a part of each."""
    base = Path(tempfile.mkdtemp(prefix="dubd-hostile-"))
    preload()

    def part(whole: int, least: int) -> int:
        return max(least, round(whole * share))

    runs: list[tuple[str, int, Callable[[], Row]]] = [
        ("documents", part(100_000, 1_000), lambda: fuzz_documents(part(100_000, 1_000))),
        ("recordings", part(1_500, 50), lambda: fuzz_recordings(base, part(1_500, 50))),
        ("references swapped", part(6_000, 200), lambda: swap_references(base, part(6_000, 200))),
        ("results swapped", part(6_000, 200), lambda: swap_outputs(base, part(6_000, 200))),
        ("a siege", 1, lambda: besiege(base, part(1_000, 40), giants=share >= 0.5)),
    ]
    try:
        yield from rows_of("hostile", runs)
    finally:
        shutil.rmtree(base, ignore_errors=True)
