"""Starts a module of the daemon's as a process that is nobody's child: ``PYTHON -P …/detached_main.py MODULE``.

See detached. Before the module is imported, the frames' descriptors are moved away and standard output becomes standard
error, so that nothing that a library or another program prints can garble the frames; and the process is the first of a
session of its own, out of reach of the terminal's Ctrl-C.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import sys

FIRST_PRIVATE_DESCRIPTOR = 10


def main() -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    incoming, outgoing = (fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_PRIVATE_DESCRIPTOR) for number in (0, 1))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    # A worker's process keeps its pipe's ends non-blocking or not as the daemon's loop left them.
    os.set_blocking(incoming, True)
    os.set_blocking(outgoing, True)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    sys.path.insert(0, root)
    os._exit(importlib.import_module(sys.argv[1]).main(incoming, outgoing))


if __name__ == "__main__":
    main()
