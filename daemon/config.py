"""The settings: read from a file, the environment and ``--set``, and checked whole before anything starts.

What is said last wins: the defaults, then the file, then the environment, then ``--set``. Every mistake is
found in one go, so that a person mends a configuration once and not key by key.

A relative path in the file is relative to the file's own folder, so that it means the same from wherever a command
is given; on the command line, in the environment, and in the default ``./var`` it is relative to the current
directory, as in any shell.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from daemon.core.job import Limits
from daemon.mapped_paths import checked_folder
from workers.protocol import MAX_FRAME_BYTES

SYSTEM_CONFIG = Path("/etc/dubd/config.toml")

ENGINES = ("fish", "draft", "silence")

_LIMITS = Limits()

_ESCAPED_CHARACTER_BYTES = 12
"""What one character of text may cost in a frame of the pipe: a surrogate pair, each half escaped."""

_FRAME_REST_BYTES = 65536
"""Kept free in a frame for everything that is not text: paths, names, numbers."""

_MAX_CONFIG_BYTES = 1 << 20


# --- the tables --------------------------------------------------------------------------------------------


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_gpu_counts(value: object) -> object:
    """TOML's keys are text; GPU indices are numbers."""
    if not isinstance(value, dict):
        return value
    return {int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key: value[key] for key in value}


def _as_address(value: object) -> object:
    if isinstance(value, str) and value != "auto" and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", value):
        raise ValueError("is no address of a cluster's head")
    return value


def _as_engine_name(value: object) -> object:
    if isinstance(value, str) and value not in ENGINES and not re.fullmatch(r"[\w.]+:\w+", value):
        nearest = difflib.get_close_matches(value.lower(), ENGINES, n=1)
        raise ValueError("is no engine" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return value


def _as_mapped_folders(value: object) -> object:
    return {checked_folder(key): value[key] for key in value} if isinstance(value, dict) else value


Folders = Annotated[tuple[Path, ...], BeforeValidator(_as_tuple)]
GpuIndex = Annotated[int, Field(ge=0)]
WorkerCount = Annotated[int, Field(ge=0, le=64)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
_MAPPED_FORM = "a table of folder there to folder here, such as {'C:\\clips' = \"/mnt/c/clips\"}"
_PER_GPU_FORM = 'a table of GPU index to number of workers, such as {"0" = 2, "1" = 0}'


class Table(BaseModel):
    """One table of config.toml. Strict: ``true`` is no number and ``"2"`` neither; an integer is a fine float."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Paths(Table):
    """Where things are; all absolute. What is not given lies under ``root``."""

    root: Path = Field(Path("var"), description="The folder under which the others are, unless they are given.")
    inbox: Path = Field(Path("var/inbox"), description="Job files are dropped here. May be a network share.")
    outbox: Path = Field(Path("var/outbox"), description="WAVs and manifests come out here. May be a network share.")
    rejected: Path = Field(Path("var/rejected"), description="What could not be accepted, with the reasons.")
    state: Path = Field(Path("var/state"), description="Private to the daemon, and the authority: on a local disk.")
    status: Path = Field(Path("var/status.json"), description="The file that shows the whole daemon at a glance.")
    allowed_roots: Folders = Field(
        (),
        description="Folders from which jobs may name absolute paths. The inbox and mapped ones are always among them.",
    )
    output_roots: Folders = Field(
        (),
        description="Folders in which a job may have its files written (output_file); none: they stay in the outbox.",
    )
    mapped: Annotated[dict[str, Path], BeforeValidator(_as_mapped_folders)] = Field(
        default_factory=dict,
        description="Folders as another machine names them, and where they are here.",
        json_schema_extra={"form": _MAPPED_FORM},
    )
    shared: bool = Field(
        False, description="Every node of the cluster sees paths.state under this very path; files then go by path."
    )


class Inbox(Table):
    """How job files are taken."""

    settle_seconds: float = Field(2.0, ge=0, le=3600, description="A file is taken once unchanged for so long.")
    grace_seconds: float = Field(
        10.0, ge=0, le=86400, description="So much longer for a settled file that does not parse, before rejection."
    )
    scan_seconds: float = Field(5.0, ge=0.05, le=3600, description="How often the inbox is listed.")
    watch: bool = Field(True, description="Also wake up on file system events; the scan stays the truth.")


class LimitsTable(Table):
    """The limits on a job; ``Settings.limits`` has them as ``daemon.core.job.Limits``."""

    job_bytes: int = Field(_LIMITS.job_bytes, ge=1024, le=1 << 30, description="Largest job file, in bytes.")
    json_depth: int = Field(_LIMITS.json_depth, ge=8, le=200, description="Deepest nesting of a job file.")
    segments: int = Field(_LIMITS.segments, ge=1, le=1_000_000, description="Most segments in a job.")
    text_characters: int = Field(_LIMITS.text_characters, ge=1, le=40_000, description="Longest text, in characters.")
    references_per_speaker: int = Field(
        _LIMITS.references_per_speaker, ge=1, le=64, description="Most references of a speaker."
    )
    reference_seconds_min: float = Field(
        _LIMITS.reference_seconds_min, ge=0, le=3600, description="Shortest reference recording, in seconds."
    )
    reference_seconds_max: float = Field(
        _LIMITS.reference_seconds_max, gt=0, le=3600, description="Longest reference recording, in seconds."
    )
    reference_bytes: int = Field(
        _LIMITS.reference_bytes, ge=1024, le=1 << 34, description="Largest reference file, in bytes."
    )
    job_reference_bytes: int = Field(
        _LIMITS.job_reference_bytes, ge=1024, le=1 << 50, description="Most of all references of a job, in bytes."
    )


class Pool(Table):
    """The worker processes, and what happens when one breaks."""

    backend: Literal["local", "ray"] = Field(
        "local", description="local: on this machine; ray: on the nodes of a Ray cluster."
    )
    mode: Literal["auto", "multi", "single"] = Field(
        "auto",
        description="multi: as many workers as fit each GPU; single: one worker; auto: as multi, or fewer workers "
        "with more slots where that is faster.",
    )
    workers: int = Field(0, ge=0, le=256, description="Number of workers; 0: as planned from the GPUs.")
    per_gpu: Annotated[dict[GpuIndex, WorkerCount], BeforeValidator(_as_gpu_counts)] = Field(
        default_factory=dict,
        description='Workers on each GPU by index, such as {"0" = 2}; others as planned.',
        json_schema_extra={"form": _PER_GPU_FORM},
    )
    model_memory_gb: float = Field(8.0, gt=0, le=4096, description="GPU memory that one worker may use, in GB.")
    lookahead: int = Field(2, ge=0, le=1024, description="Segments kept waiting at a worker beyond its slots.")
    tries: int = Field(3, ge=1, le=100, description="Deaths while alone that a segment may cost before it fails.")
    idle_release_min: float = Field(
        0.0, ge=0, le=525_600, description="Stop the workers of a pool idle for so many minutes; 0: never."
    )
    replan_s: float = Field(60.0, ge=0, le=86400, description="How often GPU memory is read again; 0: never.")
    backoff_min_s: float = Field(1.0, gt=0, le=3600, description="Shortest wait before a worker is started again.")
    backoff_max_s: float = Field(60.0, gt=0, le=86400, description="Longest wait before a worker is started again.")
    breaker_crashes: int = Field(3, ge=1, le=1000, description="So many crashes without a finished segment ...")
    breaker_window_s: float = Field(300.0, gt=0, le=86400, description="... within so long ...")
    breaker_open_s: float = Field(600.0, gt=0, le=86400, description="... rest a worker for so long.")
    recycle_segments: int = Field(
        0, ge=0, le=1_000_000_000, description="Replace a worker's process after so many segments; 0: never."
    )
    recycle_hours: float = Field(0.0, ge=0, le=87_600, description="... after so many hours; 0: never.")
    recycle_growth_gb: float = Field(
        4.0, ge=0, le=4096, description="... when its memory has grown by so many GB since it had settled; 0: never."
    )


class Worker(Table):
    """One worker process."""

    python: str = Field(
        "",
        description="The interpreter of the workers, from any environment with the engine's packages; "
        "empty: the daemon's own.",
    )
    path: Folders = Field((), description="Folders put first on the workers' import path.")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of a worker; 0: the cores shared out.")
    load_timeout_s: float = Field(600.0, gt=0, le=86400, description="Longest time to load an engine.")
    beat_seconds: float = Field(1.0, ge=0.05, le=60, description="How often a worker shows that it lives.")
    beat_timeout_s: float = Field(30.0, gt=0, le=3600, description="A worker silent for so long is killed.")
    segment_timeout_s: float = Field(300.0, gt=0, le=86400, description="Longest time for a segment once begun.")
    stop_grace_s: float = Field(5.0, ge=0, le=600, description="Time to exit before a worker is killed.")


class Engine(Table):
    """What turns a segment into audio."""

    name: Annotated[str, BeforeValidator(_as_engine_name)] = Field(
        "fish",
        description="fish (fish-speech), draft (espeak-ng), silence (for measuring the daemon), "
        "or module:Class found on worker.path.",
        json_schema_extra={"form": "fish, draft, silence, or module:Class"},
    )
    checkpoint: str = Field("", description="The folder of the model's checkpoint; fish needs one.")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", description="Of the model's numbers.")
    slots: int = Field(0, ge=0, le=4096, description="Segments a worker speaks at once; 0: the engine's choice.")
    reproducible: bool = Field(False, description="The same bits whatever else is spoken beside; slower.")
    retries: int = Field(2, ge=0, le=100, description="More tries, with other seeds, for a WAV that fails its checks.")
    options: dict[str, Any] = Field(default_factory=dict, description="Handed to the engine as they are.")


class Embeddings(Table):
    """Speaker embeddings: what ``dubd embeddings`` and jobs of that kind do where nothing else is said."""

    utterances_dir: str = Field("", description="The folder of utterances for the command; empty: it must be given.")
    speakers_dir: str = Field("", description="The folder of results for the command; empty: it must be given.")
    num_processes: int = Field(0, ge=0, le=1024, description="Processes; 0: the cores that this one may use.")
    chunk_size: int = Field(10, ge=1, le=1000, description="Most speakers that a process is given at a time.")
    min_utterances: int = Field(1, ge=1, le=1_000_000_000, description="A speaker with fewer files is left out.")
    skip_existing: bool = Field(True, description="Leave a speaker alone that has a whole result already.")
    format: Literal["pkl", "npz"] = Field("pkl", description="Of the results: a pickle, or numpy's archive without.")
    exclude_filename_prefix: Names = Field(
        (),
        description="Files whose names begin like one of these are left out.",
        json_schema_extra={"form": 'a list of beginnings of names, such as ["noisy_"]'},
    )
    exclude_filename_pattern: Names = Field(
        (),
        description="Files whose names match one of these patterns of the shell are left out.",
        json_schema_extra={"form": 'a list of patterns, such as ["*_aug*"]'},
    )
    timeout_s: float = Field(
        300.0, gt=0, le=86400, description="A process that has not read one more file for so long is replaced."
    )


class Disk(Table):
    """How much room stays free. Below, no more jobs are taken, until there is a quarter more."""

    state_free_gb: float = Field(0.5, ge=0, le=1e6, description="GB that stay free for the state folder; 0: none.")
    outbox_free_gb: float = Field(0.5, ge=0, le=1e6, description="GB that stay free for the outbox; 0: none.")
    inbox_free_gb: float = Field(0.05, ge=0, le=1e6, description="GB that stay free for the inbox; 0: none.")


class Retention(Table):
    """What goes with time. Results go only once they have been read (see docs/upkeep.md)."""

    outbox_days: float = Field(
        0.0,
        ge=0,
        le=36_500,
        description="Remove the results of jobs that ended so many days ago and were read; 0: never.",
    )
    outbox_gb: float = Field(
        0.0, ge=0, le=1e6, description="Remove read results, the oldest first, while all hold more GB; 0: never."
    )
    state_days: float = Field(
        90.0, ge=0, le=36_500, description="Remove what was put aside in the state folder after so many days; 0: never."
    )
    cache_gb: float = Field(
        1.0, ge=0, le=1e6, description="Keep so many GB of encoded references, the last used ones; 0: all."
    )


def _as_command(value: object) -> object:
    """A list of texts, the first of which names a program."""
    if isinstance(value, str):
        raise ValueError("it should be a list of arguments; no shell reads it")
    if isinstance(value, list) and value and not value[0]:
        raise ValueError("its first argument, the program, is empty")
    if isinstance(value, list) and any(isinstance(item, str) and "\0" in item for item in value):
        raise ValueError("no argument can hold a NUL")
    return _as_tuple(value)


class Hooks(Table):
    """Commands that are run when something has happened; without a shell."""

    on_done: Annotated[tuple[str, ...], BeforeValidator(_as_command)] = Field(
        (),
        description="Run when a job has ended, with the path of its manifest.",
        json_schema_extra={
            "form": 'a list, the program and its arguments, such as ["/usr/local/bin/tell", "{manifest}"]'
        },
    )
    timeout_s: float = Field(60.0, gt=0, le=86400, description="A command that takes longer is killed.")


class Cluster(Table):
    """The Ray cluster of ``pool.backend = "ray"``."""

    address: Annotated[str, BeforeValidator(_as_address)] = Field(
        "auto",
        description="HOST:PORT of the cluster's head; auto: $RAY_ADDRESS, else the one that this machine is part of.",
        json_schema_extra={"form": '"auto" or "HOST:PORT", such as "10.0.0.1:6379"'},
    )
    folder: Path = Field(
        Path("/var/tmp/dubd"), description="On every node, and private there: code, references, files on their way."
    )
    cache_gb: float = Field(10.0, ge=0, le=65_536, description="How large a node lets that folder's cache grow, in GB.")


class Log(Table):
    """The log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is shown.")
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else json; json: one object a line; console: for people."
    )


class Service(Table):
    """The daemon as a whole."""

    drain_seconds: float = Field(30.0, ge=0, le=3600, description="Time for running segments to end on SIGTERM.")
    progress_seconds: float = Field(1.0, ge=0.1, le=60, description="Least time between two progress.json of a job.")
    status_seconds: float = Field(1.0, ge=0.1, le=60, description="Least time between two status.json.")
    one_cpu: bool = Field(False, description="Keep the daemon's own threads, not its workers, on one processor.")


TABLES: dict[str, type[Table]] = {
    "paths": Paths,
    "inbox": Inbox,
    "limits": LimitsTable,
    "pool": Pool,
    "worker": Worker,
    "engine": Engine,
    "embeddings": Embeddings,
    "disk": Disk,
    "retention": Retention,
    "hooks": Hooks,
    "cluster": Cluster,
    "log": Log,
    "service": Service,
}
"""Every table by its name in config.toml, in the order in which they are documented."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked. ``source`` is the file that was read, None where there was none.
    ``warnings`` are sentences for the log: nothing that stops the daemon."""

    paths: Paths
    inbox: Inbox
    limits: Limits
    pool: Pool
    worker: Worker
    engine: Engine
    embeddings: Embeddings
    disk: Disk
    retention: Retention
    hooks: Hooks
    cluster: Cluster
    log: Log
    service: Service
    source: Path | None = None
    warnings: tuple[str, ...] = ()


Kind = TypeVar("Kind", bound=Table)


# --- mistakes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: ``where`` (``table.key``, a file, or a variable), ``origin`` (the file, variable or option that
    said so, or ""), what is wrong, and how to mend it."""

    where: str
    message: str
    mend: str
    origin: str = ""

    def __str__(self) -> str:
        origin = f" (from {self.origin})" if self.origin and self.origin != self.where else ""
        return f"{self.where}: {self.message}{origin}. {self.mend}"


class ConfigError(Exception):
    """The configuration can't be used; ``problems`` has every mistake in it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


# --- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as somebody gave it, who that was, and the folder that its relative paths start from."""

    value: object
    origin: str
    folder: Path


class _Collector:
    """Values by table and key, the later over the earlier, and the mistakes met on the way."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.given: dict[str, dict[str, _Given]] = {name: {} for name in TABLES}
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def problem(self, where: str, message: str, mend: str, origin: str = "") -> None:
        self.problems.append(Problem(where, message, mend, origin))

    def put(self, table: str, key: str, given: _Given) -> None:
        """Take a value for a key, if there is such a key."""
        if table not in TABLES:
            self.problem(table, "no such table", _nearest_table(table), given.origin)
        elif key not in TABLES[table].model_fields:
            self.problem(f"{table}.{key}", "no such key", _nearest_key(table, key), given.origin)
        else:
            self.given[table][key] = given

    def add_file(self, path: Path) -> None:
        origin = str(path)
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_CONFIG_BYTES + 1)
            if len(raw) > _MAX_CONFIG_BYTES:
                raise ValueError(f"is over {_MAX_CONFIG_BYTES} bytes, which is no configuration")
            document = tomli.loads(raw.decode("utf-8"))
        except FileNotFoundError:
            self.problem(origin, "there is no such file", "Give the path of a config.toml, or leave it out.")
        except OSError as error:
            self.problem(origin, f"can't be read: {error.strerror}", "Give a file that this user may read.")
        except (ValueError, RecursionError) as error:
            self.problem(origin, f"is not TOML: {error}", "Mend that line; config.toml in the sources shows the form.")
        else:
            for table, content in document.items():
                if table not in TABLES:
                    self.problem(table, "no such table", _nearest_table(table), origin)
                elif not isinstance(content, dict):
                    self.problem(table, "is a table, not a value", f"Write its keys under a line [{table}].", origin)
                else:
                    for key, value in content.items():
                        self.put(table, key, _Given(value, origin, path.parent))

    def add_environment(self, cwd: Path) -> None:
        modes: dict[str, str] = {}
        for variable in ("FISH_MULTIPROCESS_MODE", "FISH_PARALLEL_MODE"):
            text = self._environ.get(variable, "").strip().lower()
            mode = _MODES.get(text)
            if mode is not None:
                modes[variable] = mode
            elif text:
                self.problem(variable, f"{_shown(text)} is no mode", "Set it to true, false or auto, or unset it.")
        for variable, mode in reversed(modes.items()):
            self.put("pool", "mode", _Given(mode, f"${variable}", cwd))
        if len(set(modes.values())) > 1:
            self.warnings.append(
                "$FISH_MULTIPROCESS_MODE and $FISH_PARALLEL_MODE contradict each other; "
                f"the former is obeyed: pool.mode is {modes['FISH_MULTIPROCESS_MODE']}. Unset one of them."
            )
        if text := self._environ.get("FISH_MODEL_MEMORY_GB", "").strip():
            try:
                self.put("pool", "model_memory_gb", _Given(float(text), "$FISH_MODEL_MEMORY_GB", cwd))
            except ValueError:
                self.problem("FISH_MODEL_MEMORY_GB", f"{_shown(text)} is no number", "Set it to GB, such as 8.0.")
        if text := self._environ.get("FISH_SPEECH_PYTHON", "").strip():
            self.put("worker", "python", _Given(text, "$FISH_SPEECH_PYTHON", cwd))

    def add_override(self, override: str, cwd: Path) -> None:
        """One TABLE.KEY=VALUE. VALUE is TOML, or else a bare string; TABLE.KEY.NAME=VALUE sets one entry of a table
        such as pool.per_gpu."""
        origin = f"--set {_escaped(override)}"
        name, equals, text = override.partition("=")
        table, *rest = name.strip().split(".", 2)
        if not equals or not rest or not all((table, *rest)):
            self.problem(origin, "is not TABLE.KEY=VALUE", "Write it like --set pool.workers=2.", origin)
            return
        key = rest[0]
        value = _parse_override(text.strip(), as_text=_is_text(table, key))
        if len(rest) == 2:
            before = self.given.get(table, {}).get(key)
            entries = dict(before.value) if before is not None and isinstance(before.value, dict) else {}
            value = {**entries, rest[1]: value}
        self.put(table, key, _Given(value, origin, cwd))

    def add_import_folder(self, cwd: Path) -> None:
        """FISH_SPEECH_DIR comes first on worker.path, before whatever else is there."""
        text = self._environ.get("FISH_SPEECH_DIR", "").strip()
        if not text:
            return
        folder = self._absolute(text, _Given(text, "$FISH_SPEECH_DIR", cwd))
        given = self.given["worker"].get("path")
        if given is None:
            self.put("worker", "path", _Given([folder], "$FISH_SPEECH_DIR", cwd))
        elif isinstance(given.value, list):
            self.put("worker", "path", _Given([folder, *given.value], given.origin, given.folder))

    def build(self, source: Path | None, cwd: Path) -> Settings:
        """The settings, or every mistake there is."""
        paths = self._table("paths", Paths, cwd)
        inbox = self._table("inbox", Inbox, cwd)
        limits = self._table("limits", LimitsTable, cwd)
        pool = self._table("pool", Pool, cwd)
        worker = self._table("worker", Worker, cwd)
        engine = self._table("engine", Engine, cwd)
        embeddings = self._table("embeddings", Embeddings, cwd)
        disk = self._table("disk", Disk, cwd)
        retention = self._table("retention", Retention, cwd)
        hooks = self._table("hooks", Hooks, cwd)
        cluster = self._table("cluster", Cluster, cwd)
        log = self._table("log", Log, cwd)
        service = self._table("service", Service, cwd)
        if paths is not None:
            self._check_paths(paths)
        if limits is not None:
            self._check_limits(limits)
        if pool is not None:
            self._check_order("pool", "backoff_min_s", pool.backoff_min_s, "backoff_max_s", pool.backoff_max_s)
        if worker is not None:
            self._check_order("worker", "beat_seconds", worker.beat_seconds, "beat_timeout_s", worker.beat_timeout_s)
        if (
            self.problems
            or paths is None
            or inbox is None
            or limits is None
            or pool is None
            or worker is None
            or engine is None
            or embeddings is None
            or disk is None
            or hooks is None
            or retention is None
            or cluster is None
            or log is None
            or service is None
        ):
            raise ConfigError(self.problems)
        return Settings(
            paths=paths,
            inbox=inbox,
            limits=Limits(**limits.model_dump()),
            pool=pool,
            worker=worker,
            engine=engine,
            embeddings=embeddings,
            disk=disk,
            retention=retention,
            hooks=hooks,
            cluster=cluster,
            log=log,
            service=service,
            source=source,
            warnings=tuple(self.warnings),
        )

    def _table(self, name: str, model: type[Kind], cwd: Path) -> Kind | None:
        """One table, checked; None when something in it is wrong, which is then among the problems."""
        values = {key: self._resolved(model.model_fields[key], given) for key, given in self.given[name].items()}
        if name == "paths":
            _fill_paths(values, cwd)
        try:
            return model.model_validate(values)
        except ValidationError as error:
            self._explain(name, model, error)
            return None

    def _resolved(self, field: FieldInfo, given: _Given) -> object:
        """The value with its paths made absolute; whatever is no text is left for the check to refuse."""
        value = given.value
        if field.annotation is Path:
            return self._absolute(value, given)
        if field.annotation == tuple[Path, ...] and isinstance(value, list):
            return [self._absolute(item, given) for item in value]
        if field.annotation == dict[str, Path] and isinstance(value, dict):
            return {name: self._absolute(folder, given) for name, folder in value.items()}
        if field is Hooks.model_fields["on_done"] and isinstance(value, list) and value:
            # A bare name is looked up on PATH, like an interpreter's.
            program = value[0]
            is_path = isinstance(program, str) and "/" in program
            return [_text(self._absolute(program, given)), *value[1:]] if is_path else value
        if any(field is known for known in _PATHS_OR_NOTHING):
            # A bare name of an interpreter is looked up on PATH when a worker is started.
            bare = field is Worker.model_fields["python"] and isinstance(value, str) and "/" not in value
            return value if value == "" or bare else _text(self._absolute(value, given))
        return value

    def _absolute(self, value: object, given: _Given) -> object:
        if not isinstance(value, str) or not value or "\0" in value:
            return value
        home = self._environ.get("HOME", "")
        if home and (value == "~" or value.startswith("~/")):
            value = home + value[1:]
        return given.folder / os.path.expanduser(value)

    def _explain(self, table: str, model: type[Table], error: ValidationError) -> None:
        """pydantic's findings in our words: one problem a key."""
        told = set()
        for found in error.errors(include_url=False):
            key = str(found["loc"][0])
            if key in told:
                continue
            told.add(key)
            field = model.model_fields[key]
            given = self.given[table][key]
            reason = found["msg"].removeprefix("Value error, ")
            if reason.startswith("Input should be an instance of Path"):
                reason = "is no path"
            reason = reason.replace("Input should", "it should")
            separator = " " if reason.startswith("is ") else ": "
            default = (
                "" if table == "paths" else f"; the default is {_shown(field.get_default(call_default_factory=True))}"
            )
            self.problem(
                f"{table}.{key}",
                f"{_shown(given.value)}{separator}{reason}",
                f"Give {_form(model, key)}{default}.",
                given.origin,
            )

    def _check_order(self, table: str, lower: str, low: float, upper: str, high: float) -> None:
        if low > high:
            self.problem(f"{table}.{lower}", f"{low:g} is over {table}.{upper}, {high:g}", "Mend one of the two.")

    def _check_limits(self, limits: LimitsTable) -> None:
        low, high = limits.reference_seconds_min, limits.reference_seconds_max
        self._check_order("limits", "reference_seconds_min", low, "reference_seconds_max", high)
        frame = (limits.references_per_speaker + 1) * limits.text_characters * _ESCAPED_CHARACTER_BYTES
        if frame > MAX_FRAME_BYTES - _FRAME_REST_BYTES:
            self.problem(
                "limits.text_characters",
                f"{limits.text_characters} characters with {limits.references_per_speaker} references do not fit a "
                "message to a worker",
                "Lower it, or limits.references_per_speaker.",
            )

    def _check_paths(self, paths: Paths) -> None:
        places = {key: os.path.normpath(getattr(paths, key)) for key in ("inbox", "outbox", "rejected", "state")}
        for (one, place), (other, its_place) in itertools.combinations(places.items(), 2):
            if place == its_place:
                self.problem(f"paths.{other}", f"is the same folder as paths.{one}", "Give each its own folder.")
        for key in ("inbox", "outbox", "rejected"):
            if Path(places[key]) in Path(places["state"]).parents:
                self.problem("paths.state", f"lies inside paths.{key}", "Give it a private folder of its own.")
        status = Path(os.path.normpath(paths.status))
        if str(status) in places.values():
            self.problem("paths.status", "is a folder of another key", "Give a file, such as status.json.")
        elif str(status.parent) == places["inbox"]:
            self.problem("paths.status", "lies in the inbox, where it would be a job", "Put it beside the inbox.")


_MODES = {
    **dict.fromkeys(("true", "1", "yes", "on", "multi"), "multi"),
    **dict.fromkeys(("false", "0", "no", "off", "single"), "single"),
    "auto": "auto",
}


_PATHS_OR_NOTHING = (
    Engine.model_fields["checkpoint"],
    Worker.model_fields["python"],
    Embeddings.model_fields["utterances_dir"],
    Embeddings.model_fields["speakers_dir"],
)
"""Keys that hold a path, or nothing."""


def find_config(*, config_file: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The file that settings are read from: the one named, else $DUBD_CONFIG, else ./config.toml, else
    /etc/dubd/config.toml; None where there is none. A named one may be missing."""
    named = config_file if config_file is not None else environ.get("DUBD_CONFIG") or None
    if named is not None:
        return cwd / os.path.expanduser(named)
    return next((path for path in (cwd / "config.toml", SYSTEM_CONFIG) if path.is_file()), None)


def load_settings(
    *, config_file: Path | None, environ: Mapping[str, str], overrides: Sequence[str], cwd: Path
) -> Settings:
    """Read and check everything.

    Args:
        config_file: the file that was named, None to look for one (see ``find_config``).
        environ: where the FISH_* variables, DUBD_CONFIG and HOME are looked up.
        overrides: TABLE.KEY=VALUE each, VALUE in TOML or else a bare string; the last one wins.
        cwd: the current directory, absolute.

    Raises:
        ConfigError: with every mistake in the file, the environment and the overrides.
    """
    source = find_config(config_file=config_file, environ=environ, cwd=cwd)
    collector = _Collector(environ)
    if source is not None:
        collector.add_file(source)
    collector.add_environment(cwd)
    for override in overrides:
        collector.add_override(override, cwd)
    collector.add_import_folder(cwd)
    return collector.build(source, cwd)


def _fill_paths(values: dict[str, object], cwd: Path) -> None:
    """Put what is not given under the root, and the inbox and mapped folders among the allowed roots."""
    root = values.setdefault("root", cwd / "var")
    if not isinstance(root, Path):
        root = cwd / "var"
    for key in ("inbox", "outbox", "rejected", "state"):
        values.setdefault(key, root / key)
    values.setdefault("status", root / "status.json")
    roots = values.setdefault("allowed_roots", [])
    if isinstance(roots, list):
        mapped = values.get("mapped")
        more = [values["inbox"], *(mapped.values() if isinstance(mapped, dict) else ())]
        values["allowed_roots"] = [*roots, *(root for root in more if isinstance(root, Path) and root not in roots)]


def _parse_override(text: str, *, as_text: bool) -> object:
    """A value of --set. For a key that holds text, anything but a TOML string is taken as it stands: 2024 is a fine
    folder name."""
    try:
        document = tomli.loads(f"value = {text}")
    except (tomli.TOMLDecodeError, RecursionError):
        return text
    value = document.get("value")
    if len(document) != 1 or (as_text and not isinstance(value, str)):
        return text
    return value


def _is_text(table: str, key: str) -> bool:
    field = TABLES[table].model_fields.get(key) if table in TABLES else None
    return field is not None and field.annotation in (Path, str)


def _text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _nearest_table(table: str) -> str:
    nearest = difflib.get_close_matches(table, TABLES, n=1)
    for name, model in TABLES.items():
        if not nearest and table in model.model_fields:
            return f"It is a key of the table [{name}]."
    return f"Did you mean {nearest[0]}?" if nearest else f"The tables are {', '.join(TABLES)}."


def _nearest_key(table: str, key: str) -> str:
    keys = {f"{name}.{known}": known for name, model in TABLES.items() for known in model.model_fields}
    here = difflib.get_close_matches(key, TABLES[table].model_fields, n=1)
    elsewhere = difflib.get_close_matches(key, keys.values(), n=1, cutoff=0.8)
    if here and not (elsewhere and elsewhere[0] == key):
        return f"Did you mean {table}.{here[0]}?"
    if elsewhere:
        return f"Did you mean {next(full for full, known in keys.items() if known == elsewhere[0])}?"
    return f"The keys of [{table}] are {', '.join(TABLES[table].model_fields)}."


def _form(model: type[Table], key: str) -> str:
    """What a key takes, in words, from its type and its limits."""
    schema = model.model_json_schema()["properties"][key]
    if "form" in schema:
        return str(schema["form"])
    if "enum" in schema:
        return "one of " + ", ".join(f'"{choice}"' for choice in schema["enum"])
    if schema.get("format") == "path":
        return 'a path in quotes, such as "/srv/dubd"'
    words = {
        "boolean": "true or false",
        "integer": "a whole number",
        "number": "a number",
        "string": "text in quotes",
        "array": 'a list of paths, such as ["/srv/voices"]',
        "object": "a table, such as {name = 1}",
    }[schema["type"]]
    bounds = [
        f"{word} {schema[name]:,}"
        for name, word in (("exclusiveMinimum", "over"), ("minimum", "at least"), ("maximum", "at most"))
        if name in schema
    ]
    return " ".join(filter(None, (words, " and ".join(bounds))))


def _shown(value: object) -> str:
    """A value about as TOML would have it, on one line and not too long."""
    if isinstance(value, bool):
        return str(value).lower()
    text = _escaped(str(value))
    if isinstance(value, str | Path):
        text = f'"{text}"'
    return text if len(text) <= 80 else text[:77] + "..."


def _escaped(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
