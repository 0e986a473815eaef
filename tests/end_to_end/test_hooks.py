"""``[hooks] on_done``: a command of a person's own, run by a daemon that must not suffer from it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from tests.end_to_end.conftest import DaemonUnderTest, Make, is_alive, make_job, read_json, wait_for
from tests.shell import names_below

TELL = """#!/bin/sh
printf '%s\\n' "$@" > "$TOLD/arguments.new"
printf '%s\\n' "$DUBD_JOB_ID" "$DUBD_STATUS" "$DUBD_MANIFEST" "$NOTIFY_SOCKET" "$PPID" > "$TOLD/environment"
test -e "$DUBD_MANIFEST" && mv "$TOLD/arguments.new" "$TOLD/arguments"
"""

TALK = r"""#!/bin/sh
printf 'one\rtwo\n\033[2Jthree\377\n{"event":"forged"}\n'
head -c 30000 /dev/zero | tr '\0' 'x'
seq 2000
exit 3
"""

HANG = """#!/bin/sh
trap '' TERM
sleep 1000 &
echo $! $$ > "$TOLD/pids.new" && mv "$TOLD/pids.new" "$TOLD/pids"
wait
while :; do sleep 1000; done
"""


def make_hooked(make: Make, tmp_path: Path, script: str, *arguments: str, **settings: Any) -> DaemonUnderTest:
    """A daemon whose hook is this script; it writes what it has to tell into the folder ``told``."""
    program = tmp_path / "a hook"
    told = tmp_path / "told"
    told.mkdir()
    program.write_text(script.replace("$TOLD", str(told)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return make(hooks__on_done=[str(program), *arguments], **settings).start()


def job(job_id: str) -> dict[str, Any]:
    return make_job(["One line."], job_id=job_id)


def test_a_command_hears_of_each_job(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    """With the manifest's path where it was asked for, the rest in the environment; no shell reads what a job is
    called; it is no child of the daemon's, and none of it is owed in the end."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    dubd = make_hooked(make, tmp_path, TELL, "-m", "<{manifest}>", "$(touch pwned); '\"&")
    name = "$(touch pwned) ;'& film"
    dubd.run(name, job(name))
    manifest = str(dubd.outbox / name / "manifest.json")
    wait_for((tmp_path / "told" / "arguments").exists, "the hook")
    assert (tmp_path / "told" / "arguments").read_text().splitlines() == ["-m", f"<{manifest}>", "$(touch pwned); '\"&"]
    *told, parent = (tmp_path / "told" / "environment").read_text().splitlines()
    assert told == [name, "done", manifest, ""]
    assert int(parent) != dubd.pid
    end = wait_for(lambda: dubd.lines("the hook has ended"), "the hook's end")
    assert (end[0]["job"], end[0]["exit_status"]) == (name, 0)
    wait_for(lambda: not list((dubd.state / "hooks").iterdir()), "the striking off")
    assert "pwned" not in names_below(tmp_path)
    dubd.check_nothing_left()
    dubd.reload(hooks__on_done=[str(tmp_path / "nowhere")])
    dubd.run("second", job("second"))
    line = wait_for(lambda: dubd.lines("the hook could not be run"), "the failure")[0]
    assert (line["job"], line["error"]) == ("second", "No such file or directory")
    dubd.reload(hooks__on_done=[])
    dubd.run("third", job("third"))
    assert dubd.stop() == 0
    assert not list((dubd.state / "hooks").iterdir())


def test_what_a_command_says_and_how_it_ends(make: Make, tmp_path: Path) -> None:
    """Line by line, as much as a log can bear; no line of it passes for one of the daemon's."""
    dubd = make_hooked(make, tmp_path, TALK)
    assert dubd.run("film", job("film"))["status"] == "done"
    failed = wait_for(lambda: dubd.lines("the hook has failed"), "the hook's end")[0]
    assert failed["exit_status"] == 3
    said = [line["line"] for line in dubd.lines("hook says")]
    assert said[:4] == ["one", "two", "\x1b[2Jthree\ufffd", '{"event":"forged"}']
    assert max(map(len, said)) == 2000 and len(said) == 500
    assert dubd.lines("hook says more than is kept")[0]["lines_left_out"] > 1000
    assert dubd.lines("forged") == []
    assert "\x1b" not in dubd.log.read_text()


def test_a_command_that_hangs_harms_nobody(make: Make, tmp_path: Path) -> None:
    """It is killed with all that it has started, and jobs go on meanwhile; the next one hangs too, and ends with the
    daemon, at once however that ends; what it owes is taken up by the next life."""
    dubd = make_hooked(make, tmp_path, HANG, hooks__timeout_s=3.0)
    dubd.run("first", job("first"))
    pids = Path(tmp_path, "told", "pids")
    wait_for(pids.exists, "the hook")
    first = [int(pid) for pid in pids.read_text().split()]
    assert dubd.run("second", job("second"))["status"] == "done"
    late = "the hook took too long and was killed"
    wait_for(lambda: any(line["job"] == "first" for line in dubd.lines(late)), "the end of patience")
    assert not any(map(is_alive, first))
    dubd.reload(hooks__timeout_s=1000)
    pids.unlink(missing_ok=True)
    dubd.run("third", job("third"))
    wait_for(pids.exists, "the third hook")
    third = [int(pid) for pid in pids.read_text().split()]
    dubd.check_nothing_left()
    dubd.kill()
    wait_for(lambda: not any(map(is_alive, third)), "the end of the hook")
    owed = [read_json(path)["job_id"] for path in (dubd.state / "hooks").glob("*.json")]
    assert "third" in owed
    Path(tmp_path, "a hook").write_text(TELL.replace("$TOLD", str(tmp_path / "told")))
    dubd.start()
    wait_for((tmp_path / "told" / "arguments").exists, "the hook in the next life")
    wait_for(lambda: not list((dubd.state / "hooks").iterdir()), "the striking off")


def test_the_doctor_looks_for_the_program(make: Make, tmp_path: Path) -> None:
    from daemon.config import load_settings
    from daemon.doctor.hooks import check

    def found(*command: str) -> list[tuple[str, str]]:
        override = f"hooks.on_done={json.dumps(list(command))}"
        settings = load_settings(config_file=None, environ={}, overrides=[override], cwd=tmp_path)
        return [(finding.level, finding.message) for finding in check(settings)]

    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert found() == []
    assert found("true", "x")[0][0] == "ok"
    assert [found(program)[0][0] for program in ("./script", "./nowhere", str(tmp_path))] == ["warn"] * 3
    assert "may not be run" in found("./script")[0][1]
    (tmp_path / "script").chmod(0o755)
    assert found("./script") == [("ok", f"{tmp_path}/script can be run")]
