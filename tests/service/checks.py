"""What is asked of the service on a real machine. A check that fails says what was found, and the next goes on."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.service.machine import Machine, Result, tail

CONFIG = "/etc/dubd/config.toml"
HOME = "/var/lib/dubd"
PAGES = "/opt/dubd/share/doc/dubd"
MOST_EXPOSURE = 2.0
WATCHDOG_S = 60.0
READY_S = 60.0
KILLED_S = 150.0
JOB_S = 240.0
INSTALL_S = 400.0
BEFORE = 12
"""Segments that are out when a job is broken off."""

Found = TypeVar("Found")
Snapshot = dict[str, tuple[int, int]]
"""A published WAV → its inode and its time: those of one that was not written again."""


@dataclass
class Table:
    """Each check, its outcome and what there is to say about it."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(outcome == "FAILED" for _, outcome, _ in self.rows)

    def check(self, name: str, check: Callable[[], str]) -> None:
        began = time.monotonic()
        try:
            outcome, detail = "ok", check()
        except (AssertionError, OSError, ValueError, LookupError) as error:
            outcome, detail = "FAILED", " ".join(f"{error}".split()) or repr(error)
        self.add(name, outcome, f"{detail} ({time.monotonic() - began:.0f} s)".strip())

    def add(self, name: str, outcome: str, detail: str) -> None:
        self.rows.append((name, outcome, detail))
        print(f"{outcome:<7} {name}: {detail}", flush=True)

    def __str__(self) -> str:
        width = max(len(name) for name, _, _ in self.rows)
        lines = [f"{name:<{width}}  {outcome:<7}  {detail}" for name, outcome, detail in self.rows]
        return "\n".join([f"{'check':<{width}}  outcome  detail", "-" * (width + 50), *lines])


def until(what: str, look: Callable[[], Found | None], seconds: float) -> Found:
    """What ``look`` finds, within so long."""
    deadline = time.monotonic() + seconds
    while True:
        if (found := look()) is not None:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


class Service:
    """dubd on that machine, asked from outside as its people and its administrator do."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.run = machine.run
        self.said = machine.said
        self.home = machine.root / HOME[1:]

    # --- asking ----------------------------------------------------------------------------------------------

    def shows(self, name: str) -> str:
        return self.said("systemctl", "show", "--property", name, "--value", "dubd")

    @property
    def pid(self) -> int:
        """The daemon's process number in the container; 0: none."""
        return int(self.shows("MainPID"))

    def processes(self) -> list[str]:
        """What runs as the user dubd."""
        return self.run("ps", "-o", "pid=,args=", "-u", "dubd").stdout.splitlines()

    def log(self) -> str:
        return self.said("journalctl", "--unit", "dubd", "--no-pager", "--output", "cat")

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.home / "status.json").read_text("utf-8"))
        return document

    def manifest(self, job: str) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads((self.home / "outbox" / job / "manifest.json").read_bytes())
        except FileNotFoundError:
            return None
        return document

    def published(self, job: str) -> Snapshot:
        folder = self.home / "outbox" / job
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("segment_*.wav")}

    # --- doing -----------------------------------------------------------------------------------------------

    def install(self, source: str) -> Result:
        result = self.run("make", "-C", source, "install", timeout=INSTALL_S)
        assert result.returncode == 0, f"make install ended with {result.returncode}: {tail(result)}"
        return result

    def configure(self, **changes: str) -> None:
        """Give keys that stand switched off in config.toml, or were given before, other values."""
        path = self.machine.root / CONFIG[1:]
        text = path.read_text("utf-8")
        for key, value in changes.items():
            text, number = re.subn(rf"^#?{key} = .*", f"{key} = {value}", text, count=1, flags=re.MULTILINE)
            assert number == 1, f"config.toml has no key {key}"
        path.write_text(text, "utf-8")

    def start(self) -> None:
        """Have it running, whatever the check before has left."""
        self.run("systemctl", "reset-failed", "dubd")
        self.said("systemctl", "start", "dubd")

    def write_job(self, name: str, user: str, segments: int, *, length: int = 600) -> Path:
        """A job with its recording beside it, in the user's home folder; its path as seen from here."""
        folder = self.machine.root / "home" / user
        voice = f"{user}.flac"
        shutil.copy(self.machine.root / "src" / "daemon" / "sample" / "bo.flac", folder / voice)
        words = "and it goes on for quite a while after that, so that it can be broken off in its middle, "
        texts = [(f"This is line {number} of {name}, " + words * 20)[:length] for number in range(segments)]
        document = {
            "schema": 1,
            "job_id": name,
            "language": "en",
            "output": {"sample_rate": 8000},
            "speakers": [{"id": "bo", "references": [{"audio": voice, "text": "An engine tells you what it wants."}]}],
            "segments": [{"index": index, "speaker": "bo", "text": text} for index, text in enumerate(texts)],
        }  # fmt: skip
        path = folder / f"{name}.json"
        path.write_text(json.dumps(document), "utf-8")
        self.said("chown", "-R", f"{user}:", f"/home/{user}")
        return path

    def drop(self, name: str, user: str, segments: int, *, umask: str = "022", length: int = 600) -> None:
        """Copy a job into the inbox as that user does, with cp."""
        self.write_job(name, user, segments, length=length)
        home = f"/home/{user}"
        copied = self.run("cp", f"{home}/{user}.flac", f"{home}/{name}.json", f"{HOME}/inbox/", user=user, umask=umask)
        assert copied.returncode == 0, tail(copied)

    def begin(self, name: str, segments: int) -> Snapshot:
        """A job that has begun and is not near its end: what of it is out."""
        self.start()
        self.drop(name, "anna", segments)

        def some() -> Snapshot | None:
            return found if len(found := self.published(name)) >= BEFORE else None

        before = until(f"{BEFORE} segments of {name}", some, JOB_S)
        assert self.manifest(name) is None, f"{name} is over already; it has to be longer"
        return before

    def ends_well(self, name: str, before: Snapshot, *, orderly: bool = False) -> str:
        """The job ends with every segment spoken, each file as its manifest says, and what was out before was not
        written again. ``orderly``: no segment was begun twice either."""
        manifest = until(f"the manifest of {name}", lambda: self.manifest(name), JOB_S)
        counts, segments = manifest["counts"], manifest["segments"]
        assert manifest["status"] == "done", f"{name} ended as {manifest['status']}: {counts}"
        assert counts["ok"] == counts["total"] == len(segments), f"{name}: {counts}"
        for segment in segments:
            content = (self.home / "outbox" / name / segment["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == segment["sha256"], f"{segment['file']} is not what was spoken"
        after = self.published(name)
        again = [file for file, was in before.items() if after[file] != was]
        assert not again, f"spoken twice: {again}"
        twice = [segment["index"] for segment in segments if segment["attempts"] != 1]
        assert not (orderly and twice), f"tried more than once: {twice}"
        return f"{counts['ok']}/{counts['total']}, {len(before)} were out before"

    # --- the checks ------------------------------------------------------------------------------------------

    def boots(self) -> str:
        state = self.run("systemctl", "is-system-running").stdout.strip()
        assert state == "running", f"{state}: {self.run('systemctl', '--failed', '--no-legend').stdout}"
        return self.said("systemctl", "--version").splitlines()[0]

    def installs(self) -> str:
        result = self.install("/src")
        assert "systemctl enable --now dubd" in result.stdout, "it does not say what is next"
        for user, groups in (("anna", "dubd"), ("bert", "dubd"), ("carl", "users")):
            self.said("useradd", "--create-home", "--groups", groups, user)
        self.configure(name='"draft"', workers="1")
        return self.said("/opt/dubd/bin/python", "--version")

    def pages(self) -> str:
        """Every page that the installed pages lead to is there."""
        folder = self.machine.root / PAGES[1:]
        pages = [*folder.glob("*.md"), *folder.glob("*/*.md")]
        links = {
            (page, link)
            for page in pages
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
            if ":" not in link
        }
        lost = [f"{page.relative_to(folder)}: {link}" for page, link in links if not (page.parent / link).exists()]
        assert len(links) > 20 and not lost, f"links that lead nowhere: {lost}"
        closed = self.run("find", PAGES, "-not", "-readable", user="carl").stdout
        assert not closed, f"not readable by everyone: {closed}"
        return f"{len(pages)} pages, {len(links)} links"

    def doctor(self) -> str:
        result = self.run("dubd", "doctor", "--config", CONFIG, "--json", user="dubd")
        assert result.returncode == 0, tail(result)
        told = [
            f"{row['check']}: {row['message']}" for row in json.loads(result.stdout)["findings"] if row["level"] != "ok"
        ]
        assert not told, "; ".join(told)
        return "nothing but ok"

    def starts(self) -> str:
        """systemctl comes back when the daemon is ready, and has its status line."""
        self.said("systemctl", "enable", "--now", "dubd")
        assert self.shows("ActiveState") == "active"
        assert '"ready"' in self.log(), "it has not said that it is ready"
        return until("a status line", lambda: self.shows("StatusText") or None, READY_S)

    def exposure(self) -> str:
        said = self.said("systemd-analyze", "security", "--no-pager", "dubd")
        found = re.search(r"exposure level for dubd\.service: ([\d.]+)", said)
        assert found and float(found[1]) <= MOST_EXPOSURE, said[-200:]
        return found[1]

    def verify(self) -> str:
        result = self.run("systemd-analyze", "verify", "dubd.service")
        assert (result.returncode, tail(result)) == (0, ""), tail(result)
        return "nothing to say"

    def copied(self) -> str:
        self.start()
        self.drop("copied", "anna", 4)
        return self.ends_well("copied", {})

    def submitted(self, umask: str) -> str:
        self.start()
        name = f"submitted_{umask}"
        path = self.write_job(name, "anna", 4)
        result = self.run("dubd", "submit", "--wait", f"/home/anna/{path.name}", user="anna", umask=umask)
        assert result.returncode == 0, f"exit status {result.returncode}: {tail(result)}"
        read = self.run("test", "-r", f"{HOME}/outbox/{name}/segment_0000.wav", user="bert")
        assert read.returncode == 0, "another of the group may not read the results"
        return self.ends_well(name, {})

    def private(self) -> str:
        """A job that the daemon may not read is rejected with its reason, or its owner is told that it waits."""
        self.start()
        self.drop("private", "bert", 2, umask="077")

        def told() -> str | None:
            for path in (self.home / "rejected").glob("private*.error.json"):
                return f"{path.name}: {' '.join(path.read_text('utf-8').split())[:160]}"
            for command in ("status", "jobs"):
                for line in self.run("dubd", command, user="bert").stdout.splitlines():
                    if "private" in line and re.search("permi|read|rejected", line):
                        return f"dubd {command}: {line.strip()}"
            return None

        try:
            return until("a word about a job of mode 0600 that another user has dropped", told, 30)
        finally:
            self.run("rm", "-f", f"{HOME}/inbox/private.json", f"{HOME}/inbox/bert.flac")

    def stranger(self) -> str:
        """Who is not in the group may not drop jobs, and is told so."""
        self.start()
        path = self.write_job("strange", "carl", 2)
        result = self.run("dubd", "submit", f"/home/carl/{path.name}", user="carl")
        said = tail(result)
        assert result.returncode != 0 and "Traceback" not in said, f"exit status {result.returncode}: {said}"
        assert "no daemon is running" not in said, f"the daemon runs, and it says otherwise: {said}"
        assert "group dubd" in said, f"it does not say what is missing: {said}"
        return f"exit status {result.returncode}: {said[:120]}"

    def crash(self) -> str:
        before = self.begin("crash", 120)
        pid = self.pid
        self.said("kill", "-KILL", str(pid))
        until("another daemon", lambda: self.pid if self.pid not in (0, pid) else None, READY_S)
        return self.ends_well("crash", before)

    def all_killed(self) -> str:
        """systemctl kill with SIGKILL: the daemon and its workers at once. With the old layout of control groups,
        systemd in a container may not hear that the last of them has gone, and waits TimeoutStopSec for that."""
        before = self.begin("all_killed", 120)
        pid = self.pid
        self.said("systemctl", "kill", "--signal=KILL", "dubd")
        until("another daemon", lambda: self.pid if self.pid not in (0, pid) else None, KILLED_S)
        return self.ends_well("all_killed", before)

    def all_terminated(self) -> str:
        """systemctl kill: SIGTERM to the daemon and its workers, which is an orderly end."""
        before = self.begin("all_terminated", 120)
        self.said("systemctl", "kill", "dubd")
        self._ended_well()
        self.start()
        return self.ends_well("all_terminated", before)

    def watchdog(self) -> str:
        """A daemon that stands still is ended and started again."""
        before = self.begin("watchdog", 120)
        pid, began = self.pid, time.monotonic()
        self.said("kill", "-STOP", str(pid))
        until("another daemon", lambda: self.pid if self.pid not in (0, pid) else None, WATCHDOG_S * 2.5)
        took = time.monotonic() - began
        return f"after {took:.0f} s; {self.ends_well('watchdog', before)}"

    def reload(self) -> str:
        """systemctl reload: another configuration is taken, a wrong one is not, and the daemon is the same."""
        self.start()
        pid = self.pid
        self.configure(workers="2")
        self.said("systemctl", "reload", "dubd")
        until("two workers", lambda: len(self.status()["workers"]) == 2 or None, READY_S)
        self.configure(workers='"many"')
        self.run("systemctl", "reload", "dubd")
        until("a word in the log", lambda: "the new configuration is wrong" in self.log() or None, READY_S)
        self.configure(workers="1")
        self.said("systemctl", "reload", "dubd")
        until("one worker", lambda: len(self.status()["workers"]) == 1 or None, READY_S)
        assert (self.pid, self.shows("ActiveState")) == (pid, "active")
        return "1 worker, 2, a mistake, 1"

    def stop(self) -> str:
        before = self.begin("stop", 120)
        began = time.monotonic()
        self.said("systemctl", "stop", "dubd")
        took = time.monotonic() - began
        self._ended_well()
        self.start()
        return f"in {took:.1f} s; {self.ends_well('stop', before, orderly=True)}"

    def long_drain(self) -> str:
        """service.drain_seconds holds, also where it is longer than the unit's TimeoutStopSec."""
        name = "long_drain"
        self.configure(drain_seconds="15.0", beat_timeout_s="300.0")
        drop_in = self.machine.root / "etc/systemd/system/dubd.service.d/short.conf"
        drop_in.parent.mkdir(parents=True)
        drop_in.write_text("[Service]\nTimeoutStopSec=3\n", "utf-8")
        try:
            self.said("systemctl", "daemon-reload")
            assert self.shows("TimeoutStopUSec") == "3s"
            self.said("systemctl", "restart", "dubd")
            before = self.begin(name, 120)
            (worker,) = [line.split()[0] for line in self.processes() if "workers/__main__.py" in line]
            self.said("kill", "-STOP", worker)
            self.said("systemctl", "stop", "dubd")
            self._ended_well()
        finally:
            shutil.rmtree(drop_in.parent)
            self.configure(drain_seconds="30.0", beat_timeout_s="30.0")
            self.said("systemctl", "daemon-reload")
            self.start()
        return self.ends_well(name, before)

    def _ended_well(self) -> None:
        until("its end", lambda: self.shows("ActiveState") == "inactive" or None, READY_S)
        shown = {name: self.shows(name) for name in ("Result", "ExecMainCode", "ExecMainStatus")}
        assert shown == {"Result": "success", "ExecMainCode": "1", "ExecMainStatus": "0"}, str(shown)
        left = self.processes()
        assert not left, f"left running: {left}"
        assert '"stopped"' in self.log(), "it has not said that it has stopped"

    def installed_again(self) -> str:
        """make install over a running service restarts it, orderly, keeps config.toml, and tells nothing new of it."""
        config = (self.machine.root / CONFIG[1:]).read_bytes()
        before, pid = self.begin("again", 400), self.pid
        result = self.install("/src")
        assert "Restarted" in result.stdout, f"it does not say that it has restarted the service: {tail(result)}"
        assert "does not have yet" not in result.stdout, f"it tells new keys where there are none: {tail(result)}"
        assert (self.machine.root / CONFIG[1:]).read_bytes() == config, "config.toml has changed"
        assert self.pid not in (0, pid), "the old daemon still runs"
        return self.ends_well("again", before, orderly=True)

    def clean_log(self) -> str:
        log = self.log()
        assert "Traceback" not in log, log[max(0, log.index("Traceback") - 300) :][:900]
        return f"{len(log.splitlines())} lines, no traceback"

    def uninstalls(self) -> str:
        """What it says is kept is kept, and nothing else of it is left."""
        self.start()
        outbox = sorted(path.name for path in (self.home / "outbox").iterdir())
        config = (self.machine.root / CONFIG[1:]).read_bytes()
        result = self.run("make", "-C", "/src", "uninstall")
        assert result.returncode == 0 and "Kept: /etc/dubd, /var/lib/dubd" in result.stdout, tail(result)
        assert not self.processes(), "it still runs"
        assert (self.machine.root / CONFIG[1:]).read_bytes() == config
        assert sorted(path.name for path in (self.home / "outbox").iterdir()) == outbox
        self.said("id", "dubd")
        assert self.shows("LoadState") == "not-found", "systemd still knows the unit"
        # Not followed: a link that leads nowhere is left over too.
        places = ("/etc", "/opt", "/usr", "/run", "/lib/systemd")
        found = self.said("find", *places, "-xdev", "-name", "*dubd*").split()
        left = [path for path in found if path not in ("/etc/dubd", "/opt/dubd-before")]
        assert not left, f"left: {left}"
        return f"{len(outbox)} results kept"

    def purge(self) -> None:
        """As if it had never been there."""
        self.said("rm", "-rf", "/etc/dubd", HOME, "/var/cache/dubd", "/var/cache/private/dubd")
        self.run("userdel", "dubd")
        self.run("groupdel", "dubd")

    def installs_old(self) -> str:
        self.purge()
        self.install("/src-before")
        for user in ("anna", "bert"):
            self.said("usermod", "--append", "--groups", "dubd", user)
        self.configure(name='"draft"', workers="1", drain_seconds="20.0")
        self.said("systemctl", "enable", "--now", "dubd")
        return self.said("dubd", "--version")

    def upgrades(self) -> str:
        """An older version with a job at work becomes this one: the job goes on, and the configuration is as it was."""
        config = (self.machine.root / CONFIG[1:]).read_bytes()
        before, pid = self.begin("upgrade", 500), self.pid
        result = self.install("/src")
        assert "Restarted" in result.stdout, tail(result)
        assert self.pid not in (0, pid), "the old daemon still runs"
        assert self.manifest("upgrade") is None, "the job was over before the new version came; it has to be longer"
        assert (self.machine.root / CONFIG[1:]).read_bytes() == config, "config.toml has changed"
        detail = self.ends_well("upgrade", before, orderly=True)
        keys = re.findall(r"^  ([a-z_]+\.[a-z_0-9]+)$", result.stdout, re.MULTILINE)
        return f"{detail}; new keys told: {', '.join(keys) or 'none'}"
