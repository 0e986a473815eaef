"""Small real jobs for a daemon to be broken over, and what must be true of each however often it is broken."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import soundfile

from daemon import files, ownership
from daemon.journal import read_journal
from tests.reliability.faulty_disk import KILLED, Fault, FaultyDisk
from tests.reliability.lives import Life, NotSurvived, toml

ENGINES = Path(__file__).parent / "engines"

SETTINGS: dict[str, Any] = {
    "engine.name": "listening:Listening",
    "engine.slots": 2,
    "worker.path": [str(ENGINES)],
    "worker.threads": 1,
    "worker.beat_seconds": 5.0,
    "worker.stop_grace_s": 1.0,
    "pool.workers": 1,
    "pool.backoff_min_s": 0.02,
    "pool.backoff_max_s": 0.1,
    "inbox.settle_seconds": 0.0,
    "inbox.grace_seconds": 0.0,
    "inbox.scan_seconds": 0.05,
    "inbox.watch": False,
    "service.progress_seconds": 60.0,
    "service.status_seconds": 5.0,
    "service.drain_seconds": 5.0,
    "disk.state_free_gb": 0.0,
    "disk.outbox_free_gb": 0.0,
    "disk.inbox_free_gb": 0.0,
    "log.format": "json",
}

LINES = ("The first line.", "", "The second line.", "The third line.")
NEW_LINE = "A line that was not there before."


class Stage:
    """One daemon's folders, under ``folder``; its outbox under ``elsewhere``, on another file system, if given."""

    def __init__(self, folder: Path, elsewhere: Path | None = None) -> None:
        self.folder = folder
        self.root = folder / "var"
        self.told = folder / "told"
        self.log = folder / "log"
        self.config = folder / "config.toml"
        self.elsewhere = elsewhere
        self.outbox = self.root / "outbox" if elsewhere is None else elsewhere / "outbox"
        self.inbox = self.root / "inbox"
        self.rejected = self.root / "rejected"
        self.jobs = self.root / "state" / "jobs"
        self.placed = self.root / "placed"
        """Where LocalClip's files are asked for."""

    @property
    def roots(self) -> dict[str, Path]:
        """The folders that a power cut reaches, by the names that points have for them."""
        return {"var": self.root} | ({} if self.elsewhere is None else {"elsewhere": self.elsewhere})

    def make(self, settings: Mapping[str, Any]) -> None:
        self.inbox.mkdir(parents=True)
        if self.elsewhere is not None:
            self.elsewhere.mkdir(parents=True)
        rate = 8_000
        noise = numpy.random.default_rng(1).normal(0, 0.1, rate * 5 // 4).astype(numpy.float32)
        soundfile.write(str(self.inbox / "anna.wav"), noise, rate)
        numpy.save(self.inbox / "bo.npy", numpy.full((10, 20), 7, dtype=numpy.int64))
        places = {"paths.root": self.root, "paths.output_roots": [str(self.placed)]}
        whole = {**SETTINGS, **places, "engine.options": {"told": str(self.told)}, **settings}
        if self.elsewhere is not None:
            whole["paths.outbox"] = self.outbox
        self.config.write_text(toml(whole), "utf-8")

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.elsewhere is not None:
            shutil.rmtree(self.elsewhere, ignore_errors=True)

    def keep_as(self, template: Path) -> None:
        """Put a copy of everything aside; the folders' own paths stay those of the stage."""
        shutil.copytree(self.folder, template / "folder")
        if self.elsewhere is not None:
            shutil.copytree(self.elsewhere, template / "elsewhere")

    def restore(self, template: Path) -> None:
        self.clear()
        shutil.copytree(template / "folder", self.folder)
        if self.elsewhere is not None:
            shutil.copytree(template / "elsewhere", self.elsewhere)

    # --- what is there --------------------------------------------------------------------------------------

    def texts_told(self) -> list[str]:
        """What was spoken so far, in order."""
        try:
            return [json.loads(line) for line in self.told.read_text("ascii").splitlines()]
        except FileNotFoundError:
            return []

    def manifest(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.outbox / "scene" / "manifest.json").read_bytes())
        except FileNotFoundError:
            return None
        return found

    def places(self) -> list[str]:
        """Who holds the job now: the inbox, a claim, the outbox, or rejected."""
        holders = {
            "inbox": self.inbox.glob("scene.json"),
            "claim": self.inbox.glob(".claimed/*/*/scene.json"),
            "rejected": self.rejected.glob("scene*.json"),
        }
        found = [name for name, paths in holders.items() for path in paths if not path.name.endswith(".error.json")]
        return [*found, *(["outbox"] if self.manifest_is_new() else [])]

    def manifest_is_new(self) -> bool:
        manifest = self.manifest()
        return manifest is not None and (NEW_LINE in _texts(manifest)) == (self.folder / "again").exists()

    def read_manifest(self) -> bytes | None:
        """The manifest of the scene's job, if it is out, marked as read."""
        if not self.manifest_is_new():
            return None
        (self.outbox / "scene" / "manifest.read").touch()
        return (self.outbox / "scene" / "manifest.json").read_bytes()

    def is_read(self, manifest: bytes) -> bool:
        """Whether it is this manifest, and marked."""
        folder = self.outbox / "scene"
        return (folder / "manifest.json").read_bytes() == manifest and (folder / "manifest.read").exists()

    def finished_texts(self) -> set[str]:
        """The texts that the journals say are spoken, and those of a manifest that is out."""
        texts: set[str] = set()
        for folder in self.jobs.glob("[0-9]*"):
            document = json.loads((folder / "job.json").read_bytes())
            lines = [s.get("text", s.get("target_text")) for s in document.get("segments") or document["tasks"]]
            texts |= {lines[r["p"]] for r in read_journal(folder / "journal.jsonl") if r["t"] == "ok"}
        manifest = self.manifest()
        return texts | (_texts(manifest) if manifest is not None else set())

    def clear_of_work(self) -> bool:
        """No job is held in state/, none is being removed from there, and none is claimed."""
        held = [path for path in self.jobs.glob("*") if not path.name.startswith(".") or path.name.endswith(".gone")]
        try:
            return not held and not list(self.inbox.glob(".claimed/*/*"))
        except FileNotFoundError:
            return False  # one was being removed

    # --- what must be true ----------------------------------------------------------------------------------

    def check_manifest(self, lines: tuple[str, ...]) -> None:
        """Every segment, ok or skipped, with the file that the manifest tells of.

        Raises:
            NotSurvived: it is not so.
        """
        manifest = self.manifest()
        if manifest is None:
            raise NotSurvived("there is no manifest")
        texts = tuple(segment["text"] for segment in manifest["segments"])
        states = Counter(segment["status"] for segment in manifest["segments"])
        if texts != lines or manifest["status"] != "done" or states["skipped"] != lines.count(""):
            raise NotSurvived(f"the manifest says {manifest['status']} of {texts}: {dict(states)}")
        for segment in manifest["segments"]:
            if segment["status"] == "ok":
                file = self.outbox / "scene" / segment["file"]
                content = file.read_bytes() if file.exists() else b""
                if hashlib.sha256(content).hexdigest() != segment["sha256"]:
                    raise NotSurvived(f"{segment['file']} is not what the manifest says ({len(content)} bytes)")

    def leftovers(self) -> list[Path]:
        """What is half made, where others look or among the jobs. A living daemon is rid of it at once."""
        folders = (self.root, self.root / "state", self.jobs, self.outbox, self.outbox / "scene")
        return [path for folder in folders for path in folder.glob(".*") if path != self.outbox / ownership.DAEMONS]


def _texts(manifest: Mapping[str, Any]) -> set[str]:
    return {segment["text"] for segment in manifest["segments"]}


@dataclass(frozen=True)
class Scene:
    """A job in a daemon's world. ``before``: a job that an earlier life has finished; ``elsewhere``: the outbox lies on
    another file system; ``rejected``: it is no good job; ``killed_at``: the point at which an earlier life was killed
    over this very job."""

    name: str
    document: dict[str, Any]
    lines: tuple[str, ...] = ()
    before: dict[str, Any] | None = None
    elsewhere: bool = False
    rejected: bool = False
    killed_at: str | None = None

    def prepare(self, stage: Stage) -> None:
        """Make the stage as it is when the life under test begins. Runs a daemon when there was an earlier life."""
        stage.clear()
        stage.make({})
        if self.before is not None:
            drop(stage, self.before)
            life = Life(stage.config, stage.log)
            try:
                life.until(lambda: stage.manifest() is not None and stage.clear_of_work(), "the earlier job")
            finally:
                life.end()
            (stage.folder / "again").touch()
            stage.told.unlink()
        drop(stage, self.document)
        if self.killed_at is not None:
            self._kill_earlier(stage, Fault("kill", self.killed_at))

    def _kill_earlier(self, stage: Stage, fault: Fault) -> None:
        report = stage.folder / "earlier-report"

        def prepare() -> None:
            files.disk = FaultyDisk(stage.roots, report, fault)

        life = Life(stage.config, stage.log, prepare)
        try:
            if life.wait() != KILLED:
                raise NotSurvived(f"there is no {fault.point!r} for {self.name}")
        finally:
            life.end()
        stage.log.unlink()

    def is_over(self, stage: Stage) -> bool:
        place = "rejected" if self.rejected else "outbox"
        return stage.places() == [place] and stage.clear_of_work()

    def check(self, stage: Stage) -> None:
        """What holds once the job is over.

        Raises:
            NotSurvived: it does not.
        """
        if stage.places() != ["rejected" if self.rejected else "outbox"]:
            raise NotSurvived(f"the job is held by {stage.places()}")
        if self.rejected:
            # What is hidden may be another daemon's, who is writing it; it goes when it is old.
            seen = sorted(path.name for path in stage.rejected.iterdir() if not path.name.startswith("."))
            if seen != ["scene.error.json", "scene.json"]:
                raise NotSurvived(f"rejected/ holds {seen}")
            json.loads((stage.rejected / "scene.error.json").read_bytes())
            return
        stage.check_manifest(self.lines)
        numbered = sorted(path.name for path in (stage.outbox / "scene").glob("manifest.*.json"))
        if numbered != (["manifest.1.json"] if self.before is not None else []):
            raise NotSurvived(f"earlier manifests: {numbered}")
        if self.document.get("mode") == "generate":
            self._check_results(stage)

    def _check_results(self, stage: Stage) -> None:
        results = json.loads((stage.outbox / "scene" / "results.json").read_bytes())
        for task in self.document["tasks"]:
            if task["target_text"]:
                file = Path(results[str(task["segment_index"])])
                published = stage.outbox / "scene" / f"segment_{task['segment_index']:04d}.wav"
                if file.name != Path(task["output_file"]).name or file.read_bytes() != published.read_bytes():
                    raise NotSurvived(f"results.json leads to {file}, which is not segment {task['segment_index']}")


def drop(stage: Stage, document: Mapping[str, Any]) -> None:
    if "PLACED" in json.dumps(document):
        stage.placed.mkdir(exist_ok=True)
    text = json.dumps(document).replace("INBOX", str(stage.inbox)).replace("PLACED", str(stage.placed))
    (stage.inbox / ".scene.part").write_text(text, "utf-8")
    (stage.inbox / ".scene.part").rename(stage.inbox / "scene.json")


def dub(*lines: str) -> dict[str, Any]:
    """Two speakers, one by a recording and one by codes, who take turns."""
    return {
        "schema": 1,
        "speakers": [
            {"id": "anna", "references": [{"audio": "anna.wav", "text": "What Anna says."}]},
            {"id": "bo", "references": [{"codes": "bo.npy", "text": "What Bo says."}]},
        ],
        "segments": [
            {"index": index, "speaker": ("anna", "bo")[index % 2], "text": text} for index, text in enumerate(lines)
        ],
    }


def localclip(*lines: str) -> dict[str, Any]:
    """The other program's form, which asks for copies of the results in places of its own."""
    return {
        "mode": "generate",
        "fish_speech_dir": "/nowhere",
        "checkpoint_dir": "/nowhere",
        "output_dir": "INBOX/results",
        "tasks": [
            {
                "segment_index": index,
                "speaker_id": 0,
                "target_text": text,
                "npy_file": "bo.npy",
                "reference_text": "What Bo says.",
                "output_file": f"PLACED/line_{index}.wav",
            }
            for index, text in enumerate(lines)
        ],
    }


FRESH = Scene("fresh", dub(*LINES), LINES)
"""The first job of a daemon that has never run before."""

AGAIN = Scene(
    "again",
    localclip(*LINES[:3], NEW_LINE),
    (*LINES[:3], NEW_LINE),
    before=localclip(*LINES[:3]),
    elsewhere=True,
)
"""A job that was there before, with one line more: known lines are copied, the earlier manifest moves aside, the outbox
lies on another file system, and the results are wanted in other places too."""

RESUMED = Scene("resumed", dub(*LINES), LINES, killed_at="rename var/outbox/scene/segment_0000.wav #1")
"""A job that an earlier life had begun, with segments that are finished and not published."""

REJECTED = Scene("rejected", {**dub("x"), "speakers": []}, rejected=True)
"""A job that is none."""

SCENES = (FRESH, RESUMED, AGAIN, REJECTED)
