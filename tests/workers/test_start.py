"""How a worker starts and how it ends: alone on its path, deaf to noise on fd 1, and never longer than its daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.conftest import ROOT, SCRIPT, StartWorker, descendants, wait_until_ended
from workers.protocol import PROTOCOL_VERSION, encode_frame

PROBE = '''
"""An engine that reports, by failing to load, what it could import."""
import importlib.util, json, sys
from workers.engine import EngineError

class Probe:
    def __init__(self, settings):
        pass

    def load(self):
        names = ["daemon", "tests", "protocol", "serve", "engines", "workers", "workers.protocol"]
        found = {name: importlib.util.find_spec(name) is not None for name in names}
        raise EngineError("probed", json.dumps({"found": found, "path": sys.path}))
'''

# Starts the rest of its arguments as a child, and stays.
LAUNCHER = (sys.executable, "-c", "import signal, subprocess, sys; subprocess.Popen(sys.argv[1:]); signal.pause()")


@pytest.mark.parametrize("python_path", ["", str(ROOT), str(ROOT / "workers")])
def test_only_the_package_workers_is_importable(
    start_worker: StartWorker, bare_python: str, tmp_path: Path, python_path: str
) -> None:
    """From the checkout's own folder, with the checkout in PYTHONPATH: neither ``daemon`` nor ``tests`` can be
    imported, nor the modules beside the script by their bare names; the folders asked for come first, in order."""
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "probe.py").write_text(PROBE)
    worker = start_worker(
        "probe:Probe", python=bare_python, paths=[extra], environment={"PYTHONPATH": python_path}, cwd=ROOT
    )
    worker.hello()
    failed = worker.receive("failed")
    assert failed["code"] == "probed"
    report = json.loads(failed["message"])
    assert report["found"] == {
        "daemon": False,
        "tests": False,
        "protocol": False,
        "serve": False,
        "engines": False,
        "workers": True,
        "workers.protocol": True,
    }
    assert report["path"][:2] == [str(ROOT / "tests" / "engines"), str(extra)]


def test_an_installed_worker_finds_the_packages_beside_it(bare_python: str) -> None:
    """Installed, ``workers`` lies in site-packages, where numpy and the engines' other packages are as well."""
    asked = [bare_python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    shutil.copytree(ROOT / "workers", packages / "workers", ignore=shutil.ignore_patterns("__pycache__", "fish"))
    (packages / "neighbour.py").write_text(PROBE)
    hello = {"type": "hello", "protocol": PROTOCOL_VERSION, "engine": {"name": "neighbour:Probe"}}
    try:
        script = str(packages / "workers" / "__main__.py")
        with subprocess.Popen(
            [bare_python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(encode_frame(hello))
            worker.stdin.flush()
            said = worker.stdout.read()
    finally:
        shutil.rmtree(packages / "workers")
        (packages / "neighbour.py").unlink()
    assert b'"code":"probed"' in said, said.decode("utf-8", "replace")


def test_a_bare_environment_is_enough(start_worker: StartWorker, bare_python: str) -> None:
    """The serve loop and the silent engine need the standard library alone."""
    worker = start_worker("silence", python=bare_python)
    worker.start()
    assert worker.say("Hello.").startswith(b"RIFF")


def test_prints_do_not_garble_the_protocol(start_worker: StartWorker) -> None:
    """What Python, C and a child process write to fd 1 goes to stderr, while loading and while speaking."""
    worker = start_worker("faulty:Faulty")
    worker.start(options={"load": "print"})
    assert worker.answer(worker.speak("{print}"))["type"] == "spoken"
    worker.finish()
    assert worker.wait() == 0
    for line in ("printed by Python", "written to descriptor 1", "put by C", "echoed by a child process"):
        assert worker.stderr.count(line) == 2


def test_the_hello_comes_before_anything_is_asked(start_worker: StartWorker) -> None:
    """The worker introduces itself at once, with its process and its Python."""
    worker = start_worker("silence")
    hello = worker.receive()
    assert hello["type"] == "hello"
    assert hello["pid"] == worker.process.pid
    assert hello["python"] == ".".join(map(str, sys.version_info[:3]))


def test_strange_arguments_are_explained() -> None:
    """Someone who starts it by hand is told what it is; exit 2."""
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "dubd" in run.stderr
    assert "--help" in run.stderr


@pytest.mark.parametrize("text", ["{hang}", "{wait}"])
def test_the_end_of_its_input_ends_the_worker(start_worker: StartWorker, text: str) -> None:
    """Also inside a C call that would take an hour."""
    worker = start_worker("faulty:Faulty")
    worker.start()
    worker.receive("began", ticket=worker.speak(text))
    worker.finish()
    assert worker.wait() == 0


def test_the_end_of_its_input_ends_a_worker_that_loads(start_worker: StartWorker) -> None:
    """Loading takes minutes with a real model; the daemon may go meanwhile."""
    worker = start_worker("faulty:Faulty")
    worker.receive("hello")
    worker.hello(options={"load": "hang"}, beat_seconds=0.01)
    worker.receive("beat")
    worker.finish()
    assert worker.wait() == 0


def test_stop_ends_a_worker_that_loads(start_worker: StartWorker) -> None:
    """A stop is obeyed before the engine has loaded, with the pipe still open."""
    worker = start_worker("faulty:Faulty")
    worker.hello(options={"load": "hang"}, beat_seconds=0.01)
    worker.receive("beat")
    worker.send({"type": "stop"})
    assert worker.wait() == 0


@pytest.mark.parametrize("text", ["{freeze}", "{hang}"])
def test_the_death_of_its_parent_kills_the_worker(start_worker: StartWorker, text: str) -> None:
    """SIGKILL of the daemon, with the pipes held open by somebody else: the kernel ends the worker, even inside a C
    call that holds the interpreter's lock."""
    worker = start_worker("faulty:Faulty", launcher=LAUNCHER)
    pid = worker.receive("hello")["pid"]
    assert pid != worker.process.pid
    worker.start()
    worker.receive("began", ticket=worker.speak(text))
    process = os.pidfd_open(pid)
    worker.process.kill()
    wait_until_ended([process])


def test_the_death_of_its_parent_ends_the_speaking_process_too(start_worker: StartWorker) -> None:
    """Nothing that the worker has started survives the daemon either."""
    worker = start_worker("draft", launcher=LAUNCHER)
    pid = worker.receive("hello")["pid"]
    worker.start()
    worker.say("Hello.")
    helpers = descendants(pid)
    assert helpers
    processes = [os.pidfd_open(process) for process in (pid, *helpers)]
    worker.process.kill()
    wait_until_ended(processes)


def test_interrupts_are_the_daemons_business(start_worker: StartWorker) -> None:
    """Ctrl-C and a closed terminal reach the whole process group: the worker goes on working."""
    worker = start_worker("silence")
    worker.start()
    for number in (signal.SIGINT, signal.SIGHUP):
        worker.process.send_signal(number)
        worker.say("Still here.")


def test_sigterm_ends_the_worker(start_worker: StartWorker) -> None:
    """At once, whatever it is doing."""
    worker = start_worker("faulty:Faulty")
    worker.start()
    worker.receive("began", ticket=worker.speak("{freeze}"))
    worker.process.terminate()
    assert worker.wait() == -signal.SIGTERM


def test_sigusr1_shows_every_thread(start_worker: StartWorker) -> None:
    """For the log of a worker that hangs: the stack of each thread, and the work goes on."""
    worker = start_worker("silence")
    worker.start()
    worker.process.send_signal(signal.SIGUSR1)
    worker.say("Still here.")
    assert "in _read\n" in worker.stderr
    assert "in main\n" in worker.stderr
