"""The service's files, judged by systemd's own tools on an installed copy."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tomli

from daemon.config import load_settings

ROOT = Path(__file__).parent.parent
UNIT_FOLDERS = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
MOST_EXPOSURE = 2.0


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on this machine")
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=50
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a machine on which `make install-files` has run, with a command in the place of dubd's: the
    environment itself takes a package index."""
    tool("make")
    root = tmp_path_factory.mktemp("root")
    result = run("make", "install-files", f"DESTDIR={root}")
    assert result.returncode == 0, result.stderr
    command = root / "opt" / "dubd" / "bin" / "dubd"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n", encoding="ascii")
    command.chmod(0o755)
    return root


def test_unit_verifies_on_an_installed_copy(installed: Path) -> None:
    """systemd-analyze verify has nothing to say about the unit, with the system's own units around it."""
    analyze = tool("systemd-analyze")
    units = next((folder for folder in UNIT_FOLDERS if (folder / "sysinit.target").exists()), None)
    if units is None:
        pytest.skip("systemd's own units are not on this machine")
    shutil.copytree(units, installed / "usr" / "lib" / "systemd" / "system", symlinks=True)
    (installed / "bin").mkdir()
    shutil.copy("/bin/kill", installed / "bin" / "kill")
    unit = installed / "etc" / "systemd" / "system" / "dubd.service"
    for more in ((), ("RAY=1",)):
        assert run("make", "install-files", f"DESTDIR={installed}", *more).returncode == 0
        assert (unit.parent / "dubd.service.d" / "cluster.conf").exists() == bool(more)
        result = run(analyze, "verify", "--man=no", f"--root={installed}", unit)
        if "unrecognized option" in result.stderr:
            pytest.skip("this systemd-analyze can't verify under another root")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_unit_is_hardly_exposed() -> None:
    """systemd-analyze security puts the unit's exposure at 2.0 or less."""
    analyze = tool("systemd-analyze")
    result = run(analyze, "security", "--offline=true", "--no-pager", ROOT / "systemd" / "dubd.service")
    if "unrecognized option" in result.stderr:
        pytest.skip("this systemd-analyze can't judge a file")
    exposure = re.search(r"exposure level for dubd\.service: ([\d.]+)", result.stdout)
    assert exposure, result.stdout + result.stderr
    assert float(exposure.group(1)) <= MOST_EXPOSURE


def test_user_and_folders_are_made(installed: Path) -> None:
    """sysusers makes the user and its group, tmpfiles the folders: closed to strangers, the inbox open to the group."""
    sysusers, tmpfiles = tool("systemd-sysusers"), tool("systemd-tmpfiles")
    (installed / "etc" / "passwd").touch()
    (installed / "etc" / "group").touch()
    made = run(sysusers, f"--root={installed}", "dubd.conf")
    assert made.returncode == 0, made.stderr
    (user,) = [line for line in (installed / "etc" / "passwd").read_text().splitlines() if line.startswith("dubd:")]
    assert user.endswith(":/var/lib/dubd:/usr/sbin/nologin")
    if run("id", "-u").stdout.strip() != "0":
        pytest.skip("only root may give folders away")
    made = run(tmpfiles, f"--root={installed}", "--create", "dubd.conf")
    assert made.returncode == 0, made.stderr
    home = installed / "var" / "lib" / "dubd"
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in [home, *home.iterdir()]}
    assert modes == {"dubd": "0o750", "inbox": "0o3770", "outbox": "0o750", "rejected": "0o750", "state": "0o700"}
    assert {path.stat().st_uid for path in [home, *home.iterdir()]} == {int(user.split(":")[2])}


def test_installed_configuration_is_the_service_s(installed: Path, tmp_path: Path) -> None:
    """The installed config.toml is read by the daemon, and differs from the documented one in its root alone."""
    path = installed / "etc" / "dubd" / "config.toml"
    assert tomli.loads(path.read_text(encoding="utf-8"))["paths"] == {"root": "/var/lib/dubd"}
    settings = load_settings(config_file=path, environ={}, overrides=(), cwd=tmp_path)
    assert settings.paths.inbox == Path("/var/lib/dubd/inbox")
    ours = (ROOT / "config.toml").read_text(encoding="utf-8").splitlines()
    theirs = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in theirs if line not in ours] == ['root = "/var/lib/dubd"']


def test_installing_again_keeps_the_configuration(tmp_path: Path) -> None:
    """A second install leaves config.toml as the person has made it; uninstalling leaves it too, and nothing else."""
    tool("make")
    config = tmp_path / "etc" / "dubd" / "config.toml"
    assert run("make", "install-files", f"DESTDIR={tmp_path}").returncode == 0
    config.write_text("# mine\n", encoding="utf-8")
    assert run("make", "install-files", f"DESTDIR={tmp_path}", "RAY=1").returncode == 0
    assert config.read_text(encoding="utf-8") == "# mine\n"
    assert run("make", "uninstall", f"DESTDIR={tmp_path}").returncode == 0
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [config]


def test_new_keys_are_told(tmp_path: Path) -> None:
    """An upgrade says which keys came since the version before, whatever the person's own file has and lacks; without
    that version's file, those that the person's own lacks; and nothing where there are none."""
    tool("make")
    config = tmp_path / "etc" / "dubd" / "config.toml"
    shipped = tmp_path / "opt" / "dubd" / "share" / "doc" / "dubd" / "config.toml"
    first = run("make", "install-files", f"DESTDIR={tmp_path}")
    assert "does not have yet" not in first.stdout

    def told() -> list[str]:
        said = run("make", "install-files", f"DESTDIR={tmp_path}").stdout
        return re.findall(r"^  (\S+)$", said, re.MULTILINE)

    config.write_text('[pool]\nworkers = 3\n[engine]\nname = "draft"\n', encoding="utf-8")
    assert told() == []
    text = shipped.read_text(encoding="utf-8")
    older = text.replace("#on_done = []\n", "").replace("#workers = 0\n", "")
    # A key of this name stands in two tables.
    older = older[::-1].replace("#timeout_s = 60.0\n"[::-1], "", 1)[::-1]
    shipped.write_text(older, encoding="utf-8")
    assert told() == ["pool.workers", "hooks.on_done", "hooks.timeout_s"]
    assert shipped.read_text(encoding="utf-8") == text
    shipped.unlink()
    every = told()
    assert {"paths.root", "pool.mode", "hooks.on_done"} <= set(every)
    assert not {"pool.workers", "engine.name"} & set(every)


def test_installed_pages_lead_somewhere(installed: Path) -> None:
    """Every page, picture and example that an installed page leads to is installed beside it."""
    folder = installed / "opt" / "dubd" / "share" / "doc" / "dubd"
    links = [
        (page, link)
        for page in folder.rglob("*.md")
        for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 20
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_prefix_is_followed(tmp_path: Path) -> None:
    """Another PREFIX is what the unit starts; one that is not dubd's own folder is refused before it is removed."""
    tool("make")
    assert run("make", "install-files", f"DESTDIR={tmp_path}", "PREFIX=/srv/dubd").returncode == 0
    unit = (tmp_path / "etc" / "systemd" / "system" / "dubd.service").read_text(encoding="utf-8")
    assert "ExecStart=/srv/dubd/bin/dubd run" in unit
    assert "/opt/dubd" not in unit
    refused = run("make", "uninstall", f"DESTDIR={tmp_path}", "PREFIX=/srv")
    assert refused.returncode != 0
    assert (tmp_path / "srv" / "dubd").is_dir()


def unit_settings() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(ROOT / "systemd" / "dubd.service", encoding="utf-8")
    return parser


def test_stopping_leaves_time_to_drain(tmp_path: Path) -> None:
    """systemd waits longer than the daemon's own deadlines, and asks the daemon alone to stop."""
    service = unit_settings()["Service"]
    settings = load_settings(config_file=Path("/dev/null"), environ={}, overrides=(), cwd=tmp_path)
    assert float(service["TimeoutStopSec"]) > settings.service.drain_seconds + settings.worker.stop_grace_s + 10
    assert (service["KillMode"], service["Type"], service["OOMPolicy"]) == ("mixed", "notify", "continue")


@pytest.mark.parametrize("directive", ["PrivateDevices", "MemoryDenyWriteExecute", "ProcSubset", "PrivateUsers"])
def test_what_is_left_open_says_why(directive: str) -> None:
    """Each protection that is switched off has its reason right above it."""
    lines = (ROOT / "systemd" / "dubd.service").read_text(encoding="utf-8").splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith(f"{directive}=")]
    assert lines[at - 1].startswith("# ")
