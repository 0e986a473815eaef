"""What to do about a segment that failed, by the code of its error: one sentence for the pages and the terminal."""

from __future__ import annotations

_AGAIN = "Redo it; what is spoken already stays."
_REFERENCE = "Give the speaker another reference: 5 to 30 seconds of one clear voice, with its text exactly as spoken."

_ADVICE = {
    "worker_died": "Its worker died with it each time it was tried alone. Look at the log, change the line, redo it.",
    "out_of_memory": "Even alone it did not fit. Shorten the line, or raise pool.model_memory_gb.",
    "prompt_too_long": "The speaker's references with their texts are too long for the model. Use shorter ones.",
    "too_long": "Split the line in two.",
    "empty_text": "Nothing of the line is left to be said. Write it out in words.",
    "nothing_spoken": "Nothing came of it. Redo it with a new seed, or write the line in another way.",
    "non_finite": "Set engine.precision to fp32, or copy the checkpoint again ('dubd doctor' looks at it). Redo it.",
    "all_failed": "Redo it with a new seed, or write the line in another way.",
    "unsupported_output": "Change output.sample_rate or output.subtype of the job.",
    "write_failed": "Look at the disk under paths.state: its space and the daemon's right to write.",
    "no_audio": "The worker left no file. Look at the disk under paths.state, then redo it.",
    "bad_audio": "The worker's file was not what it said. Look at the disk under paths.state, then redo it.",
    "finishing_failed": "It was spoken, but not finished. Look at the log; redo it, or ask for less in output.",
    "file_lost": "Its finished file has gone from paths.state. Redo it.",
    "reference_unreadable": _REFERENCE,
    "no_reference": _REFERENCE,
    "bad_codes": "Make the speaker's codes again with 'dubd encode'.",
    "codec_failed": _REFERENCE,
}


def advice(code: str | None) -> str:
    """What to do about an error of this code; something sensible for one that is not known."""
    return _ADVICE.get(code or "", _AGAIN)
