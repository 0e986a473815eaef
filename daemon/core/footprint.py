"""What a job will take on a disk, as far as that can be known before it is spoken."""

from __future__ import annotations

from daemon.core.job import Job, Segment

BYTES_A_SECOND = 12.0
"""Bytes of UTF-8 that are spoken in a second: 12 letters of a Latin script, 4 signs of Chinese. Speech is about as fast
(Pellegrino et al., "Across-language perspective on speech information rate", Language 87, 2011: 5 to 8 syllables a
second); scripts of two bytes a letter come out twice too long, which errs to the safe side."""

SECONDS_A_SEGMENT = 0.5
"""Silence around a line."""

ENGINES_RATE = 44_100
"""Hz, where the job asks for no rate: that of the fish engine, the highest of the house's."""

SAMPLE_BYTES = {"PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}

FILES_OF_A_SEGMENT = 4096
"""The block that a file takes at least, and what manifest and report say of it."""


def segment_bytes(job: Job, segment: Segment) -> float:
    """The segment's WAV, about."""
    if job.task != "speak":
        return FILES_OF_A_SEGMENT * 4
    seconds = SECONDS_A_SEGMENT + len(segment.text.encode("utf-8", "replace")) / BYTES_A_SECOND
    rate = job.output.sample_rate or ENGINES_RATE
    return FILES_OF_A_SEGMENT + seconds * rate * SAMPLE_BYTES[job.output.subtype]


def result_bytes(job: Job) -> float:
    """All that a job will leave in the outbox, about; 0 for one of embeddings, which are as many as there are
    speakers, and small."""
    return sum(segment_bytes(job, segment) for segment in job.segments)
