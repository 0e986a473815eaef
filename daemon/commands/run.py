"""``dubd run``: the daemon in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

from daemon.commands.invocation import Invocation


def execute(invocation: Invocation) -> int:
    settings = invocation.settings()

    import anyio

    from daemon.service import serve

    async def start() -> int:
        return await serve(settings, config_args=invocation)

    return anyio.run(start)
