"""The machine's GPUs and who holds their memory, asked of NVML: no CUDA context is made, so asking costs no memory.

A GPU's ``index`` is the N of the ``cuda:N`` that a worker sees when it runs with CUDA_DEVICE_ORDER=PCI_BUS_ID and this
process's CUDA_VISIBLE_DEVICES. By itself CUDA puts the fastest device first, and NVML promises no order at all; both
are sorted by PCI bus here, and CUDA_VISIBLE_DEVICES is read as CUDA reads it (CUDA C++ Programming Guide, "CUDA
Environment Variables"): numbers, UUIDs or the unique beginnings of UUIDs, up to the first that names nothing.

Of a GPU that is split by MIG, CUDA shows a process one instance: the one that CUDA_VISIBLE_DEVICES names, else the
first. It stands here under its own name with its own memory.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from daemon.core.plan import Gpu

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What NVML said: the GPUs, the driver's version ("" without a driver), and what could not be read, in
    sentences."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str = ""
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class _Device:
    """One device as NVML hands it out. ``parent`` is the whole GPU of a MIG instance."""

    handle: Any
    uuid: str
    parent: _Device | None = None
    instances: list[_Device] = field(default_factory=list)


@dataclass(slots=True)
class _Reading:
    """A device's figures before it is known whose memory is whose; ``processes`` is pid to bytes, None: not told."""

    index: int
    name: str
    uuid: str
    total: int
    reserved: int
    used: int
    processes: dict[int, int | None]


def list_gpus(own_pids: Collection[int]) -> list[Gpu]:
    """The GPUs that workers can use; none without an NVIDIA driver. Takes from milliseconds up to a second or two, when
    the driver has to wake the devices.

    Args:
        own_pids: the processes of this daemon's workers, whose memory is not others'.
    """
    report = read_gpus(own_pids)
    for problem in report.problems:
        log.debug("gpus", problem=problem)
    return list(report.gpus)


def read_gpus(own_pids: Collection[int], *, environ: Mapping[str, str] | None = None, nvml: Any = None) -> GpuReport:
    """As ``list_gpus``, with what went wrong. A GPU that can't be read is left out and keeps its number.

    Args:
        own_pids: the processes of this daemon's workers.
        environ: where CUDA_VISIBLE_DEVICES is looked up; this process's environment unless given.
        nvml: the module pynvml, or one that answers like it.
    """
    if nvml is None:
        import pynvml  # not at the top: this function is also sent to nodes, which may have another one

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return GpuReport(problems=(f"no NVIDIA driver answers: {error}",))
    try:
        return _read(nvml, own_pids, os.environ if environ is None else environ)
    except nvml.NVMLError as error:
        return GpuReport(problems=(f"the NVIDIA driver fails: {error}",))
    finally:
        nvml.nvmlShutdown()


def _read(nvml: Any, own_pids: Collection[int], environ: Mapping[str, str]) -> GpuReport:
    problems: list[str] = []
    readings: list[_Reading] = []
    for index, device in enumerate(_visible(_devices(nvml, problems), environ.get("CUDA_VISIBLE_DEVICES"), problems)):
        if device is None:
            continue
        try:
            readings.append(_figures(nvml, index, device))
        except nvml.NVMLError as error:
            problems.append(f"GPU {index} ({device.uuid}) can't be read and is left out: {error}")
    ours = _ours(readings, own_pids)
    gpus = tuple(
        Gpu(
            index=reading.index,
            name=reading.name,
            total_bytes=reading.total,
            used_by_others_bytes=_held_by_others(reading, ours),
            reserved_bytes=reading.reserved,
            uuid=reading.uuid,
        )
        for reading in readings
    )
    return GpuReport(gpus, _text(nvml.nvmlSystemGetDriverVersion()), tuple(problems))


# --- which devices, in which order -------------------------------------------------------------------------


def _devices(nvml: Any, problems: list[str]) -> list[_Device | None]:
    """The machine's devices in the order of their PCI bus; None for one that does not answer."""
    found: list[tuple[tuple[int, int, int], _Device | None]] = []
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            pci = nvml.nvmlDeviceGetPciInfo(handle)
            device = _Device(handle, _text(nvml.nvmlDeviceGetUUID(handle)))
            device.instances = _instances(nvml, device)
        except nvml.NVMLError as error:
            problems.append(f"GPU {number} does not answer and is left out: {error}")
            found.append((found[-1][0] if found else (-1, -1, -1), None))
        else:
            found.append(((pci.domain, pci.bus, pci.device), device))
    return [device for _, device in sorted(found, key=lambda pair: pair[0])]


def _instances(nvml: Any, device: _Device) -> list[_Device]:
    """The MIG instances of a GPU; none when it is not split."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(device.handle)
    except nvml.NVMLError:  # not a GPU that can be split
        return []
    instances = []
    if current:
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(device.handle)):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(device.handle, number)
            except nvml.NVMLError:  # the places of instances that were not made
                continue
            instances.append(_Device(handle, _text(nvml.nvmlDeviceGetUUID(handle)), parent=device))
    return instances


def _visible(devices: list[_Device | None], names: str | None, problems: list[str]) -> list[_Device | None]:
    """The devices that CUDA will number, in its order."""
    if names is None:
        return [device.instances[0] if device is not None and device.instances else device for device in devices]
    visible: list[_Device | None] = []
    for name in (part.strip() for part in names.split(",")):
        named = _named(devices, name)
        if len(named) != 1:
            if name not in ("", "-1"):
                problems.append(f"CUDA_VISIBLE_DEVICES names {name!r}, which is no GPU here; CUDA stops reading there")
            break
        visible += named
    return visible


def _named(devices: list[_Device | None], name: str) -> list[_Device | None]:
    if name.isascii() and name.isdigit():
        chosen = devices[int(name) : int(name) + 1]
    elif name.startswith("MIG-"):
        every = [instance for device in devices if device is not None for instance in device.instances]
        chosen = [instance for instance in every if instance.uuid.startswith(name)]
    elif name.startswith("GPU-"):
        chosen = [device for device in devices if device is not None and device.uuid.startswith(name)]
    else:
        chosen = []
    return [device.instances[0] if device is not None and device.instances else device for device in chosen]


# --- whose memory ------------------------------------------------------------------------------------------


def _figures(nvml: Any, index: int, device: _Device) -> _Reading:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(device.handle, version=nvml.nvmlMemory_v2)
        reserved = memory.reserved
    except nvml.NVMLError:
        # Drivers before 510 know only the first version, which counts the reserved memory as used.
        memory = nvml.nvmlDeviceGetMemoryInfo(device.handle)
        reserved = 0
    try:
        processes = {
            process.pid: process.usedGpuMemory for process in nvml.nvmlDeviceGetComputeRunningProcesses(device.handle)
        }
    except nvml.NVMLError:  # not told on every platform; all that is used then counts as others'
        processes = {}
    return _Reading(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(device.handle)),
        uuid=device.uuid,
        total=memory.total,
        reserved=reserved,
        used=max(0, memory.total - memory.free - reserved),
        processes=processes,
    )


def _ours(readings: list[_Reading], own_pids: Collection[int]) -> set[int]:
    """Which of the processes on the GPUs are this daemon's workers.

    In a container with process ids of its own, NVML tells the host's ids, among which ours can't be found. Then the
    processes that don't exist in here are taken for ours: counting our own workers as others would retire them.
    """
    seen = {pid for reading in readings for pid in reading.processes}
    if not own_pids or seen & set(own_pids):
        return seen & set(own_pids)
    return {pid for pid in seen if not _exists(pid)}


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _held_by_others(reading: _Reading, ours: set[int]) -> int:
    """Bytes in use that are not ours. Where the driver does not tell what each process holds, what it tells of the
    others."""
    if any(held is None and pid in ours for pid, held in reading.processes.items()):
        return sum(held or 0 for pid, held in reading.processes.items() if pid not in ours)
    own = sum(held or 0 for pid, held in reading.processes.items() if pid in ours)
    return max(0, reading.used - own)


def _text(value: str | bytes) -> str:
    """Older versions of nvidia-ml-py answer in bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
