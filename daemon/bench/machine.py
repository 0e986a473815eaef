"""What a measurement was made on: the hardware, the versions, and what else the machine was doing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import daemon


def head(folder: Path) -> dict[str, str]:
    """By name, for people and for the record. ``folder`` is where the measured daemons work."""
    from daemon.gpus import read_gpus

    report = read_gpus(set())
    gpus = ", ".join(f"{gpu.name} ({gpu.total_bytes / 1024**3:.0f} GB)" for gpu in report.gpus)
    driver = f", driver {report.driver_version}" if report.driver_version else ""
    cores = len(os.sched_getaffinity(0))
    return {
        "processor": f"{_first('/proc/cpuinfo', 'model name') or platform.machine()}, {cores} cores, {_memory()}",
        "gpus": f"{gpus}{driver}" if gpus else "none",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "dubd": daemon.__version__,
        "folder": f"{folder} ({_file_system(folder)})",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _first(path: str, name: str) -> str:
    """The value of the first line of that name in a file of ``name: value`` lines; "" where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith(name)), "")
    except OSError:
        return ""


def _memory() -> str:
    kilobytes = _first("/proc/meminfo", "MemTotal").partition(" ")[0]
    return f"{int(kilobytes) / 1024**2:.0f} GB" if kilobytes.isdigit() else "memory unknown"


def _file_system(folder: Path) -> str:
    """What kind of file system the folder lies on: a sync costs nothing in memory."""
    best, kind = "", "unknown"
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return kind
    for line in lines:
        _, place, its_kind, *_ = line.split(" ")
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, its_kind
    return kind
