"""``dsrl doctor``: what of this machine works, and how to mend what does not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsrl.checks import OK, PROBLEM, WARNING, Check, check_machine, check_packages, check_video
from dsrl.limits import within
from dsrl.plugins import ENVS, POLICIES, load_plugins
from dsrl.trial import check_backends, check_simulators

_COLOURS = {OK: "green", WARNING: "yellow", PROBLEM: "red"}


@dataclass(frozen=True)
class DoctorConfig:
    """Look at versions, GPU, rendering, simulators, disk and plugins; every problem comes with its fix.

    Leaves with 0 where everything that is installed works, with 1 where something does not. What is not installed, and
    what only slows things down, is a warning.
    """

    json: bool = False
    """print JSON"""
    runs: Path = Path("runs")
    """the folder that runs are written to"""
    timeout: float = 120.0
    """seconds that a simulator or a GL back-end may take"""

    def __post_init__(self) -> None:
        within(self, "(0, inf)", "timeout")


def doctor(config: DoctorConfig) -> int:
    """``dsrl doctor``; returns the exit code."""
    console = Console(stderr=config.json)  # whatever else is said, standard output is JSON only
    checks: list[Check] = []
    with console.status("") as status:
        for stage, found in _stages(config):
            status.update(f"looking at {stage}")
            checks += found
    failed = any(check.status == PROBLEM for check in checks)
    if config.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        _print(checks, console)
    return int(failed)


def _stages(config: DoctorConfig) -> Iterator[tuple[str, Iterable[Check]]]:
    """Lazily: each is announced before it is looked at."""
    yield "packages", check_packages()
    yield "the machine", check_machine(config.runs)
    yield "plugins", check_plugins()
    yield "rendering", check_backends(config.timeout)
    yield "videos", check_video()
    yield "simulators", check_simulators(config.timeout)


def check_plugins() -> list[Check]:
    """Whether what other packages add can be loaded."""
    from dsrl.pretrained.formats import Format
    from dsrl.wrappers.families import Family

    kinds: dict[str, Any] = {POLICIES: Format, ENVS: Family}
    checks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said here
        for group, kind in kinds.items():
            for plugin in load_plugins(group, kind):
                name = f"{group} {plugin.name}"
                if plugin.loaded:
                    checks.append(Check("plugins", name, OK, plugin.package))
                else:
                    fix = f"mend or uninstall {plugin.package.split()[0]}"
                    checks.append(Check("plugins", name, PROBLEM, f"{plugin.package}: {plugin.error}", fix))
    return checks


def _print(checks: Sequence[Check], console: Console) -> None:
    table = Table("", "", "found")
    group = ""
    for check in checks:
        if check.group != group and group:
            table.add_section()
        group = check.group
        colour = _COLOURS[check.status]
        table.add_row(check.name, f"[{colour}]{check.status}[/]", escape(check.found))
    console.print(table)
    for status in (WARNING, PROBLEM):
        for check in (check for check in checks if check.status == status):
            colour = _COLOURS[status]
            words = escape(f"{check.name}: {check.found}. Fix: {check.fix}")
            console.print(f"[{colour}]{status}[/]: {words}", highlight=False, soft_wrap=True)  # to be copied
    problems = sum(check.status == PROBLEM for check in checks)
    console.print("no problems" if not problems else f"{problems} problem{'s' * (problems > 1)}")
