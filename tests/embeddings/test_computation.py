"""A run over a corpus whose processes die, hang or can't be started: real processes, real signals."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np
import pytest

from daemon.core.dealing import REACH, Speaker
from daemon.embeddings import computation as module
from daemon.embeddings.computation import Computation, ComputationFailed, Listener, Options, Places, Report
from daemon.embeddings.corpus import Corpus, CorpusRefused
from tests.embeddings.corpora import make_corpus
from tests.workers.conftest import descendants

pytestmark = pytest.mark.anyio


class Run:
    """A computation of ``tmp_path/in`` into ``tmp_path/out``. ``on_send`` is called in the event loop when a speaker is
    about to be sent to a process."""

    def __init__(
        self, folder: Path, *, on_send: Callable[[Speaker], None] = lambda speaker: None, **options: object
    ) -> None:
        self.folder = folder
        self.reports: list[Report] = []
        self.notes: list[str] = []
        self._on_send = on_send
        values = {"processes": 2, "chunk_size": 3, **options}
        self.corpus = Corpus(folder / "in", allowed_roots=None)
        listener = Listener(self.reports.append, note=lambda level, line: self.notes.append(line))
        self.computation = Computation(self.corpus, Options(**values), self._places, listener)  # type: ignore[arg-type]

    def _places(self, speaker: Speaker) -> Places:
        self._on_send(speaker)
        return Places(f"{self.folder}/out/{speaker.dataset}/{speaker.name}.pkl")

    async def run(self) -> dict[str, str]:
        """Speaker → what became of it."""
        try:
            await self.computation.run()
        finally:
            self.corpus.close()
        assert not _ours(), "every process has ended"
        found = {report.speaker.name: report.code or report.status for report in self.reports}
        assert len(found) == len(self.reports), "one report a speaker"
        return found


_others: set[int] = set()


@pytest.fixture(autouse=True)
def _know_others() -> None:
    """Processes that other tests have left running for their whole session."""
    _others.clear()
    _others.update(descendants(os.getpid()))


def _ours() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if pid not in _others]


def kill_all(number: signal.Signals = signal.SIGKILL) -> None:
    for pid in _ours():
        os.kill(pid, number)


SPEAKERS = {f"d/s{number}": 2 for number in range(40)}


async def test_a_process_that_is_killed_costs_nothing(tmp_path: Path) -> None:
    """What it held is computed by others; nothing is reported twice, nothing temporary stays."""
    make_corpus(tmp_path / "in", SPEAKERS)
    kills = iter(["once"])
    run = Run(tmp_path, on_send=lambda speaker: kill_all() if next(kills, None) else None)
    assert await run.run() == {f"s{number}": "ok" for number in range(40)}
    assert any("killed by SIGKILL" in note for note in run.notes)
    assert sorted(path.name for path in (tmp_path / "out/d").iterdir()) == sorted(f"s{n}.pkl" for n in range(40))


async def test_a_speaker_that_kills_costs_itself_alone(tmp_path: Path) -> None:
    """It is tried once more, alone; then it is reported, and the run goes on."""
    make_corpus(tmp_path / "in", SPEAKERS)
    run = Run(tmp_path, processes=1, on_send=lambda speaker: kill_all() if speaker.name == "s7" else None)
    assert await run.run() == {f"s{number}": "process_lost" if number == 7 else "ok" for number in range(40)}
    (lost,) = [report for report in run.reports if report.status == "failed"]
    assert "SIGKILL" in lost.message


async def test_a_process_that_hangs_is_replaced(tmp_path: Path) -> None:
    """Stopped, so that not even its beat comes: past the deadline it is killed and its work goes to another."""
    make_corpus(tmp_path / "in", SPEAKERS)
    stops = iter(["once"])

    def stop(speaker: Speaker) -> None:
        if next(stops, None):
            kill_all(signal.SIGSTOP)

    run = Run(tmp_path, on_send=stop, timeout_s=4.0)
    assert set((await run.run()).values()) == {"ok"}
    assert any("did not come on for 4 s" in note for note in run.notes)


async def test_processes_that_can_not_start_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few tries, with the reason."""
    make_corpus(tmp_path / "in", SPEAKERS)
    command = module.EmbeddingsCommand("/no/such/python", (), {})
    monkeypatch.setattr(module, "process_command", lambda: command)
    with pytest.raises(ComputationFailed, match="/no/such/python"):
        await Run(tmp_path).run()


async def test_no_more_processes_than_work(tmp_path: Path) -> None:
    """They start as there is something for them."""
    make_corpus(tmp_path / "in", {"d/s": 2})
    seen: set[int] = set()
    run = Run(tmp_path, processes=5, on_send=lambda speaker: seen.update(_ours()))
    assert await run.run() == {"s": "ok"}
    assert len(seen) == 1


async def test_more_speakers_than_are_within_reach(tmp_path: Path) -> None:
    """The corpus is listed as the work comes on, and every speaker is there in the end."""
    value = pickle.dumps({"embedding": np.arange(2.0)})
    count = REACH + 700
    for number in range(count):
        place = tmp_path / "in" / f"d{number % 2}" / f"s{number}"
        place.mkdir(parents=True)
        (place / "u.pkl").write_bytes(value)
    run = Run(tmp_path, chunk_size=50)
    assert len(await run.run()) == count
    assert run.computation.total == count


async def test_a_drained_run_ends_with_what_is_out(tmp_path: Path) -> None:
    """Nothing more is dealt; what was has its report."""
    make_corpus(tmp_path / "in", {f"d/s{number}": 3 for number in range(200)})
    sent: set[str] = set()

    def drain(speaker: Speaker) -> None:
        sent.add(speaker.name)
        run.computation.drain()

    run = Run(tmp_path, on_send=drain)
    found = await run.run()
    assert set(found) == sent
    assert 0 < len(found) < 200


async def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's fault: the speaker is asked for again when there may be room."""
    make_corpus(tmp_path / "in", {"d/s": 2})
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK.format(flag=str(tmp_path / "freed")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module, "SPACE_CHECK_S", 0.05)
    run = Run(tmp_path)
    assert await run.run() == {"s": "ok"}
    assert any("waiting for disk space" in note for note in run.notes)


async def test_a_run_that_is_stopped_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The processes are killed in the middle of whatever they do."""
    make_corpus(tmp_path / "in", SPEAKERS)
    (tmp_path / "out/d").mkdir(parents=True)

    def stop(speaker: Speaker) -> None:
        for pid in _ours():
            (tmp_path / f"out/d/.{pid:x}-0123456789ab.part").touch()
        scope.cancel()

    run = Run(tmp_path, processes=1, on_send=stop)
    with anyio.CancelScope() as scope:
        await run.run()
    assert not [path.name for path in (tmp_path / "out/d").iterdir() if path.suffix == ".part"]


FULL_DISK = """
import errno, os
def once(real):
    def give_name(source, target, **more):
        if target.endswith(".pkl") and not os.path.exists({flag!r}):
            open({flag!r}, "w").close()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target, **more)
    return give_name
os.rename, os.link = once(os.rename), once(os.link)
"""
"""The first result that is to get its name finds the disk full; later ones do not."""


# --- the corpus --------------------------------------------------------------------------------------------


def listed(corpus: Corpus) -> set[str]:
    return {f"{speaker.dataset}/{speaker.name}" for speaker in corpus.speakers()}


def test_a_jobs_corpus_lies_inside_the_allowed_roots(tmp_path: Path) -> None:
    """By the folder that is opened, not by its name; and whether one outside exists is nobody's business."""
    make_corpus(tmp_path / "outside", {"d/s": 1})
    make_corpus(tmp_path / "inside/corpus", {"d/s": 1})
    (tmp_path / "inside/link").symlink_to(tmp_path / "outside")
    roots = (tmp_path / "inside",)
    Corpus(tmp_path / "inside/corpus", allowed_roots=roots).close()
    Corpus(tmp_path / "inside", allowed_roots=roots).close()
    for path in (tmp_path / "outside", tmp_path / "inside/link", tmp_path / "inside/../outside", tmp_path / "nowhere"):
        with pytest.raises(CorpusRefused) as caught:
            Corpus(path, allowed_roots=roots)
        assert caught.value.code == "outside_allowed_roots", path
        assert "paths.allowed_roots" in str(caught.value)
    for path, code in (
        (tmp_path / "inside/none", "missing"),
        (tmp_path / "inside/corpus/d/s/u0000.pkl", "not_a_folder"),
    ):
        with pytest.raises(CorpusRefused) as caught:
            Corpus(path, allowed_roots=roots)
        assert caught.value.code == code


def test_what_can_not_be_listed_ends_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links in a circle are no folders; a dataset that may not be read is named."""
    make_corpus(tmp_path, {"open/s": 1, "shut/s": 1})
    for link in ("self", "open/self"):
        (tmp_path / link).symlink_to("self")
    opened = os.open

    def refuse(path: object, flags: int, *rest: object, **more: object) -> int:
        if path == "shut":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *rest, **more)  # type: ignore[arg-type]

    corpus = Corpus(tmp_path, allowed_roots=None)
    monkeypatch.setattr(os, "open", refuse)
    assert listed(corpus) == {"open/s"}
    assert corpus.unreadable == {"shut": "Permission denied"}
    corpus.close()


async def test_nothing_is_reached_through_a_link_in_a_jobs_corpus(tmp_path: Path) -> None:
    """Neither a dataset, nor a speaker, nor an utterance."""
    make_corpus(tmp_path / "outside", {"d/s": 2})
    make_corpus(tmp_path / "in", {"d/own": 2, "d/half": 1})
    (tmp_path / "in/linked").symlink_to(tmp_path / "outside/d")
    (tmp_path / "in/d/linked").symlink_to(tmp_path / "outside/d/s")
    (tmp_path / "in/d/half/linked.pkl").symlink_to(tmp_path / "outside/d/s/u0000.pkl")
    run = Run(tmp_path)
    run.corpus.close()
    run.corpus = run.computation._corpus = Corpus(tmp_path / "in", allowed_roots=(tmp_path / "in",))
    assert await run.run() == {"own": "ok", "half": "ok"}
    (half,) = [report for report in run.reports if report.speaker.name == "half"]
    assert (half.found, half.utterances, half.failed) == (2, 1, 1)


async def test_another_folder_in_its_place_is_not_read(tmp_path: Path) -> None:
    """A folder that was exchanged after it had been checked is another folder."""
    make_corpus(tmp_path / "in", {"d/s": 2})
    make_corpus(tmp_path / "other", {"d/s": 2})
    run = Run(tmp_path)
    message = run.corpus.message()
    (tmp_path / "in").rename(tmp_path / "gone")
    (tmp_path / "other").rename(tmp_path / "in")
    run.corpus.message = lambda: message  # type: ignore[method-assign]
    with pytest.raises(ComputationFailed, match="another folder"):
        await run.run()


def test_python_is_the_one_that_runs_this() -> None:
    """Speaker embeddings need no worker.python: numpy is the daemon's own."""
    assert module.process_command().arguments[0] == sys.executable
    assert module.process_command().arguments[-1] == "--embeddings"
