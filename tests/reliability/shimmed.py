"""A daemon whose disk reports what it does: ``python -m tests.reliability.shimmed REPORT NAME=FOLDER... -- CONFIG``."""

from __future__ import annotations

import sys
from pathlib import Path

from daemon import files
from daemon.cli import main
from tests.reliability.faulty_disk import FaultyDisk

if __name__ == "__main__":
    report, *roots, _, config = sys.argv[1:]
    folders = {name: Path(folder) for name, _, folder in (root.partition("=") for root in roots)}
    files.disk = FaultyDisk(folders, Path(report))
    sys.argv = ["dubd", "run", "--config", config]
    main()
