"""``dubd doctor`` as a command; what it finds is tested in tests/doctor."""

from __future__ import annotations

import json

from tests.commands.conftest import Place


def test_a_healthy_place_exits_0(place: Place) -> None:
    """And nothing is made: the doctor only looks."""
    done = place.dubd("doctor")
    assert done.returncode == 0, done.stdout
    assert "The daemon can work." in done.stdout
    assert not place.var.exists()


def test_a_daemon_that_could_not_work_exits_1_and_says_how_to_mend_it(place: Place) -> None:
    """For people, and as JSON for machines."""
    options = ("--set", "engine.name=fish", "--set", "engine.checkpoint=/nowhere", "--set", "worker.python=/no/python")
    done = place.dubd("doctor", *options)
    assert done.returncode == 1
    assert "FAIL worker.python" in done.stdout
    assert "The daemon could not work." in done.stdout
    document = json.loads(place.dubd("doctor", "--json", *options).stdout)
    assert document["ok"] is False
    failed = [finding for finding in document["findings"] if finding["level"] == "fail"]
    assert failed
    assert all(finding["mend"] for finding in failed)


def test_mistakes_of_the_configuration_are_findings(place: Place) -> None:
    """All of them, and the checks that need no settings are made all the same."""
    done = place.dubd("doctor", "--json", "--set", "pool.wokers=2", "--set", "engine.name=fihs")
    assert done.returncode == 1
    findings = json.loads(done.stdout)["findings"]
    assert sum(finding["check"] == "configuration" and finding["level"] == "fail" for finding in findings) == 2
    assert any(finding["check"] == "sound library" for finding in findings)


def test_a_running_daemon_is_seen(live: Place) -> None:
    """With its pid; it is not disturbed."""
    done = live.dubd("doctor")
    assert done.returncode == 0, done.stdout
    assert "running (pid " in done.stdout
    assert live.dubd("status").returncode == 0
