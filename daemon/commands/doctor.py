"""``dubd doctor``: prints what ``daemon.doctor`` finds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from daemon.commands.invocation import ExitCode, Invocation
from daemon.commands.showing import console, plain, plural
from daemon.doctor import Finding, examine, without_settings

MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}


def execute(invocation: Invocation, *, as_json: bool) -> int:
    findings = find(invocation)
    works = all(finding.level != "fail" for finding in findings)
    if as_json:
        rows = [
            {"check": finding.check, "level": finding.level, "message": finding.message, "mend": finding.mend}
            for finding in findings
        ]
        print(json.dumps({"ok": works, "findings": rows}, ensure_ascii=False, indent=1))
    else:
        show(findings)
    return ExitCode.OK if works else ExitCode.FAILED


def find(invocation: Invocation) -> list[Finding]:
    """Every finding. A mistaken configuration is one too, and what can be checked without it is checked."""
    from pathlib import Path

    from daemon.config import ConfigError, load_settings

    try:
        settings = load_settings(
            config_file=invocation.config_file, environ=os.environ, overrides=invocation.overrides, cwd=Path.cwd()
        )
    except ConfigError as error:
        mistakes = [
            Finding.fail("configuration", f"{problem.where}: {problem.message}", problem.mend)
            for problem in error.problems
        ]
        return [*mistakes, *without_settings()]
    return examine(settings, os.environ)


def show(findings: Sequence[Finding]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    terminal = console()
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark, style = MARKS[finding.level]
        first, *more = finding.message.splitlines() or [""]
        terminal.print(Text.assemble((mark, style), f" {finding.check:<{width}}  {plain(first)}"))
        indent = len(mark) + width + 3
        for line in more:
            terminal.print(Padding(Text(plain(line), style="dim"), (0, 0, 0, indent), expand=False))
        if finding.mend and finding.level != "ok":
            terminal.print(
                Padding(Text(f"\N{RIGHTWARDS ARROW} {plain(finding.mend)}"), (0, 0, 0, indent), expand=False)
            )
    failures = sum(finding.level == "fail" for finding in findings)
    warnings = sum(finding.level == "warn" for finding in findings)
    verdict = "The daemon can work." if not failures else "The daemon could not work."
    terminal.print(f"\n{verdict} {plural(failures, 'failure')}, {plural(warnings, 'warning')}.")
