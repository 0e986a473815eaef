"""What a job leaves, but for what may depend on where its workers ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLACES = ("worker", "device", "generate_s")


def comparable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest, with the digests of its files, without timings and places."""
    segments = [{key: segment[key] for key in segment if key not in PLACES} for segment in manifest["segments"]]
    return {**{key: manifest[key] for key in manifest if key != "timings"}, "segments": segments}
