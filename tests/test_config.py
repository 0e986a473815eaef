"""Settings: where they come from, which wins, and what is said about mistakes."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import tomli

from daemon.config import TABLES, ConfigError, Problem, Settings, load_settings
from daemon.core.job import Limits

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "config"


def load(
    cwd: Path,
    *overrides: str,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    return load_settings(config_file=file, environ=environ or {}, overrides=overrides, cwd=cwd)


def problems(
    cwd: Path, *overrides: str, file: Path | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        load(cwd, *overrides, file=file, environ=environ)
    found = {problem.where: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one problem a place"
    return found


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- the documented file -----------------------------------------------------------------------------------


def switched_on(text: str) -> str:
    """config.toml with every key taken out of its comment."""
    return re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE)


def test_config_toml_has_every_key_with_its_default(tmp_path: Path) -> None:
    """config.toml and Settings name the same keys, and switching every one on changes nothing."""
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    document = tomli.loads(switched_on(text))
    assert {table: set(content) for table, content in document.items()} == {
        name: set(model.model_fields) for name, model in TABLES.items()
    }
    written_out = load(tmp_path, file=write(tmp_path, switched_on(text)))
    nothing_said = load(tmp_path, file=Path(os.devnull))
    assert dataclasses.replace(written_out, source=None) == dataclasses.replace(nothing_said, source=None)


def test_config_toml_as_it_stands_sets_nothing() -> None:
    """A person sees at a glance what was changed: the file that is handed out changes nothing."""
    document = tomli.loads((ROOT / "config.toml").read_text(encoding="utf-8"))
    assert document == {name: {} for name in TABLES}


def test_every_key_of_config_toml_is_explained() -> None:
    """Each key, or the group of keys that it stands in, has a comment above it."""
    above = ""
    for line in (ROOT / "config.toml").read_text(encoding="utf-8").splitlines():
        if re.match(r"#\w+ = ", line):
            assert above.startswith("#"), f"nothing explains {line}"
        above = line


def test_every_field_has_a_description() -> None:
    """Each key says what it is for."""
    for name, model in TABLES.items():
        for key, field in model.model_fields.items():
            assert field.description, f"{name}.{key}"


def test_limits_are_the_core_s(tmp_path: Path) -> None:
    """The table limits has the keys of the core's Limits, and its defaults."""
    assert set(TABLES["limits"].model_fields) == {field.name for field in dataclasses.fields(Limits)}
    assert load(tmp_path).limits == Limits()
    assert load(tmp_path, "limits.segments=7").limits == Limits(segments=7)


# --- where the file is -------------------------------------------------------------------------------------


def test_file_is_the_named_one_else_the_variable_s_else_the_folder_s(tmp_path: Path) -> None:
    """--config beats $DUBD_CONFIG, which beats ./config.toml."""
    named, of_variable = tmp_path / "named.toml", tmp_path / "variable.toml"
    named.write_text("pool.workers = 1", encoding="utf-8")
    of_variable.write_text("pool.workers = 2", encoding="utf-8")
    here = write(tmp_path, "pool.workers = 3")
    environ = {"DUBD_CONFIG": str(of_variable)}
    for settings, source, workers in (
        (load(tmp_path, file=named, environ=environ), named, 1),
        (load(tmp_path, environ=environ), of_variable, 2),
        (load(tmp_path, environ={"DUBD_CONFIG": "variable.toml"}), of_variable, 2),
        (load(tmp_path, environ={"DUBD_CONFIG": ""}), here, 3),
    ):
        assert (settings.source, settings.pool.workers) == (source, workers)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    """A file that was asked for by name and is missing is a mistake, not a reason to take defaults."""
    assert "no such file" in problems(tmp_path, file=tmp_path / "none.toml")[str(tmp_path / "none.toml")].message
    assert str(tmp_path / "none.toml") in problems(tmp_path, environ={"DUBD_CONFIG": "none.toml"})


@pytest.mark.parametrize(
    "content",
    [b"pool = [", b"\xff\xfe", b"[pool]\nworkers = 1\nworkers = 2\n", b"#" * 2_000_000, b"a." * 90_000 + b"a=1"],
)
def test_a_file_that_is_not_toml_is_one_problem(tmp_path: Path, content: bytes) -> None:
    """Whatever the file holds, it ends in a problem that names it, beside those from elsewhere."""
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    found = problems(tmp_path, "pool.workers=-1", file=path)
    assert "pool.workers" in found
    assert len(found) == 2


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    """Naming a folder says that it can't be read."""
    assert "can't be read" in problems(tmp_path, file=tmp_path)[str(tmp_path)].message


# --- what wins ---------------------------------------------------------------------------------------------


def test_set_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    """The design's order, for one key from all three."""
    path = write(tmp_path, "[pool]\nmodel_memory_gb = 5.0\nmode = 'single'\n[worker]\npython = '/file/python'")
    environ = {
        "FISH_MODEL_MEMORY_GB": "6.0",
        "FISH_MULTIPROCESS_MODE": "true",
        "FISH_SPEECH_PYTHON": "/env/python",
    }
    assert load(tmp_path, file=path).pool.model_memory_gb == 5.0
    from_environment = load(tmp_path, file=path, environ=environ)
    assert (from_environment.pool.model_memory_gb, from_environment.pool.mode) == (6.0, "multi")
    assert from_environment.worker.python == "/env/python"
    assert load(tmp_path, "pool.model_memory_gb=7", file=path, environ=environ).pool.model_memory_gb == 7.0
    assert load(tmp_path, "pool.workers=1", "pool.workers=2").pool.workers == 2


@pytest.mark.parametrize(
    ("multiprocess", "parallel", "mode"),
    [
        ("true", "", "multi"),
        ("FALSE", "", "single"),
        ("", "true", "multi"),
        ("", "false", "single"),
        ("auto", "", "auto"),
        ("multi", "true", "multi"),
        ("", "", "auto"),
    ],
)
def test_modes_of_the_older_variables(tmp_path: Path, multiprocess: str, parallel: str, mode: str) -> None:
    """FISH_MULTIPROCESS_MODE and FISH_PARALLEL_MODE are understood; empty is unset."""
    settings = load(tmp_path, environ={"FISH_MULTIPROCESS_MODE": multiprocess, "FISH_PARALLEL_MODE": parallel})
    assert (settings.pool.mode, settings.warnings) == (mode, ())


def test_contradicting_modes_are_told(tmp_path: Path) -> None:
    """Where both variables are set and contradict, the one that says how many processes is obeyed, and it is said."""
    environ = {"FISH_MULTIPROCESS_MODE": "true", "FISH_PARALLEL_MODE": "false"}
    settings = load(tmp_path, environ=environ)
    assert settings.pool.mode == "multi"
    assert "contradict" in settings.warnings[0]


def test_speech_folder_comes_first_on_the_workers_path(tmp_path: Path) -> None:
    """FISH_SPEECH_DIR goes before what worker.path has, wherever that came from."""
    environ = {"FISH_SPEECH_DIR": "/opt/fish"}
    assert load(tmp_path, environ=environ).worker.path == (Path("/opt/fish"),)
    assert load(tmp_path, 'worker.path=["/a"]', environ=environ).worker.path == (Path("/opt/fish"), Path("/a"))


# --- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "table", "key", "value"),
    [
        ("engine.name=draft", "engine", "name", "draft"),
        ('engine.name="draft"', "engine", "name", "draft"),
        ("engine.name=my_engines.loud:Loud", "engine", "name", "my_engines.loud:Loud"),
        ("pool.workers=2", "pool", "workers", 2),
        ("pool.model_memory_gb=6", "pool", "model_memory_gb", 6.0),
        ("pool.replan_s=0.5", "pool", "replan_s", 0.5),
        ("engine.reproducible=true", "engine", "reproducible", True),
        ('pool.per_gpu={"0" = 2, 1 = 0}', "pool", "per_gpu", {0: 2, 1: 0}),
        ("engine.options={a = 1}", "engine", "options", {"a": 1}),
        ("worker.python=python3.12", "worker", "python", "python3.12"),
        ("worker.python=", "worker", "python", ""),
        ("engine.checkpoint=", "engine", "checkpoint", ""),
        (" log.level = debug", "log", "level", "debug"),
    ],
)
def test_values_of_set(tmp_path: Path, override: str, table: str, key: str, value: object) -> None:
    """A value is TOML, or else a bare string."""
    assert getattr(getattr(load(tmp_path, override), table), key) == value


def test_set_reaches_into_tables(tmp_path: Path) -> None:
    """One entry of a table can be set without the others being lost."""
    path = write(tmp_path, '[pool]\nper_gpu = {"0" = 1, "1" = 1}')
    settings = load(tmp_path, "pool.per_gpu.1=3", "engine.options.voice=en", file=path)
    assert settings.pool.per_gpu == {0: 1, 1: 3}
    assert settings.engine.options == {"voice": "en"}


def test_paths_start_from_whoever_wrote_them(tmp_path: Path) -> None:
    """Relative paths in the file start from its folder, those of --set from the current directory; all are absolute."""
    folder, cwd = tmp_path / "etc", tmp_path / "cwd"
    folder.mkdir()
    path = write(
        folder, "[paths]\nroot = './spool'\nallowed_roots = ['voices', '/abs']\n[worker]\npython = 'env/python'"
    )
    settings = load(cwd, "paths.outbox=out", file=path)
    assert settings.paths.root == folder / "spool"
    assert settings.paths.inbox == folder / "spool" / "inbox"
    assert settings.paths.outbox == cwd / "out"
    assert settings.paths.status == folder / "spool" / "status.json"
    assert settings.paths.allowed_roots == (folder / "voices", Path("/abs"), folder / "spool" / "inbox")
    assert settings.worker.python == str(folder / "env" / "python")


def test_root_defaults_to_var_here(tmp_path: Path) -> None:
    """Without a word about paths everything is under ./var, with the inbox as the one root that jobs may name."""
    paths = load(tmp_path).paths
    assert paths.root == tmp_path / "var"
    assert {paths.inbox, paths.outbox, paths.rejected, paths.state} == {
        tmp_path / "var" / name for name in ("inbox", "outbox", "rejected", "state")
    }
    assert paths.allowed_roots == (paths.inbox,)


def test_mapped_folders_may_be_named_by_jobs(tmp_path: Path) -> None:
    """Whoever says where another machine's folder is here wants jobs to name files in it."""
    path = write(tmp_path, "[paths.mapped]\n'C:\\clips' = '/mnt/clips'\n'D:' = 'd'")
    paths = load(tmp_path, file=path).paths
    assert paths.mapped == {"C:\\clips": Path("/mnt/clips"), "D:\\": tmp_path / "d"}
    assert paths.allowed_roots == (paths.inbox, Path("/mnt/clips"), tmp_path / "d")


def test_home_is_expanded(tmp_path: Path) -> None:
    """~ is the home folder, wherever a path may stand."""
    environ = {"HOME": "/home/mara", "FISH_SPEECH_DIR": "~/fish"}
    settings = load(tmp_path, "paths.root=~/dubd", "engine.checkpoint=~/s1-mini", environ=environ)
    assert settings.paths.root == Path("/home/mara/dubd")
    assert settings.engine.checkpoint == "/home/mara/s1-mini"
    assert settings.worker.path == (Path("/home/mara/fish"),)


def test_a_number_is_a_fine_folder_name(tmp_path: Path) -> None:
    """For a key that holds text, --set takes what is written, not what it would be in TOML."""
    assert load(tmp_path, "paths.root=2024").paths.root == tmp_path / "2024"


def test_settings_are_frozen(tmp_path: Path) -> None:
    """Nobody changes a setting in passing."""
    settings = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        settings.pool.workers = 3
    with pytest.raises(AttributeError):
        settings.pool = settings.pool  # type: ignore[misc]


# --- mistakes ----------------------------------------------------------------------------------------------


def test_every_mistake_at_once(tmp_path: Path) -> None:
    """A file full of mistakes is told whole, together with those of the environment and the command line."""
    found = problems(
        tmp_path, "pool.lookahead=many", "loose", file=DATA / "mistakes.toml", environ={"FISH_MODEL_MEMORY_GB": "much"}
    )
    assert set(found) == {
        "colour",
        "engin",
        "service",
        "paths.root",
        "paths.allowed_roots",
        "inbox.settle_seconds",
        "inbox.watch",
        "pool.worker",
        "pool.threads",
        "pool.mode",
        "pool.workers",
        "pool.per_gpu",
        "pool.replan_s",
        "pool.lookahead",
        "engine.name",
        "engine.options",
        "limits.segments",
        "log.level",
        "--set loose",
        "FISH_MODEL_MEMORY_GB",
    }
    for problem in found.values():
        assert problem.message
        assert problem.mend.endswith((".", "?")), problem
        assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("override", "where", "nearest"),
    [
        ("pol.workers=1", "pol", "pool"),
        ("pool.worker=1", "pool.worker", "pool.workers"),
        ("pool.threads=1", "pool.threads", "worker.threads"),
        ("inbox.settle=1", "inbox.settle", "inbox.settle_seconds"),
        ("workers.python=x", "workers", "worker"),
        ("engine.name=fishh", "engine.name", "fish"),
    ],
)
def test_the_nearest_known_one_is_named(tmp_path: Path, override: str, where: str, nearest: str) -> None:
    """A slip of the pen is answered with what was probably meant."""
    assert re.search(rf"\b{re.escape(nearest)}\b", str(problems(tmp_path, override)[where]).split(where, 1)[1])


@pytest.mark.parametrize(
    "override",
    [
        "pool.workers=true",
        "pool.workers=2.0",
        "pool.workers=-1",
        'pool.workers="2"',
        "pool.model_memory_gb=true",
        "pool.model_memory_gb=0",
        "pool.model_memory_gb=nan",
        "pool.model_memory_gb=inf",
        "pool.per_gpu=[2]",
        'pool.per_gpu={"-1" = 2}',
        "inbox.watch=1",
        "inbox.watch=yes",
        "paths.root=",
        'paths.allowed_roots="/a"',
        "paths.allowed_roots=[1]",
        'paths.mapped={clips = "/clips"}',
        "paths.mapped={'C:' = 1}",
        "paths.mapped=/clips",
        "engine.precision=fp8",
        "engine.name=os.path",
        "service.status_seconds=0",
    ],
)
def test_types_and_ranges_are_strict(tmp_path: Path, override: str) -> None:
    """What does not fit is refused with what would: true is no number, text is no number, nothing is out of range."""
    where = override.partition("=")[0]
    problem = problems(tmp_path, override)[where]
    assert problem.mend.startswith("Give ")
    assert problem.origin == f"--set {override}"


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["paths.outbox=var/inbox"], "paths.outbox"),
        (["paths.outbox=var/x/../inbox"], "paths.outbox"),
        (["paths.state=var/inbox/state"], "paths.state"),
        (["paths.status=var/inbox/status.json"], "paths.status"),
        (["paths.status=var/outbox"], "paths.status"),
        (["pool.backoff_min_s=61"], "pool.backoff_min_s"),
        (["worker.beat_seconds=31"], "worker.beat_seconds"),
        (["limits.reference_seconds_min=91"], "limits.reference_seconds_min"),
        (["limits.text_characters=40000"], "limits.text_characters"),
    ],
)
def test_keys_that_contradict_each_other(tmp_path: Path, overrides: Sequence[str], where: str) -> None:
    """Folders that would mix, a least over its most, texts too long for a message: found before anything starts."""
    assert where in problems(tmp_path, *overrides)
