"""Starts a worker: ``PYTHON .../workers/__main__.py [--embeddings] [--path FOLDER]...``, by any interpreter from 3.10
on. With ``--embeddings`` it is one for speaker embeddings (workers/embeddings), which has no engine.

Run as a script, so that another environment's interpreter needs nothing installed. Three things are done before
anything heavy is imported:

- The frames' file descriptors are moved away: standard input becomes /dev/null, standard output becomes standard
  error, for C libraries and child processes as well, so that no print can garble the protocol.
- The process ties its life to its parent's: the kernel kills it when the parent dies, whatever it is doing.
- The package ``workers``, and nothing else of ours, is made importable: the checkout's other packages and the
  modules beside this script stay out of the path.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import importlib.util
import os
import select
import signal
import sys
import sysconfig

PR_SET_PDEATHSIG = 1
FIRST_PRIVATE_DESCRIPTOR = 10
"""Where the frames' descriptors go: out of the way of 0 to 2 and of what shell habits use."""


def take_streams() -> tuple[int, int]:
    """Descriptors to read frames from and to write frames to; closed in programs this process starts. From here on 0
    reads nothing and 1 writes where 2 does."""
    incoming = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, FIRST_PRIVATE_DESCRIPTOR)
    outgoing = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, FIRST_PRIVATE_DESCRIPTOR)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0, inheritable=True)
    os.close(nothing)
    os.dup2(2, 1, inheritable=True)
    os.set_blocking(incoming, True)
    os.set_blocking(outgoing, True)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    return incoming, outgoing


def tie_to_parent() -> None:
    """Die with the parent, at once and inside any C call. What happens before this line shows as the end of the
    frames instead."""
    parent = os.getppid()
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None:
        return
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def keep_group() -> None:
    """See to it that nothing which this process starts outlives it, however it ends.

    What it starts belongs to its process group, and a process that does nothing else waits for its end, to kill the
    group. It belongs to init, so that an engine which waits for its children finds its own alone, and holds nothing
    open but the descriptor that it waits on. It is forked while there is no more here than the interpreter. As long as
    it lives, the group's number is nobody else's.
    """
    with contextlib.suppress(PermissionError):  # it leads a session, and so a group
        os.setpgid(0, 0)
    worker = os.getpid()
    try:
        handle = os.pidfd_open(worker)
        between = os.fork()
    except (
        AttributeError,
        OSError,
    ):  # another kernel, or no room for a process: the daemon kills the group, if it lives
        return
    if between:
        os.close(handle)
        os.waitpid(between, 0)
        return
    try:
        if os.fork():
            os._exit(0)
        os.dup2(handle, 0)
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if int(name):
                    os.close(int(name))
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        select.select([0], [], [])
        os.killpg(worker, signal.SIGKILL)
    finally:
        os._exit(0)


def set_signals() -> None:
    """Ctrl-C and a closed terminal reach every process of the group: what to do about them is the daemon's decision.
    SIGTERM ends the process; SIGUSR1 writes the stack of every thread to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)


def make_importable(extra_folders: list[str]) -> None:
    """Put ``extra_folders`` first on the path, in their order, and register the package ``workers`` by its place."""
    folder = os.path.dirname(os.path.realpath(__file__))
    ours = {folder, os.path.dirname(folder)}
    # Installed, ``workers`` lies among this interpreter's own packages, and the engine's are there too.
    ours -= {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    sys.path[:] = extra_folders + [entry for entry in sys.path if os.path.realpath(entry or os.curdir) not in ours]
    spec = importlib.util.spec_from_file_location(
        "workers", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["workers"] = package
    spec.loader.exec_module(package)


def parse_arguments(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether it is for embeddings, and the folders given by ``--path``. Exits with status 2 on anything else."""
    folders: list[str] = []
    embeddings = False
    rest = iter(arguments)
    for argument in rest:
        if argument == "--embeddings":
            embeddings = True
            continue
        folder = next(rest, None) if argument == "--path" else None
        if folder is None:
            print(
                f"a worker is started by the dubd daemon, as: {sys.executable} {__file__} [--embeddings] "
                f"[--path FOLDER]...; {argument!r} is not understood",
                file=sys.stderr,
            )
            raise SystemExit(2)
        folders.append(os.path.abspath(folder))
    return embeddings, folders


def main() -> None:
    embeddings, folders = parse_arguments(sys.argv[1:])
    incoming, outgoing = take_streams()
    tie_to_parent()
    if not embeddings:
        keep_group()
    set_signals()
    make_importable(folders)

    if embeddings:
        from workers.embeddings.serve import serve
    else:
        from workers.serve import serve

    # No atexit handlers and no joins: a library's thread that hangs must not keep the process.
    status = serve(incoming, outgoing)
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
