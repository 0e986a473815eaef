"""Measures the fish engine against stock fish-speech on the same weights, threads and device, in one run.

    python -m workers.engines.fish.bench decode codec job load memory --checkpoint FOLDER [--device cuda:0] [--json]

Speed does not depend on what the weights say: ``make_checkpoint --shape real`` makes a checkpoint for it. ``decode``:
frames a second of the decoder alone, a row of 64 frames after a reference of ten seconds. ``codec``: seconds of audio a
second. ``job``: 46 segments of six speakers, 64 frames each, in one warm engine, files included. ``load``: from the
start of the process to the loaded engine. ``memory``: the peak with 32 rows of 1,024 positions, their speakers' prompts
among these, and the growth over 2,000 segments. Every figure but memory's is the median of the repeats; a ratio is to
the stock way, which for a job is extrapolated from its load and two segments.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from workers.engine import Failed, Reference, Segment, Settings, Voice
from workers.engines.fish import machine
from workers.engines.fish.codec import Codec
from workers.engines.fish.engine import FishEngine
from workers.engines.fish.prompt import Codes, Prompter, read_tokenizer
from workers.engines.fish.rows import Prompt, Rows, Start
from workers.engines.fish.shape import GENERATED_POSITIONS, read_shape
from workers.engines.fish.stock import StockSpeaker
from workers.engines.fish.weights import Weights, read_weights

FRAMES_A_SECOND = 44100 / 2048
REFERENCE_FRAMES = 215
REFERENCE_TEXT = "This is what the speaker says in the recording, more or less; it takes about ten seconds to say."
TEXT = "A line of middling length, as most lines of a film are."
SPEAKERS = 6
SEGMENTS = 46
SEGMENT_FRAMES = 64
WARM_FRAMES = 4
FULL_SLOTS = 32
FULL_POSITIONS = 1024
FULL_FRAMES = 24
"""Frames that a row of the full cache speaks; its reference takes the other positions, which is quicker."""
GROWTH_FRAMES = 20
"""Frames that a segment has at most while the memory is watched."""

MOST_MEASURINGS = 5

Result = dict[str, Any]


def result(name: str, value: float, unit: str, ratio: float | None = None) -> Result:
    return {"name": name, "value": round(value, 4), "unit": unit, "ratio_to_stock": ratio and round(ratio, 2)}


def random_codes(frames: int, seed: int = 0) -> Codes:
    """(10, frames), the first row semantic."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 1024, (10, frames))
    codes[0] = generator.integers(0, 4096, frames)
    return codes


class Bench:
    """One device, one precision, one checkpoint."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder: str = arguments.checkpoint
        self.device: str = arguments.device
        self.repeats: int = arguments.repeats
        self.rows: list[int] = arguments.rows
        self.stock_frames: int = arguments.stock_frames
        self.without_stock: bool = arguments.without_stock
        self.slots: int = arguments.slots
        self.segments: int = arguments.segments
        self.share: int = arguments.share
        self.memory_gb: float = arguments.memory_gb
        self.threads: int = arguments.threads
        torch.set_num_threads(self.threads)
        self.torch_device = machine.device(self.device)
        self.precision = machine.precision(arguments.precision, self.torch_device, reproducible=False)

    def head(self) -> dict[str, Any]:
        """What was measured on."""
        gpu = torch.cuda.get_device_name(self.torch_device) if self.torch_device.type == "cuda" else None
        return {
            "device": gpu or processor(),
            "threads": self.threads,
            "precision": str(self.precision).removeprefix("torch."),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }

    @property
    def name(self) -> str:
        """The precision as the settings name it."""
        return next(name for name, precision in machine.PRECISIONS.items() if precision == self.precision)

    def synchronize(self) -> None:
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)

    def median(self, run: Callable[[], float]) -> float:
        return statistics.median(run() for _ in range(self.repeats))

    def weights(self) -> tuple[Weights, Prompter]:
        shape = read_shape(self.folder)
        prompter = Prompter(read_tokenizer(self.folder), shape, self.folder)
        semantic = range(prompter.semantic_begin, prompter.semantic_begin + prompter.semantic_tokens)
        return read_weights(self.folder, shape, semantic, prompter.end, self.torch_device, self.precision), prompter

    # --- what is measured ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self) -> list[Result]:
        stock = 0.0 if self.without_stock else self.stock_frames_a_second()
        results = [result("decode stock", stock, "frames/s", 1.0)] if stock else []
        weights, prompter = self.weights()
        prompt = Prompt(prompter.prefix([(REFERENCE_TEXT, random_codes(REFERENCE_FRAMES))]))
        suffix = prompter.suffix(TEXT)
        for count in self.rows:
            rows = Rows(weights, count, 1 << 20, GENERATED_POSITIONS)
            steps: list[float] = []

            def run(count: int = count, rows: Rows = rows, steps: list[float] = steps) -> float:
                limit = WARM_FRAMES + SEGMENT_FRAMES
                starts = [Start(key, prompt, suffix, key, limit, 0.7, 0.7, 1.2, mask_end=True) for key in range(count)]
                rows.start(starts)
                for _ in range(WARM_FRAMES):
                    rows.make_room()
                    rows.advance()
                self.synchronize()
                started = time.perf_counter()
                ended = 0
                frames = 0
                while ended < count:
                    rows.make_room()
                    ended += len(rows.advance())
                    frames += 1
                self.synchronize()
                seconds = time.perf_counter() - started
                steps.append(seconds / SEGMENT_FRAMES)
                return count * SEGMENT_FRAMES / seconds

            run()
            speed = self.median(run)
            name = f"decode {count} row{'s' * (count > 1)}"
            results += [
                result(name, speed, "frames/s", stock and speed / stock),
                result(name, speed / FRAMES_A_SECOND, "xRT"),
            ]
            del rows
        return results

    def stock_frames_a_second(self) -> float:
        """The prompt's share is taken off: two lengths are spoken, and the difference counts. On a busy machine the
        longer one may seem to take less time; then it is no figure, and measured again."""
        stock = StockSpeaker(self.folder, self.device, self.precision)
        reference = (REFERENCE_TEXT, random_codes(REFERENCE_FRAMES))
        few = 3

        def run(frames: int) -> float:
            started = time.perf_counter()
            stock.codes(TEXT, reference, frames)
            self.synchronize()
            return time.perf_counter() - started

        run(few)
        for _ in range(MOST_MEASURINGS):
            seconds = self.median(lambda: run(few + self.stock_frames) - run(few))
            if seconds > 0:
                return self.stock_frames / seconds
        raise SystemExit("this machine is too busy to measure stock: give it more frames, or nothing else to do")

    @torch.inference_mode()
    def codec(self) -> list[Result]:
        results: list[Result] = []
        codes = [random_codes(SEGMENT_FRAMES, seed) for seed in range(SEGMENTS)]
        few = codes if self.torch_device.type == "cuda" else codes[:4]
        seconds = len(few) * SEGMENT_FRAMES / FRAMES_A_SECOND
        stock = 0.0
        if not self.without_stock:
            speaker = StockSpeaker(self.folder, self.device, self.precision)
            speaker.load_codec()

            def run_stock() -> float:
                self.synchronize()
                started = time.perf_counter()
                for row in few[:2]:
                    speaker.samples(row)
                return seconds * len(few[:2]) / len(few) / (time.perf_counter() - started)

            run_stock()
            stock = self.median(run_stock)
            results.append(result("codec stock, one at a time", stock, "xRT", 1.0))
        codec = Codec.load(self.folder, self.device, machine.codec_precision(self.precision, self.torch_device))

        def run() -> float:
            self.synchronize()
            started = time.perf_counter()
            codec.decode(few)
            return seconds / (time.perf_counter() - started)

        run()
        speed = self.median(run)
        results.append(
            result(f"codec, {len(few)} segments of {SEGMENT_FRAMES} frames", speed, "xRT", stock and speed / stock)
        )
        return results

    def job(self) -> list[Result]:
        count = -(-SEGMENTS // self.share)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            engine = self.engine(self.slots)
            load_s = time.perf_counter() - started
            voices = [self.voice(folder, number) for number in range(SPEAKERS)]
            first: list[float] = []

            def run() -> float:
                self.synchronize()
                started = time.perf_counter()
                segments = [self.segment(folder, number, voices[number % SPEAKERS]) for number in range(count)]
                first.append(speak(engine, segments))
                return time.perf_counter() - started

            cold = run()
            first.clear()
            seconds = self.median(run)
            engine.close()
        audio = count * SEGMENT_FRAMES / FRAMES_A_SECOND
        stock_s = None if self.without_stock else self.stock_job_seconds()
        results = [
            result("job, warm engine", seconds, "s", stock_s and stock_s / seconds),
            result("job, warm engine", audio / seconds, "xRT"),
            result("job, first time in an engine", cold, "s"),
            result("job, first WAV", statistics.median(first), "s"),
            result("engine load", load_s, "s"),
            result("slots", engine.slots, "rows"),
            result("peak memory", self.peak_bytes() / 1e9, "GB"),
        ]
        if stock_s:
            results.append(
                result("job, the stock way (extrapolated from its load and two segments)", stock_s, "s", 1.0)
            )
        return results

    def memory(self) -> list[Result]:
        """What 32 rows of 1,024 positions, most of them of shared prompts, take at most, and what more is held after
        many segments than after some."""
        results: list[Result] = []
        with tempfile.TemporaryDirectory() as folder:
            engine = self.engine(self.slots or FULL_SLOTS)
            voices = [self.voice(folder, number, frames=GROWTH_FRAMES) for number in range(SPEAKERS)]
            held: list[float] = []
            half = self.segments // 2
            for numbers in (range(half), range(half, 2 * half)) if half else ():
                speak(
                    engine,
                    (
                        self.segment(folder, number, voices[number % SPEAKERS], frames=1 + number % GROWTH_FRAMES)
                        for number in numbers
                    ),
                )
                held.append(self.held_bytes())
            if half:
                results += [
                    result(f"memory held after {half:,} segments", held[0] / 1e6, "MB"),
                    result(f"memory held after {2 * half:,} segments", held[1] / 1e6, "MB"),
                ]
            frames = FULL_POSITIONS - FULL_FRAMES - self.positions()
            voices = [self.voice(folder, number, frames=frames) for number in range(SPEAKERS)]
            speak(
                engine,
                (
                    self.segment(folder, number, voices[number % SPEAKERS], frames=FULL_FRAMES)
                    for number in range(engine.slots)
                ),
            )
            engine.close()
        name = f"peak memory, {engine.slots} slots of {FULL_POSITIONS:,} positions"
        return [*results, result(name, self.peak_bytes() / 1e9, "GB")]

    def positions(self) -> int:
        """Positions that a segment takes beside its reference's frames and its own."""
        prompter = Prompter(read_tokenizer(self.folder), read_shape(self.folder), self.folder)
        prefix = prompter.prefix([(REFERENCE_TEXT, random_codes(1))])
        return int(prefix.shape[1] - 1 + prompter.suffix(TEXT).shape[1])

    def stock_job_seconds(self) -> float:
        stock = StockSpeaker(self.folder, self.device, self.precision)
        load_s = stock.load_model_s + stock.load_codec()
        reference = (REFERENCE_TEXT, random_codes(REFERENCE_FRAMES))

        def run() -> float:
            started = time.perf_counter()
            stock.samples(stock.codes(TEXT, reference, self.stock_frames))
            return time.perf_counter() - started

        run()
        seconds = statistics.mean((run(), run())) * SEGMENT_FRAMES / self.stock_frames
        return load_s + -(-SEGMENTS // self.share) * seconds

    def load(self) -> list[Result]:
        """In processes of their own, one after the other in each repeat, so that what else the machine does falls on
        all alike: what a worker, stock, and no more than reading the files take, imports apart; the files in the page
        cache as the run before has left them."""
        settings = (
            f"checkpoint={self.folder!r}, device={self.device!r}, threads={self.threads}, precision={self.name!r}"
        )
        programs = {
            "ours": (
                "from workers.engine import Settings\nfrom workers.engines.fish import FishEngine",
                f"FishEngine(Settings({settings})).load()",
            ),
            "read": ("import pathlib", f"[p.read_bytes() for p in pathlib.Path({self.folder!r}).glob('*.pth')]"),
            "stock": (
                "from workers.engines.fish.stock import StockSpeaker, import_stock\nimport torch\nimport_stock()",
                f"StockSpeaker({self.folder!r}, {self.device!r}, {self.precision}).load_codec()",
            ),
        }
        if self.without_stock:
            del programs["stock"]
        taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in programs}
        self.timed_process(*programs["read"])
        for _ in range(self.repeats):
            for name, program in programs.items():
                taken[name].append(self.timed_process(*program))
        imports, work, busy = (
            {name: statistics.median(one[place] for one in times) for name, times in taken.items()}
            for place in range(3)
        )
        stock = work.get("stock")
        results = [
            result("load: our engine, codec included", work["ours"], "s", stock and stock / work["ours"]),
            result("load: our imports", imports["ours"], "s"),
            result("load: reading the files once", work["read"], "s"),
            result("load: our engine over reading once", work["ours"] / work["read"], "×"),
            result("load: our engine over reading once, in processor time", busy["ours"] / busy["read"], "×"),
        ]
        if stock:
            results += [
                result("load: stock, codec included", stock, "s", 1.0),
                result("load: stock's imports", imports["stock"], "s"),
            ]
        return results

    def timed_process(self, imports: str, work: str) -> tuple[float, ...]:
        """Seconds that the imports and the work take in a fresh interpreter, and the processor time of the work."""
        program = (
            "import time; a = time.perf_counter()\n"
            f"{imports}\nb, c = time.perf_counter(), time.process_time()\n{work}\n"
            "print('took', b - a, time.perf_counter() - b, time.process_time() - c)"
        )
        run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        return tuple(float(word) for word in run.stdout.splitlines()[-1].split()[1:])

    # --- helpers ---------------------------------------------------------------------------------------------

    def engine(self, slots: int) -> FishEngine:
        """One that is loaded, and lets every segment run to its limit."""
        options: dict[str, object] = {"mask_end": True, "checks": False}
        engine = FishEngine(
            Settings(
                checkpoint=self.folder,
                device=self.device,
                threads=self.threads,
                memory_bytes=int(self.memory_gb * machine.GIB),
                precision=self.name,
                slots=slots,
                retries=0,
                options=options,
            )
        )
        engine.load()
        return engine

    def voice(self, folder: str, number: int, frames: int = REFERENCE_FRAMES) -> Voice:
        path = os.path.join(folder, f"voice{number}.npy")
        np.save(path, random_codes(frames, number))
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        return Voice(str(number), (Reference(path, "codes", digest, REFERENCE_TEXT),))

    def segment(self, folder: str, number: int, voice: Voice, frames: int = SEGMENT_FRAMES) -> Segment:
        path = os.path.join(folder, f"{number}.wav")
        return Segment(number, "speak", TEXT, "en", voice, number, 0.7, 0.7, 1.2, frames, path, None, "PCM_16")

    def held_bytes(self) -> float:
        """What the process holds now and could not be given back: on a GPU what torch has reserved there."""
        if self.torch_device.type == "cuda":
            return float(torch.cuda.memory_reserved(self.torch_device))
        return process_bytes("RssAnon")

    def peak_bytes(self) -> float:
        if self.torch_device.type == "cuda":
            return float(torch.cuda.max_memory_reserved(self.torch_device))
        return process_bytes("VmHWM")


def speak(engine: FishEngine, segments: Iterable[Segment]) -> float:
    """Keep the engine full until all are spoken; the seconds to the first WAV.

    Raises:
        RuntimeError: one has failed.
    """
    started = time.perf_counter()
    first = 0.0
    running = 0
    waiting = iter(segments)
    coming = next(waiting, None)
    while running or coming is not None:
        while coming is not None and running < engine.slots:
            engine.submit(coming)
            running += 1
            coming = next(waiting, None)
        for outcome in engine.step():
            if isinstance(outcome, Failed):
                raise RuntimeError(outcome.message)
            first = first or time.perf_counter() - started
            running -= 1
    return first


def process_bytes(field: str) -> float:
    """A field of /proc/self/status."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(float(line.split()[1]) * 1024 for line in file if line.startswith(field))


def processor() -> str:
    """The CPU's name."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.engines.fish.bench", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=("decode", "codec", "job", "load", "memory"))
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--slots", type=int, default=0, help="rows of the job's engine; 0: the engine's choice")
    parser.add_argument("--memory-gb", type=float, default=0, help="the engine's share of the GPU; 0: no limit")
    parser.add_argument("--share", type=int, default=1, help="speak only one in so many of the job's segments")
    parser.add_argument("--segments", type=int, default=2000, help="how many to watch the memory over; 0: none")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stock-frames", type=int, default=SEGMENT_FRAMES, help="frames that stock speaks at a time")
    parser.add_argument("--without-stock", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    results: list[Result] = []
    for what in arguments.what:
        results += getattr(bench, what)()
        if not arguments.json:
            for one in results:
                ratio = f"  {one['ratio_to_stock']:8.2f} x stock" if one["ratio_to_stock"] else ""
                print(f"{one['name']:60s} {one['value']:12.3f} {one['unit']:9s}{ratio}", flush=True)
            results = []
    if arguments.json:
        print(json.dumps({**bench.head(), "results": results}))
    else:
        print(", ".join(f"{key}: {value}" for key, value in bench.head().items()))


if __name__ == "__main__":
    main()
