"""Finds the mistakes that keep a daemon from working, before it is started, and says how to mend each.

``examine`` runs every check and never stops at the first mistake. Nothing is changed: what a check writes it removes.
"""

from __future__ import annotations

from collections.abc import Mapping

from daemon.config import Settings
from daemon.doctor import cluster, engine, folders, hooks, machine, python
from daemon.doctor.finding import Finding

__all__ = ["Finding", "examine"]


def examine(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Everything that was found, in the order in which one would mend it."""
    return [
        *configuration(settings),
        *without_settings(),
        *folders.check(settings),
        *machine.check(settings),
        *(cluster.check(settings) if settings.pool.backend == "ray" else engine.check(settings, environ)),
        *hooks.check(settings),
    ]


def without_settings() -> list[Finding]:
    """The checks that need no settings: all that can be done when these are wrong."""
    return python.check()


def configuration(settings: Settings) -> list[Finding]:
    source = f"read from {settings.source}" if settings.source else "no config.toml: every key has its default"
    return [
        Finding.ok("configuration", source),
        *(Finding.warn("configuration", warning, "Say it once.") for warning in settings.warnings),
    ]
