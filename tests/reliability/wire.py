"""The wire under attack: fuzzed, cut and oversized frames; noise where frames should be; workers that lie.

python -m tests.reliability.wire [--share 0.1]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio

from daemon.worker_process import WorkerCommand, WorkerProcess
from tests.reliability.engines.liar import audio_of
from tests.reliability.lives import Life, NotSurvived, hurry, preload
from tests.reliability.scenes import ENGINES, Stage, drop, dub
from tests.reliability.table import Row
from tests.reliability.watching import MIB, memory_peak
from workers.protocol import MAX_FRAME_BYTES, PROTOCOL_VERSION, FrameDecoder, Message, ProtocolError, encode_frame

ROOT = Path(__file__).resolve().parents[2]
READ_BYTES = 1 << 16
TOGETHER = 8
PATIENCE_S = 30.0
JOB_PATIENCE_S = 180.0
"""Noise is written to the log line by line, and a worker that floods its pipes waits for that."""

HONEST: tuple[Message, ...] = (
    {"type": "hello", "protocol": PROTOCOL_VERSION, "pid": 1, "python": "3.11"},
    {"type": "ready", "engine": "x", "engine_version": "1", "model": "m", "slots": 2, "sample_rate": 8000},
    {"type": "began", "ticket": 1},
    {"type": "spoken", "ticket": 1, "frames": 10, "sample_rate": 8000, "seed": 2, "truncated": False},
    {"type": "failed", "ticket": 2, "code": "flawed", "message": "líne\n漢字 \udc80", "retryable": True},
    {"type": "beat", "in_flight": 2**53, "memory_bytes": 1, "activity": "x" * 300},
    {"type": "cancelled", "ticket": 3, "began": False},
)


def broken_stream(dice: random.Random) -> bytes:
    """Honest frames, some damaged: bytes changed, lost or added, lengths that lie, bodies that are no message."""
    stream = bytearray()
    for _ in range(dice.randint(1, 6)):
        frame = bytearray(encode_frame(dice.choice(HONEST)))
        match dice.randrange(10):
            case 0:
                frame[dice.randrange(len(frame))] = dice.randrange(256)
            case 1:
                del frame[dice.randrange(len(frame)) :]
            case 2:
                place = dice.randrange(len(frame))
                frame[place:place] = dice.randbytes(dice.randint(1, 40))
            case 3:
                frame[:4] = dice.choice((MAX_FRAME_BYTES + 1, 2**32 - 1, 0, 1, len(frame))).to_bytes(4, "big")
            case 4:
                body = dice.choice(
                    (b"", b"[]", b"null", b'{"type": 1}', b"{" * 5000, b"[" * 50_000, b'{"type": "x"} ', b"\xff")
                )
                frame = bytearray(len(body).to_bytes(4, "big") + body)
            case 5:
                body = json.dumps(
                    {"type": dice.choice(("spoken", "x", "")), "ticket": dice.choice((1e308, [], None))}
                ).encode()
                frame = bytearray(len(body).to_bytes(4, "big") + body)
            case 6:
                frame = bytearray(dice.randbytes(dice.randint(1, 3000)))
            case _:
                pass
        stream += frame
    return bytes(stream)


def attack_decoder(count: int, seed: int = 0) -> Row:
    """Frames in pieces of any size: each stream is understood or refused by ProtocolError, and no more than one frame
    is ever held."""
    survived = 0
    for number in range(count):
        dice = random.Random(seed + number)
        stream = broken_stream(dice)
        decoder = FrameDecoder()
        try:
            while stream:
                size = dice.choice((1, 2, 3, 5, 64, 4096, READ_BYTES))
                for message in decoder.feed(stream[:size]):
                    assert isinstance(message["type"], str)
                assert decoder.unfinished <= MAX_FRAME_BYTES + 4
                stream = stream[size:]
        except ProtocolError:
            pass
        except Exception as error:  # noqa: BLE001 - anything else is the finding
            print(f"decoder, seed {seed + number}: {error!r}", file=sys.stderr)
            continue
        survived += 1
    return Row("wire: broken streams into the decoder", count, survived)


# --- real transports ----------------------------------------------------------------------------------------


async def _read_through_transport(script: Path, stream: Path) -> None:
    """The daemon's transport over a process that writes the stream and ends, on both of its outputs."""
    command = WorkerCommand(str(script), (), {**os.environ, "STREAM": str(stream)})
    transport = WorkerProcess(command)
    transport.send({"type": "hello", "protocol": PROTOCOL_VERSION})

    def on_message(message: Message) -> None:
        assert isinstance(message["type"], str)

    with anyio.fail_after(PATIENCE_S):
        reason = await transport.run(on_message, lambda line: None)
    assert reason


def attack_transports(count: int, folder: Path, seed: int = 0) -> Row:
    """Real processes that write broken streams: each transport ends, with a reason, and raises nothing."""
    script = folder / "streamer"
    script.write_text('#!/bin/sh\ncat "$STREAM" >&2\nexec cat "$STREAM"\n')
    script.chmod(0o755)
    survived = 0

    async def one(number: int) -> None:
        nonlocal survived
        stream = folder / f"stream-{number}"
        stream.write_bytes(broken_stream(random.Random(seed + number)))
        try:
            await _read_through_transport(script, stream)
            survived += 1
        except Exception as error:  # noqa: BLE001 - anything is a finding
            print(f"transport, seed {seed + number}: {error!r}", file=sys.stderr)
        stream.unlink()

    async def all_of_them() -> None:
        for start in range(0, count, TOGETHER):
            async with anyio.create_task_group() as tasks:
                for number in range(start, min(count, start + TOGETHER)):
                    tasks.start_soon(one, number)

    anyio.run(all_of_them)
    return Row("wire: broken streams through real pipes", count, survived)


def attack_workers(count: int, folder: Path, seed: int = 0) -> Row:
    """Real workers that are sent broken streams: each ends by itself, with a status that says why, and everything that
    it wrote was frames."""
    hello: Message = {
        "type": "hello", "protocol": PROTOCOL_VERSION, "worker": 0, "device": "cpu", "threads": 1, "memory_bytes": 0,
        "engine": {"name": "listening:Listening", "checkpoint": "", "precision": "auto", "slots": 2,
                   "reproducible": False, "retries": 0, "options": {"told": os.devnull}},
        "cache": str(folder), "beat_seconds": 60.0,
    }  # fmt: skip
    survived = 0
    for number in range(count):
        dice = random.Random(seed + number)
        start = encode_frame(hello) if dice.random() < 0.8 else b""
        arguments = [sys.executable, str(ROOT / "workers" / "__main__.py"), "--path", str(ENGINES)]
        done = subprocess.run(arguments, input=start + broken_stream(dice), capture_output=True, timeout=PATIENCE_S)
        try:
            decoder = FrameDecoder()
            list(decoder.feed(done.stdout))
            if done.returncode not in (0, 3, 4) or decoder.unfinished or b"Traceback" in done.stderr:
                raise NotSurvived(f"status {done.returncode}: {done.stderr[-500:]!r}")
        except (ProtocolError, NotSurvived) as error:
            print(f"worker, seed {seed + number}: {error}", file=sys.stderr)
            continue
        survived += 1
    return Row("wire: broken streams to real workers", count, survived)


# --- a daemon and what it is told ---------------------------------------------------------------------------

LINES = tuple(f"Line {number} of a small job." for number in range(12))


def _check_job(stage: Stage, *, all_ok: bool) -> None:
    """Every segment has ended once; those that are ok are what their texts sound like, and nobody else's."""
    manifest = stage.manifest()
    assert manifest is not None
    states = [segment["status"] for segment in manifest["segments"]]
    if [segment["text"] for segment in manifest["segments"]] != list(LINES) or not set(states) <= {"ok", "failed"}:
        raise NotSurvived(f"the manifest tells of {states}")
    if all_ok and set(states) != {"ok"}:
        raise NotSurvived(f"not all was spoken: {states}")
    for segment in manifest["segments"]:
        if segment["status"] == "ok":
            content = (stage.outbox / "scene" / segment["file"]).read_bytes()
            if content != audio_of(segment["text"]) or hashlib.sha256(content).hexdigest() != segment["sha256"]:
                raise NotSurvived(f"{segment['file']} is not what was asked for")


def _speak_job(stage: Stage) -> Life:
    drop(stage, dub(*LINES))
    life = Life(stage.config, stage.log, hurry)
    try:
        over = "the end of the job"
        life.until(
            lambda: life.poll() is not None or (stage.manifest() and stage.clear_of_work()), over, JOB_PATIENCE_S
        )
        if life.poll() is not None:
            raise NotSurvived(f"the daemon ended with {life.poll()}: {stage.log.read_text()[-1500:]}")
    except BaseException:
        life.end()
        raise
    return life


MOST_MEMORY = 250 * MIB


def attack_with_noise(runs: int, folder: Path, noise_bytes: int = 10 * MIB) -> Row:
    """A worker whose descriptors 1 and 2 are flooded: the job is done as if it were quiet, and the daemon does not
    grow."""
    survived = 0
    note = ""
    for number in range(runs):
        stage = Stage(folder / f"noise-{number}")
        try:
            options = {"told": str(stage.told), "noise_bytes": noise_bytes}
            stage.make({"engine.name": "noisy:Noisy", "engine.options": options})
            life = _speak_job(stage)
            try:
                peak = memory_peak(life.pid)
            finally:
                life.end()
            _check_job(stage, all_ok=True)
            if peak > MOST_MEMORY:
                raise NotSurvived(f"the daemon took {peak / MIB:.0f} MiB")
            survived += 1
            note = f"{noise_bytes / MIB:.0f} MiB on each; the daemon's peak {peak / MIB:.0f} MiB"
        except NotSurvived as error:
            print(f"noise: {error}", file=sys.stderr)
        stage.clear()
    return Row("wire: noise on the worker's descriptors 1 and 2", runs, survived, note)


def attack_with_lies(jobs: int, folder: Path) -> Row:
    """Workers that lie: the job ends, each segment once, and no audio is another one's. A try is a job; the note counts
    the lies."""
    survived = lies = 0
    for number in range(jobs):
        stage = Stage(folder / f"lies-{number}")
        seeds, tally = stage.folder / "seeds", stage.folder / "tally"
        wrapper = stage.folder / "liar"
        stage.make(
            {
                "worker.python": str(wrapper),
                "pool.workers": 2,
                "pool.breaker_crashes": 1000,
                "worker.segment_timeout_s": 5.0,
            }
        )
        seeds.write_bytes(b"x\n" * (number * 1000))
        parts = [sys.executable, "-S", str(ENGINES / "liar.py"), str(seeds), str(tally)]
        wrapper.write_text(f"#!/bin/sh\nexec {shlex.join(parts)}\n")
        wrapper.chmod(0o755)
        try:
            _speak_job(stage).end()
            _check_job(stage, all_ok=False)
            survived += 1
        except NotSurvived as error:
            print(f"lies, job {number}: {error}", file=sys.stderr)
        lies += tally.stat().st_size // 2 if tally.exists() else 0
        stage.clear()
    return Row("wire: jobs spoken by workers that lie", jobs, survived, f"{lies:,} lies")


def attacks(share: float = 1.0) -> Iterator[Row]:
    """All of it, or a part of each."""
    folder = Path(tempfile.mkdtemp(prefix="dubd-wire-"))
    preload()

    def part(whole: int) -> int:
        return max(1, math.ceil(whole * share))

    try:
        yield attack_decoder(part(10_000))
        yield attack_transports(part(400), folder)
        yield attack_workers(part(200), folder)
        yield attack_with_noise(1, folder, 10 * MIB if share >= 1 else MIB)
        yield attack_with_lies(part(60), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--share", type=float, default=1.0)
    failed = 0
    for row in attacks(parser.parse_args().share):
        print(row, flush=True)
        failed += row.lost
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
