"""The pool on a real Ray cluster of several raylets: the same results, nodes that come and go, deaths, the head's loss.

One cluster serves all tests of this file, in their order; each leaves it with the nodes n0 and n1 of one GPU each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.comparison import comparable
from tests.cluster.raylets import Raylets
from tests.end_to_end.conftest import (
    PATIENCE_S,
    ROOT,
    SHARED_ENGINES,
    DaemonUnderTest,
    is_alive,
    make_job,
    sample_job,
    wait_for,
)

pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements/ray.txt")

pytestmark = pytest.mark.timeout(400)

WAITING = {
    "engine__name": "waiting:Waiting",
    "worker__path": [str(SHARED_ENGINES)],
    "engine__slots": 4,
    "pool__model_memory_gb": 20.0,
}

Make = Callable[..., DaemonUnderTest]


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    with Raylets() as raylets:
        raylets.add("n0", 1, "24")
        raylets.add("n1", 1)
        yield raylets


@pytest.fixture
def make(tmp_path: Path, raylets: Raylets) -> Iterator[Make]:
    """Makes daemons on the cluster that are not started yet; local=True: on this machine."""
    made: list[DaemonUnderTest] = []

    def make_one(name: str = "dubd", *, local: bool = False, **settings: Any) -> DaemonUnderTest:
        folder = tmp_path / name
        folder.mkdir()
        there = {"pool__backend": "ray", "cluster__address": raylets.address, "cluster__folder": tmp_path / "node"}
        # The witness of the other tests has options that these engines don't know.
        rest = {"engine__options": {}, "pool__workers": 0, "pool__replan_s": 0.0, **settings}
        made.append(DaemonUnderTest(folder, **(rest if local else {**there, **rest})))
        return made[-1]

    yield make_one
    for daemon in made:
        daemon.end_test()


def all_ready(daemon: DaemonUnderTest, *nodes: str, loads: int = 1) -> None:
    """Until these nodes, and no others, have workers, and all are ready, after so many loads at least."""
    wait_for(
        lambda: (
            {row["node"] for row in daemon.workers()} == set(nodes)
            and all(row["state"] in ("ready", "busy") and row["loads"] >= loads for row in daemon.workers())
        ),
        f"workers on {nodes}",
    )


def spoken_on(manifest: Mapping[str, Any]) -> Counter[str]:
    return Counter(segment["device"].rpartition(" on ")[2] for segment in manifest["segments"])


def test_the_same_manifests_and_wavs_as_on_this_machine(make: Make) -> None:
    """The sample scene with a real engine, and 300 segments; references and WAVs cross without a shared folder. The
    plan names the nodes, and a voice travels to a node once."""
    long = make_job([f"line {number}" for number in range(300)], speakers=8)
    found: dict[bool, list[dict[str, Any]]] = {}
    for local in (True, False):
        daemon = make("local" if local else "ray", local=local, engine__name="draft").start(ready=False)
        scene = daemon.run("night_ferry", sample_job())
        daemon.reload(engine__name="silence")
        if not local:  # else the node that is ready first may speak all of it
            all_ready(daemon, "n0", "n1", loads=2)
        film = daemon.run("film", long)
        for manifest in (scene, film):
            daemon.check_manifest(manifest)
            assert manifest["status"] == "done"
        found[local] = [comparable(scene), comparable(film)]
        if not local:
            assert set(spoken_on(film)) == {"n0", "n1"}
            nodes = {node["node"]: node["workers"] for node in daemon.status()["cluster"]["nodes"]}
            assert nodes == {"head": 0, "n0": 1, "n1": 1}
            assert [(row["worker"], row["node"]) for row in daemon.workers()] == [(0, "n0"), (1, "n1")]
        daemon.check_nothing_left()
        assert daemon.stop() == 0
    assert found[True] == found[False]


def test_nodes_come_and_go_and_workers_are_killed(make: Make, raylets: Raylets) -> None:
    """All segments end once, well, and none is suspected for a node's loss; a node that comes back works again."""
    daemon = make(**WAITING, engine__options={"wait_s": 0.1}).start(ready=False)
    all_ready(daemon, "n0", "n1")
    assert [row["device"] for row in daemon.workers()] == ["cuda:0 on n0", "cuda:0 on n1"]
    old = daemon.workers()[1]["pid"]
    daemon.drop("film", make_job([f"line {number}" for number in range(240)], speakers=6))
    wait_for(lambda: daemon.progress("film")["counts"].get("ok", 0) > 30, "the beginning")
    raylets.remove("n1")
    all_ready(daemon, "n0")
    film = daemon.manifest("film")
    assert daemon.lines("its worker died while it was spoken; it is spoken again alone") == []
    wait_for(lambda: not is_alive(old), "the end of the lost node's worker")
    raylets.add("n1", 1)
    all_ready(daemon, "n0", "n1")
    assert [row["worker"] for row in daemon.workers()] == [0, 1]
    daemon.drop("more", make_job([f"more {number}" for number in range(120)], speakers=6))
    wait_for(lambda: {0, 1} <= {row["worker"] for row in daemon.workers() if row["spoken"] > 5}, "the beginning")
    # The process of a worker, then that of an actor, with its worker.
    near, far = (row["pid"] for row in daemon.workers())
    os.kill(parent_of(far), signal.SIGKILL)
    wait_for(lambda: not is_alive(far), "the death of the actor's worker")
    os.kill(near, signal.SIGKILL)
    more = daemon.manifest("more")
    for manifest, segments in ((film, 240), (more, 120)):
        daemon.check_manifest(manifest)
        assert manifest["counts"]["ok"] == segments
        assert set(spoken_on(manifest)) == {"n0", "n1"}
    all_ready(daemon, "n0", "n1")
    daemon.check_nothing_left()
    pids = [row["pid"] for row in daemon.workers()]
    assert daemon.stop() == 0
    wait_for(lambda: not any(map(is_alive, pids)), "the end of the workers")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_commands_that_ask_the_cluster(make: Make, tmp_path: Path) -> None:
    """``plan`` numbers the workers node by node; ``doctor`` finds the nodes, or none at all."""
    daemon = make(**WAITING)

    def dubd(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "daemon", *arguments, "--config", str(daemon.config)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    planned = dubd("plan", "--json")
    assert json.loads(planned.stdout)["workers"] == [
        {"worker": 0, "gpu": 0, "node": "n0"},
        {"worker": 1, "gpu": 0, "node": "n1"},
    ]
    asked = dubd("doctor")
    assert "node n0 at " in asked.stdout
    assert "2 workers would run in 2 places" in asked.stdout


def test_the_head_is_lost(make: Make, raylets: Raylets, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last test of the file: the workers work on, the daemon says what is wrong, and ends in order. Here files go
    by path, all machines being one."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "20")
    daemon = make(**WAITING, paths__shared=True).start(ready=False)
    all_ready(daemon, "n0", "n1")
    pids = [row["pid"] for row in daemon.workers()]
    raylets.lose_head()
    manifest = daemon.run("film", make_job(["one", "two"]))
    assert manifest["status"] == "done"
    wait_for(lambda: not daemon.workers() and daemon.status()["cluster"]["problem"], "the loss of the cluster")
    assert any("the cluster at " in warning for warning in daemon.status()["warnings"])
    wait_for(lambda: not any(map(is_alive, pids)), "the end of the workers")
    daemon.drop("later", make_job(["three"]))
    wait_for(lambda: daemon.job_row("later")["state"] in ("queued", "running"), "the taking of a job without a cluster")
    assert daemon.stop() == 0
