"""LocalClip's two configs, read as the job that they ask for.

Generate: ``{"mode": "generate", "tasks": [{segment_index, speaker_id, target_text, npy_file, reference_text,
output_file}]}``. The scheme has no list of speakers; a voice is the triple (speaker_id, npy_file, reference_text), and
each distinct triple becomes a speaker of the job, in order of first appearance. The first triple of a speaker_id keeps
that id, the following ones are called ``ID#2``, ``ID#3``.

Encode: ``{"mode": "encode", "speakers": [{speaker_id, reference_audio, reference_text, output_npy}]}``; see
``Job.task``.

That editor writes what its own engine takes: an empty ``reference_text`` (its default), longer texts, no tasks at all.
These are taken as it does, and said in ``Job.ignored``.

The scheme grew with its editor and has no fixed list of keys, so a key that is not used here is no fault; it is named
in ``Job.ignored``. dubd's own settings (job_id, language, priority, defaults, output) are obeyed where they are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.core.fields import Fields, objects, spellings
from daemon.core.job import Job, Limits, Reference, Segment, Speaker
from daemon.core.job_settings import (
    LARGEST_INDEX,
    SETTINGS,
    JobSettings,
    check_count,
    read_path,
    read_settings,
    read_speaker_id,
)
from daemon.core.reasons import Reasons, member, nearest, quoted

_MODES = ("generate", "encode")
_CONFIG = spellings({"mode": (), "redo": (), **SETTINGS, "tasks": (), "speakers": ()})
_TASK = spellings(
    {
        "segment_index": ("index",),
        "speaker_id": ("speaker",),
        "target_text": ("text",),
        "npy_file": (),
        "reference_text": (),
        "output_file": (),
    }
)
_SPEAKER = spellings({"speaker_id": (), "reference_audio": (), "reference_text": (), "output_npy": ()})

_WHY_IGNORED = {
    "fish_speech_dir": "the daemon's own environment holds fish-speech (worker.python, worker.path)",
    "checkpoint_dir": "the daemon's own engine.checkpoint is used",
    "output_dir": "results go to the outbox, and to each output_file that lies inside paths.output_roots",
}
_MOST_IGNORED = 200

LONG_TEXT = Limits().text_characters
"""Characters from which on a text is said to be long, whatever the limits are now: a job is read at each start."""

LONGER_TEXTS = 8
"""Times ``limits.text_characters`` that a text may have here: its segment can't be divided by whoever wrote it, and the
engine speaks it in pieces."""

_OF_OTHER_ENGINES = ("reference_audio", "model_dir", "speaker_name")
"""Keys that LocalClip's configs for its other engines have in the place of ``npy_file``."""


def is_config(tree: Mapping[str, Any]) -> bool:
    """The document is LocalClip's, not dubd's own: it says its mode, or has tasks."""
    return "segments" not in tree and ("mode" in tree or "tasks" in tree)


def read_config(tree: Mapping[str, Any], *, stem: str, limits: Limits, reasons: Reasons) -> Job:
    """The job that the config asks for.

    Raises:
        JobRejected: with every reason, those noted in ``reasons`` before among them.
    """
    config = Fields(tree, "$", _CONFIG, reasons)
    mode = config.raw("mode")
    if (other := _other_engine(tree)) is not None:
        message = (
            f"{other} says that this config is for another engine of LocalClip's; dubd reads those for fish-speech, "
        )
        message += "whose tasks have an npy_file: encode the recordings first (mode 'encode')"
        config.refuse("mode", "other_engine", message)
        raise reasons.rejection()
    if mode not in _MODES:
        near = nearest(mode, _MODES) if isinstance(mode, str) else None
        hint = f"; did you mean {quoted(near)}?" if near else ""
        config.refuse("mode", "bad_mode", f"mode must be 'generate' or 'encode'{hint}")
        raise reasons.rejection()
    settings = read_settings(config, stem=stem)
    ignored = _Ignored()
    ignored.note(config, "$")
    if mode == "generate":
        return _read_generate(config, settings, ignored, limits, reasons)
    return _read_encode(config, settings, ignored, limits, reasons)


def _other_engine(tree: Mapping[str, Any]) -> str | None:
    """The key that says that the config is for another engine of LocalClip's than fish-speech; None where none does."""
    tasks = tree.get("tasks")
    task = next((task for task in tasks if isinstance(task, dict)), {}) if isinstance(tasks, list) else {}
    if "npy_file" in task:
        return None
    return next((key for key in _OF_OTHER_ENGINES if key in task or (tasks and key in tree)), None)


def _read_generate(config: Fields, settings: JobSettings, ignored: _Ignored, limits: Limits, reasons: Reasons) -> Job:
    items = config.items("tasks")
    if items:
        check_count(config, "tasks", items, limits)
    longest = limits.text_characters * LONGER_TEXTS
    voices = _Voices()
    segments = []
    paths: dict[int, str] = {}
    for task in objects(items or [], "$.tasks", _TASK, reasons):
        ignored.note(task, "$.tasks[*]")
        index = task.integer("segment_index", 0, LARGEST_INDEX, required=True)
        if index is not None and (first := paths.setdefault(index, task.path)) != task.path:
            task.refuse("segment_index", "duplicate_index", f"the index {index} is given already, in {first}")
        speaker_id = read_speaker_id(task, "speaker_id")
        text = task.text("target_text", longest, required=True)
        if text is not None and len(text) > LONG_TEXT:
            ignored.say(f"{task.path_of('target_text')}: {len(text)} characters are spoken in pieces, as one segment")
        npy_file = read_path(task, "npy_file", required=True)
        reference_text = _reference_text(task, limits, ignored)
        output_file = read_path(task, "output_file")
        if index is None or speaker_id is None or text is None or npy_file is None or reference_text is None:
            continue
        numeric = isinstance(task.raw("speaker_id"), int)
        reference = Reference(text=reference_text, codes=npy_file, where=task.path_of("npy_file"))
        speaker = voices.speaker(speaker_id, reference, numeric=numeric)
        segments.append(Segment(index=index, speaker=speaker, text=text, output_file=output_file))
    reasons.raise_if_any()
    return Job(
        job_id=settings.job_id,
        speakers=voices.speakers(),
        segments=tuple(sorted(segments, key=lambda segment: segment.index)),
        language=settings.language,
        priority=settings.priority,
        parameters=settings.parameters,
        output=settings.output,
        results="generate",
        ignored=ignored.lines(),
    )


def _read_encode(config: Fields, settings: JobSettings, ignored: _Ignored, limits: Limits, reasons: Reasons) -> Job:
    items = config.items("speakers")
    if items:
        check_count(config, "speakers", items, limits)
    speakers: dict[str, Speaker] = {}
    segments = []
    paths: dict[str, str] = {}
    for position, fields in enumerate(objects(items or [], "$.speakers", _SPEAKER, reasons)):
        ignored.note(fields, "$.speakers[*]")
        speaker_id = read_speaker_id(fields, "speaker_id")
        if speaker_id is not None and (first := paths.setdefault(speaker_id, fields.path)) != fields.path:
            message = f"the speaker {quoted(speaker_id)} is given already, in {first}"
            fields.refuse("speaker_id", "duplicate_speaker", message)
        audio = read_path(fields, "reference_audio", required=True)
        text = _reference_text(fields, limits, ignored)
        output_npy = read_path(fields, "output_npy")
        if speaker_id is None or audio is None or text is None:
            continue
        numeric = isinstance(fields.raw("speaker_id"), int)
        reference = Reference(text=text, audio=audio, where=fields.path_of("reference_audio"))
        speakers[speaker_id] = Speaker(speaker_id, (reference,), numeric=numeric)
        segments.append(Segment(index=position, speaker=speaker_id, text=text, output_file=output_npy))
    reasons.raise_if_any()
    return Job(
        job_id=settings.job_id,
        speakers=tuple(speakers.values()),
        segments=tuple(segments),
        language=settings.language,
        priority=settings.priority,
        parameters=settings.parameters,
        output=settings.output,
        task="encode",
        results="encode",
        ignored=ignored.lines(),
    )


def _reference_text(fields: Fields, limits: Limits, ignored: _Ignored) -> str | None:
    """What is said in the reference; "" where the config leaves it empty, as that editor's default is."""
    if isinstance(value := fields.raw("reference_text"), str) and not value.strip():
        ignored.say(
            f"{fields.path_of('reference_text')}: it is empty; the voice is used without the text of its recording, "
            "and is better with it"
        )
        return ""
    return fields.text("reference_text", limits.text_characters, required=True)


class _Voices:
    """The distinct voices of a generate config, in order of first appearance, each under an id of its own."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, Reference], str] = {}
        self._speakers: dict[str, Speaker] = {}
        self._voices_of: dict[str, int] = {}

    def speaker(self, speaker_id: str, reference: Reference, *, numeric: bool) -> str:
        """The id of this voice, a new one if it has not come up before."""
        voice = (speaker_id, reference)
        if voice not in self._ids:
            name = self._free_name(speaker_id)
            self._ids[voice] = name
            self._speakers[name] = Speaker(name, (reference,), numeric=numeric)
        return self._ids[voice]

    def speakers(self) -> tuple[Speaker, ...]:
        return tuple(self._speakers.values())

    def _free_name(self, speaker_id: str) -> str:
        while True:
            count = self._voices_of[speaker_id] = self._voices_of.get(speaker_id, 0) + 1
            name = speaker_id if count == 1 else f"{speaker_id}#{count}"
            if name not in self._speakers:  # a speaker may be called "0#2" by the config itself
                return name


class _Ignored:
    """Keys of the config that are not used, each once, with how often it comes up."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._said: list[str] = []
        self._unlisted = 0

    def say(self, line: str) -> None:
        """Add a line about something that is not as it should be."""
        if len(self._said) < _MOST_IGNORED:
            self._said.append(line)

    def note(self, fields: Fields, pattern: str) -> None:
        """Note the unknown keys of ``fields``; ``pattern`` is the path that all objects of its kind share."""
        for key in fields.unknown:
            path = member(pattern, key)
            if path not in self._counts and len(self._counts) >= _MOST_IGNORED:
                self._unlisted += 1
                continue
            self._counts[path] = self._counts.get(path, 0) + 1
            self._reasons[path] = _WHY_IGNORED.get(key, "dubd does not use this key")

    def lines(self) -> tuple[str, ...]:
        lines = [
            f"{path}: {self._reasons[path]}" + (f" ({count} times)" if count > 1 else "")
            for path, count in self._counts.items()
        ]
        lines += self._said
        if self._unlisted:
            lines.append(f"$: {self._unlisted} more keys that dubd does not use")
        return tuple(lines)
