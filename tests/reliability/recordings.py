"""References as an enemy or a broken disk makes them, from a seed: headers that lie, bombs, numbers that are none."""

from __future__ import annotations

import io
import pickle
import random
import struct
from collections.abc import Iterator

import numpy as np
import soundfile

RATE = 8_000
HOUR_S = 3_600


def wav(
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    align: int | None = None,
    data: bytes = b"\0\1" * 12_000,
    claimed: int | None = None,
) -> bytes:
    """A WAV whose header says what it is told to."""
    align = channels * bits // 8 if align is None else align
    form = struct.pack(
        "<HHIIHH", tag, channels & 0xFFFF, rate & 0xFFFFFFFF, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits
    )
    size = len(data) if claimed is None else claimed
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size & 0xFFFFFFFF) + data
    return b"RIFF" + struct.pack("<I", (len(body) if claimed is None else claimed) & 0xFFFFFFFF) + body


def encoded(samples: np.ndarray, form: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", rate, 1, subtype, format=form) as file:
        for start in range(0, len(samples), rate):  # libvorbis takes what it is given on its stack, all at once
            file.write(samples[start : start + rate])
    return target.getvalue()


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that are hours of audio, or say so."""
    silence = np.zeros(HOUR_S * 2_000, dtype=np.int16)
    yield "flac-hours.flac", encoded(silence, "FLAC", rate=2_000)
    yield "ogg-hours.ogg", encoded(np.zeros(HOUR_S * RATE // 4, dtype=np.float32), "OGG", "VORBIS")
    yield "sparse-claim.wav", wav(claimed=0xFFFFFFF0)
    yield "unknown-length.wav", wav(claimed=0xFFFFFFFF)


def lies() -> Iterator[tuple[str, bytes]]:
    """Headers that no honest program writes."""
    for channels in (0, 2, 64, 65, 1_000, 65_535):
        yield f"channels-{channels}.wav", wav(channels=channels)
    for rate in (0, 1, 7, 384_001, 2**31 - 1, 2**32 - 1):
        yield f"rate-{rate}.wav", wav(rate=rate)
    for bits in (0, 1, 7, 12, 64, 65_535):
        yield f"bits-{bits}.wav", wav(bits=bits, align=2)
    for tag in (0, 2, 3, 6, 7, 17, 49, 85, 0xFFFE, 0xFFFF):
        yield f"tag-{tag}.wav", wav(tag=tag, bits=32 if tag == 3 else 16)
    for value in (np.nan, np.inf, -np.inf):
        samples = np.zeros(RATE * 2, dtype=np.float32)
        samples[RATE] = value
        yield f"samples-{value}.wav", encoded(samples, "WAV", "FLOAT")
    yield "empty.wav", b""
    yield "no-samples.wav", wav(data=b"")
    yield "shape-huge.npy", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10, 99999999999999), }")
    yield "shape-negative.npy", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10, -1), }")
    yield "shape-overflow.npy", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10, 1844674407370955162), }")
    yield "objects.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (10, 20), }", pickle.dumps([None] * 200))
    yield "nested.npy", npy("(" * 5_000 + ")" * 5_000)
    yield "code.npy", npy("__import__('os').system('true')")
    yield "fortran.npy", npy("{'descr': '<i8', 'fortran_order': True, 'shape': (10, 20), }", b"\1\0\0\0\0\0\0\0" * 200)
    yield "voids.npy", npy("{'descr': '|V0', 'fortran_order': False, 'shape': (10, 20), }")
    yield "records.npy", npy("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (10, 2), }", b"\0" * 160)
    yield "values.npy", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10, 20), }", b"\xff" * 1600)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def broken(seed: int) -> tuple[str, bytes]:
    """An honest recording, or honest codes, with some of its bytes changed, cut off or doubled."""
    dice = random.Random(seed)
    noise = np.random.default_rng(seed).normal(0, 0.1, RATE * 2).astype(np.float32)
    form, subtype = dice.choice(
        (("WAV", "PCM_16"), ("WAV", "MS_ADPCM"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None),
         ("AIFF", "PCM_24"), ("W64", "FLOAT"), ("RF64", "PCM_16"), ("CAF", "ALAC_16"), ("AU", "ULAW"), ("NPY", None))
    )  # fmt: skip
    if form == "NPY":
        target = io.BytesIO()
        np.save(target, np.full((10, 40), 7))
        content = bytearray(target.getvalue())
    else:
        content = bytearray(encoded(noise, form, subtype))
    for _ in range(dice.randint(1, 6)):
        match dice.randrange(4):
            case 0:
                content[dice.randrange(min(len(content), 200))] = dice.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256))
                )
            case 1:
                content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            case 2 if len(content) > 100:
                del content[dice.randrange(60, len(content)) :]
            case _:
                place = dice.randrange(len(content))
                content[place:place] = content[place : place + dice.randint(1, 300)]
    return f"broken-{seed}.{'npy' if form == 'NPY' else 'wav'}", bytes(content)
