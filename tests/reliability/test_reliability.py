"""The attacks of ``make reliability``, each in its short version. Each runs as a program, since it forks daemons."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def attack(name: str) -> str:
    """The table, once nothing was lost."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability", "--short", "--only", name], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "0 lost" in done.stdout
    return done.stdout


@pytest.mark.timeout(300)
def test_random_histories_keep_every_promise() -> None:
    """100 histories of jobs, faults and deaths of the daemon; a failing seed is printed and can be replayed."""
    assert "random histories" in attack("simulator")


@pytest.mark.timeout(300)
def test_a_fault_at_any_change_on_disk_loses_nothing() -> None:
    """20 of the crash matrix's faults, chosen by a fixed seed, after a quiet run of each scene."""
    assert "quiet runs" in attack("matrix")


@pytest.mark.timeout(300)
def test_the_shim_tells_the_truth() -> None:
    """strace lists the same changes as the crash matrix's own disk, and fails four system calls itself."""
    attack("strace")


@pytest.mark.timeout(300)
def test_chaos_changes_nothing_but_times() -> None:
    """Two nights in which a daemon is killed six times and its workers twenty, and two jobs with poison in them."""
    assert "as in the quiet nights" in attack("chaos")


@pytest.mark.timeout(300)
def test_the_inbox_bears_load() -> None:
    """200 jobs behind a blind watcher, eight daemons on one inbox, a second one on one state, a share that goes."""
    assert "each claimed once" in attack("inbox")


@pytest.mark.timeout(300)
def test_what_is_dropped_at_the_wrong_moment() -> None:
    """100 cancels, a good job behind 100 broken files, a history of late cancels, files of the future and of others."""
    assert "broken files before a good job" in attack("drops")


@pytest.mark.timeout(300)
def test_hostile_input_gets_nowhere() -> None:
    """2,000 documents, 100 recordings, swaps between check and use, and a siege."""
    assert "sieges" in attack("hostile")


@pytest.mark.timeout(300)
def test_the_wire_stands_fuzz_noise_and_lies() -> None:
    """300 broken streams into the decoder, some through real pipes and to real workers, noise, and workers that lie."""
    assert "lies" in attack("wire")


@pytest.mark.timeout(300)
def test_upkeep_takes_nothing_that_is_needed() -> None:
    """Results cleared away under kills, workers replaced in the middle of a job, a disk that others fill, and the
    folders of every earlier version."""
    assert "results away" in attack("upkeep")


@pytest.mark.timeout(300)
def test_hostile_utterances_cost_themselves_alone() -> None:
    """Files that are spoilt, and bombs of shapes, opcodes and archives beside a speaker's own files."""
    assert "bombs" in attack("utterances")


@pytest.mark.timeout(300)
def test_engines_gone_wrong_cost_their_own_lines_alone() -> None:
    """Some of a hundred habits in the lines of one job, and one to load with."""
    assert "misbehave" in attack("engines")


@pytest.mark.timeout(300)
def test_a_restart_suspects_no_more_than_what_was_out() -> None:
    """Killed halfway, on a good disk and on a slow one, with an engine that is faster than both."""
    assert "killed halfway" in attack("restart")


@pytest.mark.timeout(300)
def test_redoing_takes_nothing_away() -> None:
    """20 folders that others have filled with pipes, links and worse, and 20 histories of films and redos."""
    assert "redo: histories" in attack("redo")


@pytest.mark.timeout(300)
def test_a_job_id_belongs_to_one_daemon_at_a_time() -> None:
    """Three job_ids, each dropped again and again before two daemons that are killed and stopped."""
    assert "before two daemons" in attack("owners")
