"""What this machine offers: device, precision, memory, and how many slots that makes."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine import EngineError

GIB = 1 << 30

CONTEXT_BYTES = GIB * 6 // 10
"""What a CUDA context and its libraries hold outside torch's allocator, which other programs see as ours."""

WORKING_BYTES = 2 * GIB
"""Room for the activations of prefill and codec, the codec's encoder when a reference is encoded, and graphs."""

MOST_SLOTS = 64
"""More rows than this cost as much time as they save: the step is bound by arithmetic and cache traffic then."""

CPU_SLOTS = 32

TOKENS_A_SLOT = 512
"""What a slot is reckoned to need beside its speaker's prompt: a line of 20 seconds. Rows may be longer; fewer fit
then."""

MOST_PROMPTS = 16384
"""Tokens of prompts that are held in any case where a third of the memory has room for them; more only for slots that
may all have speakers of their own, with 20 seconds of references each."""

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class MemoryPlan:
    """How many rows, and how many tokens' keys and values for the rows and for speakers' prompts."""

    slots: int
    row_tokens: int
    prompt_tokens: int


def device(name: str) -> torch.device:
    """The device that the settings name. Raises EngineError "no_device"."""
    found = torch.device(name)
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise EngineError(
                "no_device",
                f"torch {torch.__version__} of this interpreter sees no GPU; install a build of torch for CUDA, or "
                "check the driver with nvidia-smi",
            )
        if (found.index or 0) >= torch.cuda.device_count():
            raise EngineError("no_device", f"there is no {name}: torch sees {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(found)
    return found


def precision(name: str, on: torch.device, *, reproducible: bool) -> torch.dtype:
    """The precision that the settings name; "auto" is bf16 where the device computes in it. On the CPU reproducible
    means float32: in bf16 the order of a sum shows.

    Raises:
        EngineError: "bad_option": no such precision.
    """
    if name in PRECISIONS:
        return PRECISIONS[name]
    if name != "auto":
        raise EngineError("bad_option", f"engine.precision is {name!r}; it is one of auto, {', '.join(PRECISIONS)}")
    if on.type == "cuda":
        return torch.bfloat16
    return torch.float32 if reproducible or not _cpu_has_bf16() else torch.bfloat16


def codec_precision(decoder: torch.dtype, on: torch.device) -> torch.dtype:
    """What the codec computes in beside a decoder of this precision: the same, as stock's autocast does (whose error in
    bf16 is as large, 35 dB below the speech), but no fp16 on a CPU, which has no arithmetic for it."""
    return torch.float32 if on.type == "cpu" and decoder == torch.float16 else decoder


def _available_bytes() -> int:
    """Memory that this machine could give without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _cpu_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "").split()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def bound_memory(on: torch.device, memory_bytes: int) -> None:
    """Hold the allocator to the worker's share, 0 for no limit; what lies outside the allocator is taken off."""
    if on.type == "cuda" and memory_bytes:
        total = torch.cuda.get_device_properties(on).total_memory
        fraction = min(1.0, max(0.01, (memory_bytes - CONTEXT_BYTES) / total))
        torch.cuda.set_per_process_memory_fraction(fraction, on)


def stream(on: torch.device) -> torch.cuda.Stream | None:
    """The stream for decoding, which goes before the codec's; None on the CPU."""
    return torch.cuda.Stream(on, priority=-1) if on.type == "cuda" else None


def keep_compiled(cache: str) -> None:
    """Keep compiled kernels with the other things that are kept between runs: a service has no home folder."""
    if cache:
        os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(cache, "triton"))


def plan_memory(on: torch.device, memory_bytes: int, token_bytes: int, slots: int) -> MemoryPlan:
    """Slots and tokens for what is left when the models are loaded.

    Args:
        memory_bytes: the worker's share of the GPU, 0 for no limit.
        token_bytes: keys and values of one token.
        slots: asked for in the settings, 0 for as many as pay.

    Raises:
        EngineError: "out_of_memory": not even one slot fits.
    """
    if on.type == "cuda":
        free = torch.cuda.mem_get_info(on)[0] * 9 // 10
        if memory_bytes:
            free = min(free, memory_bytes - CONTEXT_BYTES - torch.cuda.memory_reserved(on))
        free -= WORKING_BYTES
        most = MOST_SLOTS
    else:
        free = _available_bytes() // 2
        most = CPU_SLOTS
    tokens = free // token_bytes
    # A third for prompts: enough when every slot has a speaker of its own with 12 seconds of references.
    row_tokens = tokens - tokens // 3
    slots = slots or min(most, row_tokens // TOKENS_A_SLOT)
    prompt_tokens = min(tokens // 3, max(MOST_PROMPTS, slots * TOKENS_A_SLOT))
    if row_tokens < TOKENS_A_SLOT:
        raise EngineError(
            "out_of_memory",
            f"the models leave {max(0, free) / GIB:.1f} GiB, too little for a single slot; raise pool.model_memory_gb",
        )
    return MemoryPlan(slots, tokens - prompt_tokens, prompt_tokens)


def give_back_pages(path: str, tensors: Iterable[Tensor]) -> None:
    """Take tensors that are mapped from a file, and have been copied, out of this process's memory. They can still be
    read: from the file again. Tensors that are not mapped from it are left alone."""
    mapped: list[tuple[int, int]] = []
    real = os.path.realpath(path)
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if line.rstrip("\n").endswith(real):
                    first, _, last = line.partition(" ")[0].partition("-")
                    mapped.append((int(first, 16), int(last, 16)))
    except OSError:
        return
    advise = ctypes.CDLL(None).madvise
    for tensor in tensors:
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end and any(low <= begin and end <= high for low, high in mapped):
            advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, on either device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
