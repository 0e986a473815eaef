"""A bare Debian with a running systemd, in a container without a network.

What takes long is kept in a folder outside of the checkout: the Debian as debootstrap makes it, and the packages of the
locks. Each run boots a copy. It is killed with whoever runs it, and a folder that was left is removed by the next run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.reliability.guard import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,make,ca-certificates,procps"
BOOT_S = 120.0
COMMAND_S = 120.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root"}

Result = subprocess.CompletedProcess[str]


class MachineError(Exception):
    """The container could not be made or does not do what any machine does."""


def cache_folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "dubd-service-test"


def host_sources(apt: Path = Path("/etc/apt"), os_release: Path = Path("/etc/os-release")) -> tuple[str, str]:
    """The suite of this machine, and the mirror that its own apt sources name for it.

    Raises:
        MachineError: they name none.
    """
    found = re.search(r"^VERSION_CODENAME=\"?([\w-]+)", os_release.read_text("utf-8"), re.MULTILINE)
    suite = os.environ.get("SUITE") or (found[1] if found else "")
    for path in sorted(apt.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text("utf-8")):
            fields = dict(re.findall(r"^(\w[\w-]*): *(.+)$", stanza, re.MULTILINE))
            if suite in fields.get("Suites", "").split() and "deb" in fields.get("Types", "").split():
                return suite, fields["URIs"].split()[0]
    for path in (apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))):
        if path.exists() and (
            line := re.search(rf"^deb +(?:\[[^]]*\] *)?(\S+) +{suite} ", path.read_text("utf-8"), re.MULTILINE)
        ):
            return suite, line[1]
    raise MachineError(f"the sources in {apt} name no mirror of {suite or 'this machine'}; SUITE names another suite")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One run at a time makes what others wait for."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prototype() -> Path:
    """The root of a Debian on which nothing has run yet, made if there is none."""
    suite, mirror = host_sources()
    folder = cache_folder() / suite
    folder.mkdir(parents=True, exist_ok=True)
    root, unfinished = folder / "root", folder / "root.part"
    with locked(folder / "lock"):
        if not root.exists():
            print(f"making a bare {suite} in {folder} ...", flush=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            made = subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, unfinished, mirror],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            if made.returncode:
                raise MachineError(f"debootstrap ended with {made.returncode}:\n{made.stdout[-2000:]}")
            for archive in (unfinished / "var/cache/apt/archives").glob("*.deb"):
                archive.unlink()
            unfinished.rename(root)
    return root


def wheels(lock: str, root: Path) -> Path:
    """The packages of a lock for the Python of that Debian, fetched as this machine's pip is set up to do it."""
    version = os.readlink(root / "usr/bin/python3").removeprefix("python")
    name = hashlib.sha256(f"{version}\n{lock}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"wheels-{name}"
    with locked(cache_folder() / "wheels.lock"):
        if not folder.exists():
            print(f"fetching the packages of requirements/light.txt into {folder} ...", flush=True)
            unfinished = folder.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            (unfinished / "lock.txt").write_text(lock, "utf-8")
            fetched = subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                 "--python-version", version, "--dest", unfinished, "-r", unfinished / "lock.txt"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if fetched.returncode:
                raise MachineError(f"pip could not fetch the packages:\n{fetched.stderr[-2000:]}")
            unfinished.rename(folder)
    return folder


def sweep(folder: Path) -> None:
    """Remove what runs have left that were killed: a run holds its folder's lock."""
    for left in folder.glob("run-*"):
        with contextlib.suppress(OSError), (left / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Machine:
    """A booted container. ``root`` is its root folder, seen from here."""

    def __init__(self, root: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.root = root
        self._process = process
        self._log = log
        self._init = self._wait_for_init()

    def run(
        self,
        *command: str | Path,
        user: str = "root",
        timeout: float = COMMAND_S,
        umask: str = "022",
        cwd: str = "/",
    ) -> Result:
        """Run a command inside to its end, as a user, and hand back what it said. Never raises for its exit status; one
        that takes too long ends with 124, as timeout(1) says it."""
        words = ["sh", "-c", f'umask {umask}; cd {cwd}; exec "$@"', "sh", *map(str, command)]
        if user != "root":
            words = ["runuser", "-u", user, "--", *words]
        words = [
            "nsenter",
            "--target",
            str(self._init),
            "--all",
            "--",
            "timeout",
            "--kill-after=5",
            str(timeout),
            *words,
        ]
        return subprocess.run(
            words,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=timeout + 30,
        )

    def said(self, *command: str | Path, user: str = "root", timeout: float = COMMAND_S) -> str:
        """What a command says that has to succeed."""
        result = self.run(*command, user=user, timeout=timeout)
        if result.returncode:
            raise AssertionError(f"{' '.join(map(str, command))} ended with {result.returncode}: {tail(result)}")
        return result.stdout.strip()

    def _wait_for_init(self) -> int:
        """The process number, as seen here, of the container's systemd, once it has booted."""
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            for child in _children(self._process.pid):
                with contextlib.suppress(OSError):
                    numbers = re.search(r"^NSpid:(.*)$", Path(f"/proc/{child}/status").read_text(), re.MULTILINE)
                    name = Path(f"/proc/{child}/comm").read_text().strip()
                    if numbers and numbers[1].split()[-1] == "1" and name == "systemd":
                        self._init = child
                        if self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"):
                            return child
            time.sleep(0.2)
        raise MachineError(f"the container did not boot:\n{self._log.read_text('utf-8', 'replace')[-2000:]}")


def tail(result: Result) -> str:
    """The end of what a command said, on one line."""
    return " ".join((result.stdout + " " + result.stderr).split())[-400:]


@contextlib.contextmanager
def booted(packages: Sequence[Path]) -> Iterator[Machine]:
    """A machine of its own whose pip finds these folders' packages and nothing else; gone at the end.

    Raises:
        MachineError: it can't be made.
    """
    original = prototype()
    sweep(cache_folder())
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=cache_folder()))
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    process = None
    try:
        root, log = folder / "root", folder / "console.log"
        subprocess.run(["cp", "--archive", "--reflink=auto", original, root], check=True)
        (root / "wheels").mkdir()
        for wheel in (wheel for package in packages for wheel in package.glob("*.whl")):
            shutil.copy(wheel, root / "wheels" / wheel.name)
        (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n", "utf-8")
        # Some machines still have the old layout of control groups; systemd in the container has to know.
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        with log.open("wb") as console:
            process = subprocess.Popen(
                ["systemd-nspawn", "--quiet", f"--directory={root}", "--boot", "--register=no", "--keep-unit",
                 "--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"],
                env={**ENVIRONMENT, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1" if unified else "0"},
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        yield Machine(root, process, log)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if process is not None:
            _end(process)
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the container: its init first, with which the kernel ends all that runs in it."""
    for child in _children(process.pid):
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()
