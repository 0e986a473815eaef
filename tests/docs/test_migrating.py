"""docs/migrating.md tells the truth: its commands are run, its keys looked up, its log lines heard."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from daemon.cli import app
from daemon.config import TABLES, Settings, load_settings
from daemon.sample import JOB_FILE_NAME, sample_folder
from tests.docs.markdown import ROOT, Section, sections, spans
from tests.end_to_end.conftest import DaemonUnderTest, recording

PAGES = [path for path in (ROOT / "docs" / "migrating.md", ROOT / "docs" / "migrating.zh.md") if path.exists()]
PAGE = PAGES[0]


def section_with(head: str) -> Section:
    """The section whose table has this cell in its head."""
    return next(section for section in sections(PAGE) if section.rows() and head in section.rows()[0])


def run(command: str) -> str:
    """What a ``dubd …`` command prints."""
    program, *arguments = shlex.split(command)
    assert program == "dubd"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{command}: {result.output}"
    return result.stdout


# --- the plan ----------------------------------------------------------------------------------------------

_ROWS = section_with("where").rows()[1:]


@pytest.mark.parametrize("row", _ROWS, ids=[row[0] for row in _ROWS])
def test_the_table_of_machines(row: list[str]) -> None:
    """Workers, GPUs and memory of each row are what its command plans."""
    _, command, workers, where, memory = row
    (command,) = spans(command)
    planned = json.loads(run(f"{command} --json"))["workers"]
    by_gpu = Counter(worker["gpu"] for worker in planned)
    assert str(len(planned)) == workers
    assert ", ".join(f"GPU {gpu}: {count}" for gpu, count in sorted(by_gpu.items())) == where
    budget = float(shlex.split(command)[shlex.split(command).index("--model-memory-gb") + 1])
    (count,) = set(by_gpu.values())
    assert f"{budget * count:g} GB{' each' if len(by_gpu) > 1 else ''}" == memory


def test_every_machine_of_the_manuals_is_in_the_table() -> None:
    """Workers by GPUs' memory and what a worker takes, as their examples have them."""
    manuals = {
        ((24,), 8.0): 2, ((24,), 6.0): 3, ((24,), 5.3): 4, ((16,), 8.0): 1, ((16,), 7.0): 2, ((24, 24), 8.0): 4,
        ((24, 24), 6.0): 6, ((16, 16), 8.0): 2, ((12, 12), 9.0): 2, ((80,), 8.0): 9, ((80,), 6.5): 11,
    }  # fmt: skip
    here = {}
    for _, command, workers, *_ in _ROWS:
        if "--mode single" not in command:
            gpus = tuple(int(size) for size in re.findall(r":(\d+)\"", command))
            here[gpus, float(re.findall(r"--model-memory-gb ([\d.]+)", command)[0])] = int(workers)
    assert here == manuals


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_what_commands_print(page: Path) -> None:
    """Each console block is a command and what it prints, to the letter."""
    blocks = [lines for section in sections(page) for language, lines in section.blocks if language == "console"]
    assert len(blocks) >= 5
    for prompt, *expected in blocks:
        assert run(prompt.removeprefix("$ ")).splitlines() == expected, prompt


# --- settings ----------------------------------------------------------------------------------------------


def load(tmp_path: Path, *overrides: str, **environ: str) -> Settings:
    return load_settings(config_file=None, environ=environ, overrides=overrides, cwd=tmp_path)


def test_the_environment_is_what_the_table_says(tmp_path: Path) -> None:
    """Setting the variable is the same as setting the key."""
    rows = [row for row in section_with("variable").rows()[1:] if "=" in spans(row[0])[0] and " = " in row[1]]
    assert len(rows) == 3
    for variable, key, _ in rows:
        name, value = spans(variable)[0].split("=")
        table, field = spans(key)[0].split(" = ")[0].split(".")
        by_variable = load(tmp_path, **{name: value})
        by_key = load(tmp_path, spans(key)[0].replace(" = ", "="))
        assert getattr(getattr(by_variable, table), field) == getattr(getattr(by_key, table), field)
    named = {spans(row[0])[0].partition("=")[0] for row in section_with("variable").rows()[1:]}
    assert named == {
        "FISH_MULTIPROCESS_MODE", "FISH_PARALLEL_MODE", "FISH_MODEL_MEMORY_GB", "FISH_SPEECH_PYTHON", "FISH_SPEECH_DIR",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_key_that_is_named_exists(tmp_path: Path, page: Path) -> None:
    """And takes the value that stands beside it."""
    named = 0
    for section in sections(page):
        for span in section.spans():
            key = re.fullmatch(r"([a-z]+)\.([a-z_]+)( = .+)?", span)
            if key is not None and key[1] in TABLES:
                assert key[2] in TABLES[key[1]].model_fields, span
                if key[3]:
                    load(tmp_path, span.replace(" = ", "=", 1))
                named += 1
        for language, lines in section.blocks:
            if language == "toml":
                config = tmp_path / "config.toml"
                config.write_text("\n".join(lines), "utf-8")
                load_settings(config_file=config, environ={}, overrides=[], cwd=tmp_path)
    assert named > 30


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_command_that_is_named_exists(page: Path) -> None:
    """With its options."""
    known = CliRunner().invoke(app, ["--help"]).output
    for section in sections(page):
        lines = [line for language, block in section.blocks if language in ("sh", "console") for line in block]
        for said in [*section.spans(), *(line.split("#")[0] for line in lines)]:
            for name, rest in re.findall(r"\bdubd ([a-z]+)((?: [^;`]*)?)", said):
                if name == "run":
                    continue
                assert re.search(rf"^  {name}\b", known, re.MULTILINE), said
                path = [name, *re.findall(r"^ ([a-z]+)", rest)] if name == "bench" else [name]
                help_text = CliRunner().invoke(app, [*path, "--help"]).output
                for option in re.findall(r"(--[a-z][\w-]*)", rest):
                    assert option in help_text, said


# --- task files and the log --------------------------------------------------------------------------------


def _pattern(line: str) -> str:
    """A log line of the page as a pattern: its numbers and names are those of one run."""
    escaped = re.escape(line)
    escaped = re.sub(r"\d+(/\d+)?", lambda found: r"\d+/\d+" if found[1] else r"\d+", escaped)
    return re.sub(r"(Speaker\\ |IDs:\\ \\\[)[a-z]+(,\\ [a-z]+)*", r"\1[\\w, ]+", escaped)


def test_the_log_says_each_line(tmp_path: Path) -> None:
    """A real run of the sample job, 46 lines of 6 speakers with two workers, says every line of the table."""
    daemon = DaemonUnderTest(tmp_path, engine__name="draft")
    for file in sample_folder().iterdir():
        if file.name.endswith(".flac"):
            daemon.put(file.name, file.read_bytes())
    try:
        daemon.start()
        manifest = daemon.run("night_ferry", json.loads((sample_folder() / JOB_FILE_NAME).read_bytes()))
        assert manifest["counts"]["ok"] == 46
        assert daemon.stop() == 0
    finally:
        daemon.end_test()
    said = [json.loads(line)["event"] for line in daemon.log.read_text("utf-8").splitlines() if line.startswith("{")]
    table = section_with("dubd says").rows()[1:]
    lines = [span for row in table for span in spans(row[1]) if span.startswith("[")]
    assert len(lines) >= 12
    for line in lines:
        assert any(re.fullmatch(_pattern(line), event) for event in said), line


def test_the_task_files_are_jobs(tmp_path: Path) -> None:
    """Both examples, as they stand, with the editor's Windows folder mapped; results.json has the names that they give,
    and an answer of the page's form."""
    (section,) = [section for section in sections(PAGE) if any(block[0] == "json" for block in section.blocks)]
    generate, encode = (json.loads("\n".join(lines)) for language, lines in section.blocks if language == "json")
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "anna.wav").write_bytes(recording("ines"))
    daemon = DaemonUnderTest(tmp_path, paths__mapped={"C:\\clips": str(clips)}, paths__output_roots=[str(clips)])
    try:
        daemon.start()
        daemon.run("encode", encode)
        answer: Any = json.loads((daemon.outbox / "encode" / "results.json").read_bytes())
        assert json.dumps(answer) in section.spans()
        daemon.run("generate", generate)
        answer = json.loads((daemon.outbox / "generate" / "results.json").read_bytes())
        assert answer == {"12": "C:\\clips\\out\\segment_12.wav"}
        assert (clips / "out" / "segment_12.wav").exists()
        assert daemon.stop() == 0
    finally:
        daemon.end_test()
