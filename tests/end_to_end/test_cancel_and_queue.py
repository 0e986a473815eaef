"""Who is served when: cancels, priorities, fairness, jobs of one id in line."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.end_to_end.conftest import DaemonUnderTest, Make, make_job, wait_for


def counts(dubd: DaemonUnderTest, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = dubd.progress(job_id)["counts"]
    return found


def statuses(manifest: dict[str, Any]) -> list[str]:
    return [segment["status"] for segment in manifest["segments"]]


def ended_at(dubd: DaemonUnderTest, job_id: str) -> float:
    at: float = dubd.manifest(job_id)["timings"]["ended_at"]
    return at


# --- cancel ------------------------------------------------------------------------------------------------


def test_cancel_in_the_middle(dubd: DaemonUnderTest) -> None:
    """What is spoken stays, the rest is cancelled, also what had begun; the workers are free for the next job."""
    texts = [f"Free {number}" for number in range(4)] + [f"Held {number} {{hold}}" for number in range(30)]
    dubd.drop("film", make_job(texts))
    wait_for(lambda: counts(dubd, "film").get("ok") == 4 and counts(dubd, "film")["running"] == 8, "the middle")
    dubd.put("film.cancel", b"")
    manifest = dubd.manifest("film")
    dubd.check_manifest(manifest)
    assert (manifest["status"], statuses(manifest)) == ("cancelled", ["ok"] * 4 + ["cancelled"] * 30)
    wait_for(lambda: not (dubd.inbox / "film.cancel").exists(), "the removal of the cancel file")
    assert dubd.progress("film")["status"] == "cancelled"
    assert dubd.run("next", make_job(["Free again."]))["status"] == "done"
    assert all(row["restarts"] == 0 for row in dubd.workers())
    dubd.check_nothing_left()


def test_cancel_of_jobs_in_line(make: Make) -> None:
    """Also before a job's first segment, whatever the case of its name; a job without a cancel is not touched."""
    dubd = make(pool__workers=1, engine__slots=1, pool__lookahead=0).start()
    dubd.drop("runs", make_job(["Held {hold}", "And held {hold}"]))
    wait_for(lambda: counts(dubd, "runs").get("running") == 1, "the first segment")
    dubd.drop("waits", make_job(["Never spoken."] * 3))
    wait_for(lambda: dubd.job_row("waits")["state"] is not None, "the second job")
    dubd.put("WAITS.cancel", b"anything")
    assert statuses(dubd.manifest("waits")) == ["cancelled"] * 3
    dubd.open_gate()
    assert dubd.manifest("runs")["status"] == "done"


def test_cancel_of_all_of_one_id(dubd: DaemonUnderTest) -> None:
    """The one that runs and the one that waits for it: both end, and both manifests are there."""
    dubd.drop("film", make_job(["Held {hold}"]))
    wait_for(lambda: counts(dubd, "film").get("running") == 1, "the first of the id")
    dubd.drop("film", make_job(["Held as well {hold}"]))
    wait_for(lambda: len([job for job in dubd.status()["jobs"] if job["job_id"] == "film"]) == 2, "the second")
    dubd.put("film.cancel", b"")
    wait_for((dubd.outbox / "film" / "manifest.1.json").exists, "the first one's manifest")
    assert dubd.manifest("film")["status"] == "cancelled"
    first = json.loads((dubd.outbox / "film" / "manifest.1.json").read_bytes())
    assert (first["status"], first["segments"][0]["text"]) == ("cancelled", "Held {hold}")
    wait_for(lambda: not dubd.status()["jobs"], "the end of both")


def test_cancel_while_the_engine_loads(make: Make) -> None:
    """No worker has ever been ready: the job ends all the same."""
    options = {"load_s": 600}
    dubd = make(engine__name="waiting:Waiting", engine__options=options).start(ready=False)
    dubd.drop("early", make_job(["One.", "Two."]))
    wait_for(lambda: dubd.progress("early")["note"] is not None, "the job's note")
    assert "engine" in dubd.progress("early")["note"]
    dubd.put("early.cancel", b"")
    manifest = dubd.manifest("early")
    dubd.check_manifest(manifest)
    assert (manifest["status"], statuses(manifest)) == ("cancelled", ["cancelled"] * 2)


def test_a_cancel_that_comes_with_its_job(make: Make) -> None:
    """Dropped while the job still settles: it is obeyed when the job is there."""
    dubd = make(inbox__settle_seconds=0.5).start()
    dubd.drop("both", make_job(["Held {hold}"]))
    dubd.put("both.cancel", b"")
    assert dubd.manifest("both")["status"] == "cancelled"


def test_a_cancel_of_nobody(dubd: DaemonUnderTest) -> None:
    """Is taken away, and cancels no job of that name that comes later."""
    dubd.put("nobody.cancel", b"")
    wait_for(lambda: not (dubd.inbox / "nobody.cancel").exists(), "the end of the cancel")
    assert dubd.run("nobody", make_job(["Somebody now."]))["status"] == "done"


def test_a_cancel_outlives_the_daemon(make: Make) -> None:
    """Killed right after it was obeyed, the daemon does not speak what was cancelled."""
    dubd = make().start()
    dubd.drop("film", make_job(["Free.", "Held {hold}"]))
    wait_for(lambda: counts(dubd, "film").get("ok") == 1 and counts(dubd, "film")["running"] == 1, "the middle")
    dubd.kill()
    dubd.put("film.cancel", b"")
    dubd.start()
    manifest = dubd.manifest("film")
    assert statuses(manifest) == ["ok", "cancelled"]


# --- in line -----------------------------------------------------------------------------------------------


def test_the_same_id_while_it_runs(dubd: DaemonUnderTest) -> None:
    """The newcomer waits for its namesake, says so, and then reuses what that has spoken; each has its manifest."""
    dubd.drop("film", make_job(["Held {hold}", "Free."]))
    wait_for(lambda: counts(dubd, "film").get("running") == 1, "the first one")
    for extra in ("Second", "Third"):
        dubd.drop("film", make_job(["Held {hold}", "Free.", extra]))
        wait_for(lambda: not (dubd.inbox / "film.json").exists(), "the taking")
    wait_for(lambda: len(dubd.status()["jobs"]) == 3, "all three in the status")
    rows = dubd.status()["jobs"]
    assert [row["state"] for row in rows] == ["running", "queued", "queued"]
    assert "earlier" in rows[1]["note"]
    assert not list((dubd.outbox / "film").glob("manifest*"))
    dubd.open_gate()
    wait_for((dubd.outbox / "film" / "manifest.2.json").exists, "the second one's manifest")
    last = dubd.manifest("film")
    manifests = [json.loads((dubd.outbox / "film" / f"manifest.{n}.json").read_bytes()) for n in (1, 2)] + [last]
    assert [[s["text"] for s in manifest["segments"]][2:] for manifest in manifests] == [[], ["Second"], ["Third"]]
    assert [manifest["counts"]["cached"] for manifest in manifests] == [0, 2, 2]
    assert dubd.told_texts() == {"Held {hold}": 1, "Free.": 1, "Second": 1, "Third": 1}
    dubd.check_nothing_left()


def test_jobs_of_one_id_keep_their_order_over_a_death(make: Make) -> None:
    dubd = make().start()
    dubd.drop("film", make_job(["Held {hold}"]))
    wait_for(lambda: counts(dubd, "film").get("running") == 1, "the first one")
    dubd.drop("film", make_job(["The last word."]))
    wait_for(lambda: len(dubd.status()["jobs"]) == 2, "the second one")
    dubd.kill()
    dubd.open_gate()
    dubd.start()
    wait_for((dubd.outbox / "film" / "manifest.1.json").exists, "the first one's manifest")
    assert [segment["text"] for segment in dubd.manifest("film")["segments"]] == ["The last word."]


def has_arrived(dubd: DaemonUnderTest, job_id: str) -> bool:
    """Whether the pool may give out its lines; its state says so a moment earlier."""
    return any(line.get("job") == job_id for line in dubd.lines("[Main] Speakers: 1"))


def test_a_higher_priority_overtakes(make: Make) -> None:
    """Every line of the urgent job is spoken before the waiting ones of the other."""
    dubd = make(pool__workers=1, engine__slots=1, pool__lookahead=0).start()
    dubd.drop("slow", make_job(["Held {hold}"] + [f"Slow {number}" for number in range(20)]))
    wait_for(lambda: counts(dubd, "slow").get("running") == 1, "the first segment")
    dubd.drop("urgent", make_job([f"Urgent {number}" for number in range(5)], priority=10))
    wait_for(lambda: has_arrived(dubd, "urgent"), "the urgent job")
    dubd.open_gate()
    dubd.manifest("slow")
    dubd.manifest("urgent")
    order = [json.loads(line)["text"].split()[0] for line in dubd.told.read_text().splitlines()]
    assert order == ["Held"] + ["Urgent"] * 5 + ["Slow"] * 20


def test_a_short_job_does_not_wait_for_a_long_one(make: Make) -> None:
    """Of equal priority they share the pool: the short one is done after about as many lines of the long one as it
    has itself, in rounds of the pool and not in seconds."""
    dubd = make(pool__workers=1, engine__slots=1, pool__lookahead=0).start()
    dubd.drop("long", make_job(["Held {hold}"] + [f"Long {number:03}" for number in range(200)]))
    wait_for(lambda: counts(dubd, "long").get("running") == 1, "the first segment")
    dubd.drop("short", make_job([f"Short {number:02}" for number in range(10)]))
    wait_for(lambda: has_arrived(dubd, "short"), "the short job")
    dubd.open_gate()
    assert ended_at(dubd, "short") <= ended_at(dubd, "long")
    order = [json.loads(line)["text"].split()[0] for line in dubd.told.read_text().splitlines()]
    last = max(place for place, word in enumerate(order) if word == "Short")
    assert order[: last + 1].count("Long") <= 15


@pytest.mark.parametrize("workers", [1, 2, 4, 6])
def test_everybody_works_while_work_waits(make: Make, workers: int) -> None:
    """46 lines on an engine that takes the same time for each: no worker has to speak more of them than the rounds that
    0.9 of the ideal speed-up allows, though one speaker has two thirds of the lines."""
    dubd = make(
        pool__workers=workers, engine__name="waiting:Waiting", engine__options={"wait_s": 0.05 * workers}
    ).start()
    job = make_job([f"Line {number}" for number in range(46)], speakers=6)
    for segment in job["segments"]:
        segment["speaker"] = f"s{min(segment['index'] // 3, 5)}"
    manifest = dubd.run("rounds", job)
    assert manifest["status"] == "done"
    rounds = Counter(segment["worker"] for segment in manifest["segments"])
    assert len(rounds) == workers
    assert max(rounds.values()) <= 46 / workers / 0.9 + 1
