"""``dsrl report``: one page about one run or many, that needs no network and no other file."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from dsrl import __version__
from dsrl import report_page as page
from dsrl import report_sections as sections
from dsrl.compare import BASE
from dsrl.config import safety_config
from dsrl.errors import DsrlError
from dsrl.files import write_text
from dsrl.film_strip import Filmer
from dsrl.limits import within
from dsrl.policy import FrozenPolicy
from dsrl.pretrained.hub import is_address
from dsrl.report_data import Run, Task, group, not_comparable, read_runs
from dsrl.steered import SteeredPolicy


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about finished or unfinished runs."""

    runs: tuple[Path, ...]
    """run folders; seeds of one method are drawn together"""
    out: Path | None = None
    """page to write; left out: report.html, in the run folder where there is one run, else here"""
    strips: int = 3
    """initial states of which a film strip is shown, base against steered; needs the simulator; 0 leaves them out"""
    strip_runs: int = 2
    """runs, the first ones, of which there are film strips"""
    device: str = "cpu"
    """on which the policies play for the film strips"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise DsrlError("dsrl report needs at least one run folder, such as runs/<env>/<algo>/<time>_seed0")
        if pushed := [str(path) for path in self.runs if is_address(path)]:
            raise DsrlError(f"{pushed[0]}: a report is made from run folders on the disk; a pushed run carries its own")
        within(self, "[0, inf)", "strips", "strip_runs")


def report(config: ReportConfig) -> None:
    """``dsrl report``"""
    runs = read_runs(config.runs)
    out = config.out or (runs[0].folder.path if len(runs) == 1 else Path()) / "report.html"
    if out.is_dir():
        raise DsrlError(f"--out {out} is a folder; name a file in it, such as {out / 'report.html'}")
    text = build(runs, config, films={r.name: films(r, config) for r in runs[: config.strip_runs] if config.strips})
    write_text(out, text)
    console = Console(soft_wrap=True)
    for task in group(runs):
        for words, _ in sections.verdicts(task):
            console.print(f"{task.name}: {words}", markup=False)
    console.print(f"wrote {out} ({len(text.encode()) / 1e6:.1f} MB)", markup=False)


def build(runs: list[Run], config: ReportConfig, films: dict[str, str] | None = None) -> str:
    """The page; ``films`` are the film strips of some runs, as HTML."""
    tasks = group(runs)
    title = (
        f"Steering {' and '.join(task.name for task in tasks)}" if len(tasks) < 4 else f"Steering {len(tasks)} tasks"
    )
    body = "".join(page.paragraph(words, "note") for words in not_comparable(tasks))
    body += "".join(_task(task, films or {}, alone=len(tasks) == 1) for task in tasks)
    body += page.heading(2, "Every number, and how to make it again")
    body += "".join(sections.evaluations(run) for run in runs)
    body += "".join(sections.provenance(run) for run in runs)
    return page.page(title, body, f"Written by dsrl {__version__}. Intervals are 95 %; see docs/evaluation.md.")


def _task(task: Task, films: dict[str, str], alone: bool) -> str:
    parts = [] if alone else [page.heading(2, task.name)]
    parts += [page.paragraph(words, f"verdict {kind}") for words, kind in sections.verdicts(task)]
    parts.append(sections.learning_curves(task))
    parts.append(sections.finals(task))
    parts += [page.heading(2 if alone else 3, "What the agent does with the noise"), sections.noise_section(task)]
    parts += [page.heading(2 if alone else 3, "Where it fails"), sections.starts_section(task)]
    shown = [films[run.name] for run in task.runs if run.name in films]
    parts += [page.heading(2 if alone else 3, "Film strips"), *shown] if shown else []
    return "".join(parts)


def films(run: Run, config: ReportConfig) -> str:
    """Film strips of a run, or a sentence saying why there are none."""
    from dsrl.commands import load_run

    if run.env.family == "gymnasium" and ":" in run.env.name:  # gymnasium would import what a file names
        return page.paragraph(f"{run.name}: no film strips of {run.env.name}: that would import a module", "soft")
    try:
        steered, env = load_run(run.folder.path, "final", config.device)
        reward = str(run.config.get("reward", "auto"))
        with closing(Filmer(env, steered.base, reward, safety_config(run.config))) as filmer:
            return page.heading(3, run.name) + _strips(run, filmer, steered, config.strips)
    except DsrlError as error:
        return page.paragraph(f"{run.name}: no film strips: {error}", "soft")


def _strips(run: Run, filmer: Filmer, steered: SteeredPolicy, count: int) -> str:
    seed = int((run.comparison or {}).get("seed", 400_000_000))
    parts = []
    for state, why in _telling_states(run, count):
        acts: list[tuple[str, FrozenPolicy, float]] = [("base", steered.base, 1.0)]
        acts.append(("steered", steered, steered.acting_scale))
        for name, policy, scale in acts:
            repeats = int((run.comparison or {}).get("repeats", 1)) if name == "base" else 1
            film = filmer.play(policy, seed, state, repeats=repeats, noise_scale=scale)
            outcome = "succeeds" if film.success else "fails"
            parts.append(
                page.strip(f"{name} on seed {seed + state} {outcome} in {film.steps[-1]} env steps{why}", film)
            )
    return "".join(parts)


def _telling_states(run: Run, count: int) -> list[tuple[int, str]]:
    """The first initial state of each kind of outcome; without recorded episodes the first ones."""
    kept = run.episodes
    if kept is None or not {BASE, "steered"} <= set(kept.policies):
        return [(i, "") for i in range(count)]
    base, steered = (kept.of(name).astype(bool) for name in (BASE, "steered"))
    kinds = {
        " (the first that only the steered policy solves)": ~base & steered,
        " (the first that only the base policy solves)": base & ~steered,
        " (the first that neither solves)": ~base & ~steered,
        " (the first that both solve)": base & steered,
    }
    return [(int(np.argmax(which)), why) for why, which in kinds.items() if which.any()][:count]
