"""Workers in another Python environment, and workers that can't be: the daemon stays up, says why, and goes on when
its configuration has been mended."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.end_to_end.conftest import DaemonUnderTest, Make, make_job, sample_job, wait_for

NEEDED = ("numpy", "numpy.libs", "soundfile.py", "_soundfile.py", "_soundfile_data", "cffi", "_cffi_backend*.so",
          "pycparser", "espeakng_loader", "typing_extensions.py")  # fmt: skip
"""What the draft engine needs, as it lies among the site-packages."""


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has what the draft engine needs and none of the daemon's packages."""
    folder = tmp_path_factory.mktemp("other")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    import numpy

    ours = Path(numpy.__file__).parents[1]
    for pattern in NEEDED:
        for path in ours.glob(pattern):
            (packages / path.name).symlink_to(path)
    return folder / "bin" / "python"


def test_workers_in_an_environment_without_the_daemons_packages(make: Make, other_python: Path) -> None:
    """It has no anyio, no structlog, no pydantic; its workers speak the sample all the same, to the same sums."""
    for name in ("anyio", "structlog", "pydantic", "watchfiles", "typer", "daemon"):
        found = subprocess.run([other_python, "-c", f"import {name}"], capture_output=True, cwd="/", check=False)
        assert found.returncode != 0, name
    there = make("there", engine__name="draft", engine__options={}, worker__python=str(other_python)).start()
    manifest = there.run("night_ferry", sample_job())
    there.check_manifest(manifest)
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 46)
    executables = {Path(f"/proc/{row['pid']}/cmdline").read_bytes().split(b"\0")[0] for row in there.workers()}
    assert executables == {str(other_python).encode()}
    there.stop()
    here = make("here", engine__name="draft", engine__options={}).start()
    sums = [segment["sha256"] for segment in here.run("night_ferry", sample_job())["segments"]]
    assert sums == [segment["sha256"] for segment in manifest["segments"]]


def waits_and_goes_on(dubd: DaemonUnderTest, *words: str, **mended: object) -> None:
    """A job waits while the workers can't be; status and note say why; after a SIGHUP with ``mended`` it is done."""
    dubd.start(ready=False)
    dubd.drop("patient", make_job(["I can wait.", "And so can I."]))
    wait_for(lambda: all(word in str(dubd.job_row("patient")["note"]) for word in words), "the job's note")
    wait_for(lambda: all(word in str(dubd.progress("patient")["note"]) for word in words), "the note in progress.json")
    wait_for(lambda: all(row["error"] for row in dubd.workers()), "the workers' errors")
    wait_for(lambda: all(word in " ".join(dubd.status()["warnings"]) for word in words), "the warning")
    assert dubd.manifest_now("patient") is None
    dubd.reload(**mended)
    manifest = dubd.manifest("patient")
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    assert {segment["attempts"] for segment in manifest["segments"]} == {1}
    assert dubd.is_alive()


def test_an_interpreter_that_does_not_exist(make: Make) -> None:
    dubd = make(worker__python="/no/such/python")
    waits_and_goes_on(dubd, "/no/such/python", "could not be started", worker__python="")


def test_an_interpreter_that_ends_at_once(make: Make) -> None:
    dubd = make(worker__python="/bin/false", pool__breaker_crashes=2)
    waits_and_goes_on(dubd, "/bin/false", "exited with status 1", worker__python=sys.executable)
    assert dubd.lines("worker has ended")


def test_an_interpreter_that_is_none(make: Make) -> None:
    """A program that does not answer as a worker does, or a file that is no program."""
    dubd = make(worker__python="/bin/echo", pool__breaker_crashes=2)
    waits_and_goes_on(dubd, "broke the protocol", worker__python="")


def test_an_interpreter_that_may_not_be_run(make: Make, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\n")
    dubd = make(worker__python=str(script))
    waits_and_goes_on(dubd, str(script), "could not be started", worker__python="")


def test_an_interpreter_without_the_engines_packages(make: Make, tmp_path: Path) -> None:
    """The reason names the module and how to mend it."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    dubd = make(engine__name="draft", engine__options={}, worker__python=str(tmp_path / "bare" / "bin" / "python"))
    waits_and_goes_on(dubd, "missing_module", "install it", worker__python="")


def test_an_engine_that_does_not_load(make: Make) -> None:
    """Whatever it does instead: fails, raises, crashes, exits, hangs."""
    for fault in ("fail", "raise", "crash", "exit"):
        dubd = make(fault, engine__name="faulty:Faulty", engine__options={"load": fault})
        waits_and_goes_on(dubd, engine__options={})
        dubd.stop()
    dubd = make("hang", engine__name="faulty:Faulty", engine__options={"load": "hang"}, worker__load_timeout_s=0.5)
    waits_and_goes_on(dubd, "not ready", worker__load_timeout_s=30.0, engine__options={})


def test_an_engine_that_does_not_exist(make: Make) -> None:
    waits_and_goes_on(
        make(engine__name="nowhere:Nobody"), "missing_module", "nowhere", engine__name="silence", engine__options={}
    )
    waits_and_goes_on(
        make("b", engine__name="faulty:Nobody"), "unknown_engine", engine__name="silence", engine__options={}
    )


def test_no_checkpoint_at_all(make: Make, tmp_path: Path) -> None:
    """The folder does not exist, or none was named: whichever module is missing here too, the daemon stays up."""
    dubd = make(engine__name="fish", engine__options={}, engine__checkpoint=str(tmp_path / "gone"), pool__workers=1)
    waits_and_goes_on(dubd, engine__name="silence")
