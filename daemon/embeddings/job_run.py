"""The life of a job of speaker embeddings, from its place in the outbox to its manifest.

    open the folder -> compute into state/ -> journal -> move into the outbox -> progress ... -> manifest.json

What is shared with every other job (the claim, the folder in the outbox, its manifest, the traces) is ``JobRun``'s.
Several such jobs share the processes; those of a higher priority come before the others.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
import structlog

import daemon as package
from daemon import files, outbox
from daemon.config import Settings
from daemon.core.dealing import Speaker
from daemon.core.reasons import quoted
from daemon.embeddings.computation import Computation, ComputationFailed, Listener, Options, Places, Problem, Report
from daemon.embeddings.corpus import Corpus, CorpusRefused, open_corpus
from daemon.embeddings.live_job import LiveEmbeddings, LiveSpeaker, Name
from daemon.embeddings.options import options_of, processes_of
from daemon.job_run import JobHost, JobRun
from daemon.live_job import EngineIdentity
from daemon.ownership import Hold

log = structlog.get_logger("dubd.embeddings")

RECORDED_AT_ONCE = 256
PUBLISHED_AT_ONCE = 256
MOST_PROBLEMS = 20
"""Utterances that could not be used and are told of in the log, of each job; its manifest has their numbers."""

ENGINE = EngineIdentity("embeddings", package.__version__, "", "float64")
"""No engine speaks here; by this a job that runs is told from one that waits for an engine."""


class EmbeddingsHost(JobHost, Protocol):
    """What such a job needs of the rest of the daemon, beside what every job does."""

    @property
    def runs(self) -> Mapping[str, JobRun]: ...

    draining: bool


class EmbeddingsRun(JobRun):
    """Runs one job of this kind."""

    job: LiveEmbeddings

    def __init__(self, job: LiveEmbeddings, jobs: EmbeddingsHost) -> None:
        super().__init__(job, jobs)
        self._host = jobs
        self._computation: Computation | None = None
        self._scope: anyio.CancelScope | None = None
        self._reports: list[Report] = []
        self._computed = False
        self._saving = False
        self._problems = 0
        self._empty = 0
        self._began_at = 0.0
        self._ended_before = 0

    # --- what it is told and asked --------------------------------------------------------------------------

    def cancel(self) -> None:
        super().cancel()
        if self._scope is not None:
            self._scope.cancel()

    @property
    def finishing(self) -> bool:
        """What is out at the processes is waited for, when the daemon stops, like what is left to write."""
        computing = self._computation is not None and self._computation.in_hand > 0
        return self.job.over or computing or bool(self._reports) or self._saving

    @property
    def computing(self) -> bool:
        return self._computation is not None

    def changed(self) -> None:
        super().changed()
        if self._computation is not None:
            self._computation.changed()

    def eta_s(self) -> float | None:
        counts = self.job.counts()
        done = len(self.job.speakers) - self._ended_before
        if not self.computing or not self.job.known or done <= 0:
            return None
        left = max(counts["total"] - len(self.job.speakers), 0)
        return left / done * (time.monotonic() - self._began_at)

    # --- the road -------------------------------------------------------------------------------------------

    async def _fail_what_waits(self) -> None:
        self.job.failure = self.failure
        self.job.over = True

    async def _cancel_what_waits(self) -> None:
        self.job.over = True

    async def _publish_the_rest(self) -> None:
        await self._publish_all()

    async def _work(self) -> None:
        job = self.job
        job.engine = ENGINE
        await self._write_progress(force=True)
        corpus = await self._insist("opening the folder of utterances", self._open)
        if corpus is not None:
            try:
                await self._compute(corpus)
            finally:
                corpus.close()
        else:
            await self._publish_all()
        if not job.speakers and job.failure is None and not job.cancelled:
            job.failure = self._nothing()
        job.over = True

    async def _open(self) -> Corpus | None:
        """The folder, or None: it may not be used, or the job is cancelled.

        Raises:
            OSError: it is not there at present.
        """
        if self.job.cancelled:
            return None
        try:
            return await anyio.to_thread.run_sync(
                open_corpus, self.job.asked.utterances_dir, self._jobs.settings, abandon_on_cancel=True
            )
        except CorpusRefused as refused:
            if refused.code in ("missing", "unreadable"):
                raise OSError(errno.ENOENT, str(refused)) from refused
            self.job.failure = refused.code, str(refused)
            return None

    def _nothing(self) -> tuple[str, str]:
        if not self.job.too_few:
            message = (
                "no utterances are there: they are looked for as DATASET/SPEAKER/NAME.pkl, .npy or .npz below "
                "utterances_dir, at exactly that depth"
            )
            return "no_utterances", message
        return "none_qualifies", "no speaker has min_utterances utterances: lower it"

    async def _compute(self, corpus: Corpus) -> None:
        job = self.job
        await anyio.to_thread.run_sync(files.remove_temporary_files, job.segments_folder)
        options = job_options(job, self._jobs.settings)
        skip = job.asked.skip_existing
        skip = self._jobs.settings.embeddings.skip_existing if skip is None else skip

        def places(speaker: Speaker) -> Places:
            stored = str(job.stored_result(speaker, options.form))
            published = f"{self._folder}/{result_name((speaker.dataset, speaker.name), options.form)}"
            return Places(stored, (stored, published) if skip else (stored,))

        def wanted(speaker: Speaker) -> bool:
            return (speaker.dataset, speaker.name) not in job.speakers

        listener = Listener(self._take_report, self._tell_problem, self._tell_line)
        self._computation = Computation(corpus, options, places, listener, wanted=wanted, share=self._share)
        self._began_at, self._ended_before = time.monotonic(), len(job.speakers)
        self._tell_others()
        log.info("computing", job=job.job_id, utterances_dir=str(corpus.path), processes=options.processes)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._save)
            with anyio.CancelScope() as self._scope:
                if job.cancelled:
                    self._scope.cancel()
                try:
                    await self._computation.run()
                except ComputationFailed as failure:
                    job.failure = "computation_failed", str(failure)
            self._computation = None
            self._computed = True
            self._changed.set()
            self._tell_others()
        if job.cancelled or job.failure is not None:
            await self._end_the_rest(corpus, options)
        else:
            job.failure = _unread(corpus)

    def _share(self) -> int:
        """How many processes this job may use now."""
        if self._host.draining:
            return 0
        running = [run for run in self._host.runs.values() if isinstance(run, EmbeddingsRun) and run.computing]
        highest = max((run.job.job.priority for run in running), default=0)
        if self.job.job.priority < highest:
            return 0
        equals = [run for run in running if run.job.job.priority == highest]
        whole = processes_of(self._jobs.settings.embeddings)
        share, more = divmod(whole, max(len(equals), 1))
        return max(1, share + (self in equals[:more]))

    def _tell_others(self) -> None:
        for run in self._host.runs.values():
            if isinstance(run, EmbeddingsRun):
                run.changed()

    # --- what the computation says --------------------------------------------------------------------------

    def _take_report(self, report: Report) -> None:
        if report.status == "too_few":
            if report.found:
                self.job.too_few += 1
            else:
                self._empty += 1
            return
        self._reports.append(report)
        self._changed.set()

    def _tell_problem(self, problem: Problem) -> None:
        self._problems += 1
        if self._problems <= MOST_PROBLEMS:
            log.warning(
                "an utterance can't be used",
                job=self.job.job_id,
                speaker=f"{problem.speaker.dataset}/{problem.speaker.name}",
                file=problem.file,
                reason=f"{problem.code}: {problem.message}",
            )
            if self._problems == MOST_PROBLEMS:
                log.warning("further ones are counted in the manifest only", job=self.job.job_id)

    def _tell_line(self, level: str, line: str) -> None:
        getattr(log, level)(line, job=self.job.job_id)

    # --- saving ---------------------------------------------------------------------------------------------

    async def _save(self) -> None:
        """Journal and publish what comes, until all has."""
        while True:
            if self._computation is not None:
                self.job.known = max((self._computation.total or 0) - self._empty, 0)
            self._saving = True
            while self._reports:
                reports, self._reports = self._reports[:RECORDED_AT_ONCE], self._reports[RECORDED_AT_ONCE:]
                await self._record(reports)
            await self._publish_all()
            self._saving = False
            if self._computed and not self._reports:
                return
            await self._write_progress()
            if not self._reports:
                await self._wait()

    async def _record(self, reports: list[Report]) -> None:
        record = self.job.record(reports)
        # The files are synced; their names must last before the journal says so.
        await self._insist("writing to the state folder", self._sync_stored)
        await self._recorder.record(self.job, record)
        self.job.take(record)
        for report in reports:
            if report.status == "failed":
                log.error(
                    "speaker has failed",
                    job=self.job.job_id,
                    speaker=f"{report.speaker.dataset}/{report.speaker.name}",
                    code=report.code,
                    message=report.message,
                )

    async def _sync_stored(self) -> None:
        await anyio.to_thread.run_sync(files.fsync_folder, self.job.segments_folder)

    async def _publish_all(self) -> None:
        while names := self.job.unpublished_results()[:PUBLISHED_AT_ONCE]:
            await self._insist("publishing", lambda names=names: self._publish_some(names))  # type: ignore[misc]

    async def _publish_some(self, names: list[Name]) -> None:
        form = job_options(self.job, self._jobs.settings).form
        publish = partial(_publish, self._folder, self._hold, self.job, names, form)
        await anyio.to_thread.run_sync(publish, abandon_on_cancel=True, limiter=self._jobs.outbox_threads)

    async def _end_the_rest(self, corpus: Corpus, options: Options) -> None:
        """Name the speakers that were not computed, too: there is a row for every one."""
        code, message = self.job.failure or (None, None)
        for speaker in await anyio.to_thread.run_sync(lambda: _remaining(corpus)):
            if (speaker.dataset, speaker.name) not in self.job.speakers:
                status = "cancelled" if self.job.cancelled else "failed"
                row = LiveSpeaker(status, code=code, message=message)  # type: ignore[arg-type]  # one of two
                self.job.put((speaker.dataset, speaker.name), row)

    # --- what others read -----------------------------------------------------------------------------------

    def _manifest(self) -> dict[str, Any]:
        job = self.job
        assert job.started_at is not None
        assert job.ended_at is not None
        form = job_options(job, self._jobs.settings).form
        counts = job.counts()
        del counts["running"]
        return {
            "schema": outbox.SCHEMA,
            "kind": "speaker_embeddings",
            "job_id": job.job_id,
            "status": job.status(),
            "counts": counts,
            "left_out": job.too_few,
            "engine": {"name": ENGINE.name, "model": None, "version": ENGINE.version},
            "timings": {
                "received_at": round(job.received_at, 3),
                "started_at": round(job.started_at, 3),
                "ended_at": round(job.ended_at, 3),
                "wall_s": round(max(job.ended_at - job.started_at, 0.0), 3),
            },
            "ignored": job.ignored,
            "error": None if job.failure is None else {"code": job.failure[0], "message": job.failure[1]},
            "speakers": [_manifest_row(name, job.speakers[name], form) for name in sorted(job.speakers)],
        }

    def _progress(self, workers: list[dict[str, Any]]) -> dict[str, Any]:
        job = self.job
        counts = job.counts()
        ended = len(job.speakers)
        eta_s = self.eta_s()
        running = "running" if job.started_at is not None else "queued"
        return {
            "schema": outbox.SCHEMA,
            "kind": "speaker_embeddings",
            "job_id": job.job_id,
            "status": job.status() if job.ended_at is not None else "publishing" if job.over else running,
            "counts": counts,
            "fraction": round(ended / counts["total"], 4) if counts["total"] else 1.0,
            "received_at": round(job.received_at, 3),
            "started_at": None if job.started_at is None else round(job.started_at, 3),
            "updated_at": round(time.time(), 3),
            "eta_s": None if eta_s is None else round(eta_s, 1),
            "workers": [],
            "note": job.note,
        }

    def _report(self) -> None:
        """There is nothing to listen to."""

    def _tell_end(self) -> None:
        job = self.job
        counts = job.counts()
        line = f"[Main] All done! {counts['ok']}/{counts['total']} speakers"
        rest = {name: counts[name] for name in ("failed", "skipped", "cancelled") if counts[name]}
        log.info(line, job=job.job_id, status=job.status(), **rest)


def job_options(job: LiveEmbeddings, settings: Settings) -> Options:
    """What the job says, and where it says nothing, the settings."""
    asked = job.asked
    said = {
        "chunk_size": asked.chunk_size,
        "min_utterances": asked.min_utterances,
        "format": asked.format,
        "exclude_filename_prefix": asked.exclude_filename_prefix,
        "exclude_filename_pattern": asked.exclude_filename_pattern,
    }
    given = {name: value for name, value in said.items() if value is not None}
    return options_of(settings.embeddings.model_copy(update=given))


def result_name(name: Name, form: str) -> str:
    """The path of a speaker's result in the job's folder."""
    dataset, speaker = name
    return f"speakers/{dataset}/{speaker}.{form}"


def _manifest_row(name: Name, speaker: LiveSpeaker, form: str) -> dict[str, Any]:
    dataset, speaker_id = name
    there = speaker.status in ("ok", "skipped")
    return {
        "dataset": dataset,
        "speaker": speaker_id,
        "status": speaker.status,
        "file": result_name(name, form) if there else None,
        "num_utterances": speaker.utterances if there else None,
        "failed_utterances": speaker.failed if speaker.status != "cancelled" else None,
        "embedding_dim": speaker.dim if there else None,
        "sha256": speaker.sha256,
        "error": None if speaker.code is None else {"code": speaker.code, "message": speaker.message},
    }


def _publish(folder: Path, hold: Hold, job: LiveEmbeddings, names: list[Name], form: str) -> None:
    """Move these results into the outbox. One whose file is lost fails, and so does one whose name is too long.

    Raises:
        OSError: the outbox is not there; call again.
    """
    if not folder.is_dir():
        raise OSError(errno.EIO, "the job's folder in the outbox is gone", str(folder))
    touched = set()
    published = []
    for name in names:
        target = folder / result_name(name, form)
        speaker = job.speakers[name]
        try:
            _make_folders(folder, target.parent)
            outbox.make_way(target)
            stored = job.stored_result(Speaker(*name, 0), form)
            files.publish(stored, target, folder, hold.check)
            published.append(stored)
            touched.add(target.parent)
        except FileNotFoundError:
            if not files.holds(target, speaker.sha256):
                failed = LiveSpeaker("failed", code="file_lost", message="its file is gone; submit the job again")
                job.put(name, failed)
                continue
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            message = "its name is too long for a file in the outbox; rename its folder"
            job.put(name, LiveSpeaker("failed", code="name_too_long", message=message))
            continue
        speaker.published = True
    for place in touched:
        files.fsync_folder(place)
    for stored in published:
        files.remove(stored)


def _make_folders(folder: Path, wanted: Path) -> None:
    """Make the folder ``wanted``, below the job's, with no link on the way to it: nothing leaves the outbox.

    Raises:
        OSError: it can't be made.
    """
    for parent in reversed([wanted, *wanted.parents][: len(wanted.relative_to(folder).parts)]):
        outbox.make_way(parent, folder=True)
    os.close(files.open_folder(wanted, folder, make=True))


def _unread(corpus: Corpus) -> tuple[str, str] | None:
    """Why speakers of unknown number are missing, if they are."""
    if not corpus.unreadable:
        return None
    first = min(corpus.unreadable)
    more = len(corpus.unreadable) - 1
    others = f" and {more} more" if more else ""
    why = f"the dataset {quoted(first)}{others} can't be read: {corpus.unreadable[first]}"
    return "unreadable_dataset", f"{why}; let the daemon's user read it, and submit the job again"


def _remaining(corpus: Corpus) -> list[Speaker]:
    try:
        return list(corpus.speakers(weigh=False))
    except OSError:
        return []
