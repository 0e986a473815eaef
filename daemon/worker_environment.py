"""The environment of a worker, on this machine or on a node of a cluster."""

from __future__ import annotations

from collections.abc import Mapping


def worker_environment(environ: Mapping[str, str], *, own_python: bool, gpu: bool, threads: int) -> dict[str, str]:
    """That of a worker, out of the one around it. An interpreter that is not ``own_python`` gets none of what
    Python-specific variables would add to its path."""
    environment = dict(environ)
    if not own_python:
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            environment.pop(name, None)
    environment.pop("NOTIFY_SOCKET", None)
    environment.pop("WATCHDOG_USEC", None)
    environment.pop("WATCHDOG_PID", None)
    # NVML counts GPUs in bus order; CUDA does only when told to.
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    # Threads of a parallel region that wait for the others sleep. Spinning, they burn the cores that those need: on two
    # busy cores a small model took twenty times as long with two threads as with one.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment["PYTHONUNBUFFERED"] = "1"
    return environment
