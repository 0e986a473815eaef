"""The sample job of ``dubd demo``: night_ferry.json, a scene of six speakers and 46 lines, with a reference each.

The scene was written for this project. Its references are spoken by espeak-ng: no living person's voice is in them.
``make_references.py`` beside this file makes them again.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

JOB_FILE_NAME = "night_ferry.json"


def sample_folder() -> Traversable:
    """Where night_ferry.json and its references are; also when the package is not laid out as plain files."""
    return files(__name__)
