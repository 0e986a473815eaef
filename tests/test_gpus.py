"""The GPUs as NVML tells them. The machine's own are asked where there are any; what no test machine has (several
GPUs, broken ones, split ones, other programs' processes) is told by an object that answers as pynvml does."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

from daemon.core.plan import BYTES_PER_GB, Gpu
from daemon.gpus import list_gpus, read_gpus

GB = BYTES_PER_GB
A_STRANGER = 1
"""A process that exists and is none of ours, in any process id namespace."""


@dataclass
class Device:
    """One device and what NVML says of it."""

    bus: int
    uuid: str
    total: int = 24 * GB
    used: int = 0
    reserved: int = 512 * 1024**2
    processes: dict[int, int | None] = field(default_factory=dict)
    name: str = "NVIDIA Test"
    broken: str = ""
    """The call that fails."""
    mig: list[Device] | None = None


@dataclass
class Answer:
    domain: int = 0
    bus: int = 0
    device: int = 0
    total: int = 0
    free: int = 0
    used: int = 0
    reserved: int = 0
    pid: int = 0
    usedGpuMemory: int | None = 0  # noqa: N815 - NVML's name


class Nvml:
    """Answers as pynvml does, for described devices."""

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2  # noqa: N815 - NVML's name

    def __init__(self, *devices: Device, no_driver: bool = False, first_version_only: bool = False) -> None:
        self.devices = devices
        self.no_driver = no_driver
        self.first_version_only = first_version_only
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self, f"on_{name}")

        def call(*arguments: Any, **options: Any) -> Any:
            device = arguments[0] if arguments and isinstance(arguments[0], Device) else None
            if device is not None and device.broken == name:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return method(*arguments, **options)

        return call

    def on_nvmlInit(self) -> None:  # noqa: N802
        if self.no_driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        self.open += 1

    def on_nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def on_nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65"

    def on_nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.devices)

    def on_nvmlDeviceGetHandleByIndex(self, number: int) -> Device:  # noqa: N802
        return self.devices[number]

    def on_nvmlDeviceGetPciInfo(self, device: Device) -> Answer:  # noqa: N802
        return Answer(bus=device.bus)

    def on_nvmlDeviceGetUUID(self, device: Device) -> str:  # noqa: N802
        return device.uuid

    def on_nvmlDeviceGetName(self, device: Device) -> bytes:  # noqa: N802
        return device.name.encode()

    def on_nvmlDeviceGetMigMode(self, device: Device) -> list[int]:  # noqa: N802
        if device.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def on_nvmlDeviceGetMaxMigDeviceCount(self, device: Device) -> int:  # noqa: N802
        return 7

    def on_nvmlDeviceGetMigDeviceHandleByIndex(self, device: Device, number: int) -> Device:  # noqa: N802
        instances = device.mig or []
        if number == 0 or number > len(instances):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return instances[number - 1]

    def on_nvmlDeviceGetMemoryInfo(self, device: Device, version: int | None = None) -> Answer:  # noqa: N802
        if version is None:
            used = device.used + device.reserved
            return Answer(total=device.total, free=device.total - used, used=used)
        if self.first_version_only:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        free = device.total - device.used - device.reserved
        return Answer(total=device.total, free=free, used=device.used, reserved=device.reserved)

    def on_nvmlDeviceGetComputeRunningProcesses(self, device: Device) -> list[Answer]:  # noqa: N802
        return [Answer(pid=pid, usedGpuMemory=held) for pid, held in device.processes.items()]


def gpus(nvml: Nvml, *own_pids: int, visible: str | None = None) -> tuple[Gpu, ...]:
    report = read_gpus(own_pids, environ={} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, nvml=nvml)
    assert nvml.open == 0, "NVML is closed again"
    return report.gpus


def test_the_machine_s_own_gpus() -> None:
    """The real NVML answers, or there is none: then there are no GPUs and a reason why."""
    report = read_gpus(())
    assert [gpu.uuid for gpu in list_gpus(())] == [gpu.uuid for gpu in report.gpus]
    if not report.driver_version:
        assert report.gpus == ()
        assert report.problems
    for gpu in report.gpus:
        assert gpu.name
        assert gpu.uuid
        assert 0 <= gpu.used_by_others_bytes <= gpu.total_bytes


def test_no_driver_is_no_gpus() -> None:
    """Without a driver the list is empty and the reason is told."""
    report = read_gpus((), environ={}, nvml=Nvml(no_driver=True))
    assert report.gpus == ()
    assert "driver" in report.problems[0].lower()


def test_others_are_neither_us_nor_the_driver() -> None:
    """Used by others: what is used less our workers'; what the driver reserves is told apart."""
    device = Device(1, "GPU-a", used=10 * GB, processes={os.getpid(): 6 * GB, A_STRANGER: 4 * GB})
    (gpu,) = gpus(Nvml(device), os.getpid())
    assert gpu.total_bytes == 24 * GB
    assert gpu.used_by_others_bytes == 4 * GB
    assert gpu.reserved_bytes == 512 * 1024**2
    assert (gpu.index, gpu.name, gpu.uuid) == (0, "NVIDIA Test", "GPU-a")
    assert gpus(Nvml(device))[0].used_by_others_bytes == 10 * GB


def test_a_driver_that_knows_only_the_first_figures() -> None:
    """An older driver counts its reserved memory as used; the GPU is still read."""
    (gpu,) = gpus(Nvml(Device(1, "GPU-a", used=2 * GB), first_version_only=True))
    assert (gpu.used_by_others_bytes, gpu.reserved_bytes) == (2 * GB + 512 * 1024**2, 0)


def test_our_workers_are_found_in_a_container() -> None:
    """With process ids of the host's, those that don't exist here are taken for ours, but only if none of ours is
    found by its id."""
    unseen = 2**22 + 17  # over the kernel's largest process id
    device = Device(1, "GPU-a", used=10 * GB, processes={unseen: 6 * GB, A_STRANGER: 4 * GB})
    assert gpus(Nvml(device), os.getpid())[0].used_by_others_bytes == 4 * GB
    assert gpus(Nvml(device))[0].used_by_others_bytes == 10 * GB
    known = Device(1, "GPU-a", used=10 * GB, processes={unseen: 6 * GB, os.getpid(): 4 * GB})
    assert gpus(Nvml(known), os.getpid())[0].used_by_others_bytes == 6 * GB


def test_memory_that_is_not_told_by_process() -> None:
    """Where the driver keeps to itself what our worker holds, it is not charged to others."""
    device = Device(1, "GPU-a", used=10 * GB, processes={os.getpid(): None, A_STRANGER: 3 * GB})
    assert gpus(Nvml(device), os.getpid())[0].used_by_others_bytes == 3 * GB


def test_order_is_the_pci_bus_s() -> None:
    """The index is CUDA's under CUDA_DEVICE_ORDER=PCI_BUS_ID, whatever order NVML has."""
    found = gpus(Nvml(Device(9, "GPU-late"), Device(3, "GPU-early")))
    assert [(gpu.index, gpu.uuid) for gpu in found] == [(0, "GPU-early"), (1, "GPU-late")]


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("2,0", ["GPU-cc", "GPU-aa1"]),
        ("GPU-cc,1", ["GPU-cc", "GPU-aa2"]),
        ("GPU-c", ["GPU-cc"]),
        ("GPU-aa", []),
        ("1,7,0", ["GPU-aa2"]),
        ("0,-1,1", ["GPU-aa1"]),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_is_obeyed(visible: str, uuids: list[str]) -> None:
    """Numbers, UUIDs and their unique beginnings, in their order, up to the first that names nothing."""
    found = gpus(Nvml(Device(1, "GPU-aa1"), Device(2, "GPU-aa2"), Device(3, "GPU-cc")), visible=visible)
    assert [(gpu.index, gpu.uuid) for gpu in found] == list(enumerate(uuids))


def test_a_name_that_is_no_gpu_is_told() -> None:
    """A slip in CUDA_VISIBLE_DEVICES is among the problems."""
    report = read_gpus((), environ={"CUDA_VISIBLE_DEVICES": "GPU-x"}, nvml=Nvml(Device(1, "GPU-a")))
    assert "CUDA_VISIBLE_DEVICES" in report.problems[0]


@pytest.mark.parametrize("call", ["nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetName"])
def test_a_broken_gpu_costs_only_itself(call: str) -> None:
    """A GPU that fails in the middle is left out and told; the others keep their numbers."""
    nvml = Nvml(Device(1, "GPU-a"), Device(2, "GPU-b", broken=call), Device(3, "GPU-c"))
    report = read_gpus((), environ={}, nvml=nvml)
    assert [(gpu.index, gpu.uuid) for gpu in report.gpus] == [(0, "GPU-a"), (2, "GPU-c")]
    assert len(report.problems) == 1


def test_processes_that_can_t_be_asked_for() -> None:
    """Where the driver lists no processes, all that is used counts as others'."""
    device = Device(1, "GPU-a", used=3 * GB, broken="nvmlDeviceGetComputeRunningProcesses")
    assert gpus(Nvml(device), os.getpid())[0].used_by_others_bytes == 3 * GB


def test_a_split_gpu_is_its_instance() -> None:
    """Of a GPU split by MIG, the instance that CUDA shows stands in the list, with its own memory."""
    instances = [Device(1, "MIG-x", total=18 * GB, name="MIG 1g.18gb"), Device(1, "MIG-y", total=35 * GB)]
    nvml = Nvml(Device(1, "GPU-a", total=141 * GB, mig=instances), Device(2, "GPU-b"))
    assert [(gpu.uuid, gpu.total_bytes) for gpu in gpus(nvml)] == [("MIG-x", 18 * GB), ("GPU-b", 24 * GB)]
    assert [gpu.uuid for gpu in gpus(nvml, visible="MIG-y")] == ["MIG-y"]
    assert [gpu.uuid for gpu in gpus(nvml, visible="0")] == ["MIG-x"]
