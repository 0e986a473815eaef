"""The measurements of a GPU, without one: that whatever happens to a process, the others' figures are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from workers.engines.fish.on_gpu import Measurement, measurements, run, summary

FIGURE = {"name": "job, warm engine", "value": 100.0, "unit": "xRT", "ratio_to_stock": None}


def test_what_several_processes_make_at_once_is_added_up(tmp_path: Path) -> None:
    """The last line of each is its figures; libraries may have printed before."""
    said = json.dumps({"results": [FIGURE]})
    with (tmp_path / "log").open("w") as log:
        done = run(Measurement("job", ("-c", f"print('hello'); print({said!r})"), 60, 3), 60, log)
    assert (done["failed"], len(done["processes"])) == ("", 3)
    assert "300.000 xRT" in summary(done)


@pytest.mark.parametrize(
    ("program", "limit_s", "why"),
    [("import time; time.sleep(60)", 1, "not over"), ("raise SystemExit(3)", 60, "status 3")],
)
def test_one_that_fails_or_hangs_is_ended_and_said(tmp_path: Path, program: str, limit_s: float, why: str) -> None:
    """And the next one begins."""
    with (tmp_path / "log").open("w") as log:
        done = run(Measurement("hangs", ("-c", program), 60), limit_s, log)
    assert why in done["failed"]
    assert done["processes"] == []
    assert why in summary(done)


def test_all_of_them_fit_into_their_time() -> None:
    """Each has a limit, and what counts most comes first."""
    planned = measurements("folder", "cuda:0")
    assert [one.name for one in planned[:3]] == ["kernels and steps are right", "decode", "job"]
    assert [one.processes for one in planned if "workers" in one.name] == [2, 4]
    assert all(0 < one.limit_s <= 180 for one in planned)
