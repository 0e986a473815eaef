"""From the settings to a computation's options."""

from __future__ import annotations

from daemon import one_cpu
from daemon.config import Embeddings
from daemon.embeddings.computation import Options


def processes_of(settings: Embeddings) -> int:
    """As many as this process may use cores, unless the settings say."""
    return settings.num_processes or len(one_cpu.processors())


def options_of(settings: Embeddings) -> Options:
    return Options(
        processes=processes_of(settings),
        chunk_size=settings.chunk_size,
        min_utterances=settings.min_utterances,
        form=settings.format,
        exclude_prefixes=settings.exclude_filename_prefix,
        exclude_patterns=settings.exclude_filename_pattern,
        timeout_s=settings.timeout_s,
    )
