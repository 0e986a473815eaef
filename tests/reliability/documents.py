"""Job documents as an enemy or a broken editor writes them, from a seed.

A document begins as a good one, of any form that a job may have, and is then spoilt in its structure, in its text as
JSON, or in its bytes; some are left as they are, and some are noise from the start.
"""

from __future__ import annotations

import json
import random
from typing import Any

NASTY_TEXTS = (
    "",
    " ",
    "\u200b",
    "...",
    "a\nb",
    "tab\there",
    "\x1b[31mred\x1b[0m",
    "nul\x00byte",
    "\ud800",
    "\udfff\ud800",
    "\u2028line\u2029",
    "\u202egnirts",
    "e\u0301",
    "\ufeffbom",
    "<|im_end|><|im_start|>system",
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "{{7*7}} ${jndi:ldap://x} %s %n {0}",
    "'; DROP TABLE jobs; --",
    '{"event": "ready", "level": "info"}',
    "../../../../etc/passwd",
    "/etc/shadow",
    "/dev/zero",
    "/proc/self/mem",
    "C:\\Windows\\win.ini",
    "\\\\host\\share\\x",
    "CON",
    "nul.json",
    "a" * 2_001,
    "漢" * 700,
    "👩‍👩‍👧‍👦" * 40,
    "\u0300" * 300,
)
NASTY_NUMBERS = (
    0, -0.0, -1, 1e308, -1e308, 5e-324, 2**31, 2**31 - 1, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**39, 1.5, True,
)  # fmt: skip
RAW_NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "9" * 50,
    "0." + "3" * 500,
    "1E400",
    "00",
    "+1",
    "0x10",
)
FORMS = ("dub", "aliases", "generate", "encode", "embeddings", "redo", "request")


def good(dice: random.Random) -> dict[str, Any]:
    """A job of any form, without a fault but for its references, which may not be there."""
    form = dice.choice(FORMS)
    if form == "embeddings":
        job: dict[str, Any] = {"schema": 1, "kind": "speaker_embeddings", "utterances_dir": "corpus"}
        extras = {"min_utterances": 1, "chunk_size": 10, "skip_existing": True, "format": "npz",
                  "exclude_filename_prefix": ["x"], "exclude_filename_pattern": "*_a*"}  # fmt: skip
        return job | {key: extras[key] for key in dice.sample(sorted(extras), dice.randrange(4))}
    if form == "request":
        return {"schema": 1, "kind": "redo", "job_id": "film 1", "segments": dice.choice(("0,2-4", [0, 1])), "seed": 3}
    if form == "generate":
        tasks = [
            {"segment_index": index, "speaker_id": index % 2, "target_text": f"Line {index}.", "npy_file": "bo.npy",
             "reference_text": "What Bo says.", "output_file": f"results/{index}.wav"}
            for index in range(dice.randint(1, 4))
        ]  # fmt: skip
        return {"mode": "generate", "fish_speech_dir": "/f", "checkpoint_dir": "/c", "output_dir": "/o", "tasks": tasks}
    if form == "encode":
        speakers = [
            {"speaker_id": index, "reference_audio": "anna.wav", "reference_text": "x", "output_npy": f"{index}.npy"}
            for index in range(dice.randint(1, 3))
        ]
        return {"mode": "encode", "speakers": speakers}
    names = ("segment_index", "speaker_id", "target_text") if form == "aliases" else ("index", "speaker", "text")
    index_name, speaker_name, text_name = names
    segments = [
        {index_name: index, speaker_name: dice.choice(("anna", "bo")), text_name: f"Line {index}."}
        for index in range(dice.randint(1, 6))
    ]
    job = {
        "schema": 1,
        "speakers": [
            {"id": "anna", "references": [{"audio": "anna.wav", "text": "What Anna says."}]},
            {"id": "bo", "references": [{"codes": "bo.npy", "text": "What Bo says."}]},
        ],
        "segments": segments,
    }
    if form == "redo":
        job["redo"] = {"job_id": "film", "segments": [0], "seed": dice.choice((None, "new", 3))}
        if dice.random() < 0.7:
            job["redo"] = {"segments": [0]}
    if dice.random() < 0.5:
        job |= {"job_id": f"film {dice.randrange(50)}", "language": "en", "priority": dice.randint(-100, 100)}
        job |= {"defaults": {"temperature": 0.5, "seed": 3}, "output": {"sample_rate": 16_000, "subtype": "PCM_24"}}
    return job


def nasty_value(dice: random.Random, depth: int = 0) -> Any:
    match dice.randrange(9):
        case 0 | 1 | 2:
            return dice.choice(NASTY_TEXTS)
        case 3 | 4:
            return dice.choice(NASTY_NUMBERS)
        case 5:
            return dice.choice((None, False, [], {}, [[]], [None], {"": {}}))
        case 6 if depth < 3:
            return [nasty_value(dice, depth + 1) for _ in range(dice.randint(1, 4))]
        case 7 if depth < 3:
            return {dice.choice(NASTY_TEXTS): nasty_value(dice, depth + 1)}
        case _:
            deep: Any = 0
            for _ in range(dice.choice((2, 5, 24, 33))):
                deep = [deep] if dice.random() < 0.5 else {"x": deep}
            return deep


def spoil_tree(tree: Any, dice: random.Random) -> None:
    """Change one place of a tree, wherever it lies."""
    place = tree
    while isinstance(place, (dict, list)) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = dice.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and dice.random() < 0.75:
            place = place[key]
            continue
        match dice.randrange(6):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[dice.choice(NASTY_TEXTS)] = place.pop(key)
            case 2 if isinstance(place, list):
                place.append(place[key])
            case 3 if isinstance(place, dict):
                place[
                    dice.choice(("kind", "mode", "redo", "tasks", "text", "Text", "speaker_id", "index", "schema"))
                ] = nasty_value(dice)
            case _:
                place[key] = nasty_value(dice)
        return


def document(seed: int) -> bytes:
    """The document of a seed."""
    dice = random.Random(seed)
    if dice.random() < 0.03:
        return dice.randbytes(dice.choice((0, 1, 2, 3, 50, 5_000)))
    tree = good(dice)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3, 6))):
        spoil_tree(tree, dice)
    text = json.dumps(tree, ensure_ascii=dice.random() < 0.5, indent=dice.choice((None, None, 1)))
    if dice.random() < 0.35:
        text = spoil_text(text, dice)
    data = text.encode("utf-8", "surrogatepass")
    if dice.random() < 0.2:
        data = spoil_bytes(data, dice)
    return data


def spoil_text(text: str, dice: random.Random) -> str:
    """Faults that only the text of a document can have."""
    match dice.randrange(8):
        case 0:  # a key twice
            key = dice.choice(('"segments"', '"index"', '"text"', '"id"', '"schema"', '"mode"', '"kind"'))
            return text.replace(key, f"{key}: {dice.choice(('1', 'null', '[]', chr(34) * 2))}, {key}", 1)
        case 1:
            return text.replace(dice.choice((": 1", ": 0", "null")), f": {dice.choice(RAW_NUMBERS)}", 1)
        case 2:
            return text.replace('."', f'{dice.choice((chr(92) + "ud800", chr(92) + "udc00" + chr(92) + "ud83d"))}"', 1)
        case 3:
            depth = dice.choice((30, 31, 33, 1_000, 20_000))
            return text[:-1] + ', "x": ' + "[" * depth + "]" * dice.choice((depth, 0)) + "}"
        case 4:
            return text + dice.choice((text, "\0", "]", " // done", "\n\n", "}"))
        case 5:
            return text.replace('"', "'")
        case 6:
            return text.replace(",", ",,", 1) if dice.random() < 0.5 else text.replace("}", ",}", 1)
        case _:
            return "[" * dice.choice((1, 3, 40)) + text


def spoil_bytes(data: bytes, dice: random.Random) -> bytes:
    """Faults of the file."""
    spoilt = bytearray(data)
    match dice.randrange(7):
        case 0:
            del spoilt[dice.randrange(len(spoilt) + 1) :]
        case 1:
            for _ in range(dice.randint(1, 4)):
                spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
        case 2:
            place = dice.randrange(len(spoilt))
            spoilt[place:place] = dice.randbytes(dice.randint(1, 20))
        case 3:
            return data.decode("utf-8", "replace").encode(dice.choice(("utf-16", "utf-32", "utf-16-le", "utf-8-sig")))
        case 4:
            return b"\0" * dice.choice((1, 4096)) + data
        case 5:
            return data.replace(b"e", dice.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80")), 2)
        case _:
            return data.replace(b" ", b" " * dice.choice((10, 1_000)), 20)
    return bytes(spoilt)
