"""``python -m daemon.cluster``: the bridge, started by the daemon."""

from __future__ import annotations

import sys

from daemon.cluster.bridge import main

sys.exit(main())
