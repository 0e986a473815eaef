"""``dubd run``: the daemon in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
from pathlib import Path

from daemon.commands.invocation import CommandFailed, ExitCode, Invocation


def execute(invocation: Invocation) -> int:
    settings = invocation.settings()

    import anyio
    import structlog

    from daemon.config import Settings, load_settings
    from daemon.logs import configure_logging
    from daemon.service import AlreadyRunning, serve
    from daemon.threads import watch_threads

    if settings.pool.backend == "ray":
        from daemon.cluster.connection import RayMissing, require_ray

        try:
            require_ray()
        except RayMissing as error:
            raise CommandFailed(str(error), ExitCode.REJECTED) from error
    folder = Path.cwd()

    def reload() -> Settings:
        """As at the start: the same options, from the same folder."""
        return load_settings(
            config_file=invocation.config_file, environ=os.environ, overrides=invocation.overrides, cwd=folder
        )

    async def start() -> int:
        return await serve(settings, reload=reload)

    configure_logging(settings.log.level, settings.log.format)
    for warning in settings.warnings:
        structlog.get_logger("dubd").warning(warning)
    watch_threads(_tell_the_end)
    try:
        return anyio.run(start)
    except AlreadyRunning as error:
        raise CommandFailed(str(error), ExitCode.REJECTED) from error


def _tell_the_end(why: str) -> None:
    import structlog

    structlog.get_logger("dubd").error(f"{why}: the daemon ends; started again, it goes on with its jobs")
