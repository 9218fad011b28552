"""Base policies of manipulation tasks, for ``guidance.py``: extraction from their own demos, and steering after it."""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guidance_rows import CHOICE, REPORT, Row, outcome, played
from tasks import FOLDER, TASKS, base_policy, dataset

from dsrl.evaluate import evaluation_envs
from dsrl.extract import ExtractConfig, extract
from dsrl.guidance_curve import WeightCurve, guidance_curve
from dsrl.pretrained import load_policy

__all__ = ["FOLDER", "Manipulation", "awr", "extracted", "one_fold", "steered_base", "steered_guided", "steered_weight"]

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
EPISODES = 50
TEMPERATURES = (1.0, 0.5)
"""of advantages in standard deviations"""
CLONING_STEPS = 6_000
"""of the base policies: a policy that is trained anew gets as many"""
BUDGET = {"total-env-steps": 6_000, "eval-interval": 500, "eval-episodes": 50, "final-episodes": 100}
MAX_WEIGHT = 3.0


@dataclass(frozen=True)
class Manipulation:
    """A task and where its files are."""

    name: str
    """of tasks.py"""
    bases: Path
    """of demonstrations and base policies"""
    runs: Path

    @property
    def base_policy(self) -> Path:
        """The checkpoint that is improved."""
        return base_policy(TASKS[self.name], self.bases)


def extracted(task: Manipulation, seed: int) -> list[Row]:
    """Every weight of the anchored policy; weight 0 is the base policy. No env step is taken for it."""
    curve = _curve(_guided(task, seed))
    (task.runs / f"curve-seed{seed}.json").write_text(json.dumps({"recommended": curve.recommended.weight}))
    return _rows(curve)


def one_fold(task: Manipulation, seed: int) -> list[Row]:
    """The same, of labels by values that have learned from the episodes that they rate."""
    return _rows(_curve(_extracted(task, seed, task.runs / f"one-fold-seed{seed}.pt", folds=1)))


def _curve(path: Path) -> WeightCurve:
    policy: Any = load_policy(path, device="cpu")
    with evaluation_envs(policy, n_envs=2) as envs:
        return guidance_curve(policy, envs, WEIGHTS, episodes=EPISODES, seed=REPORT, choice_seed=CHOICE)


def _rows(curve: WeightCurve) -> list[Row]:
    return [outcome(f"w {point.weight:g}", point.reported, point.choice) for point in curve.points]


def awr(task: Manipulation, seed: int) -> list[Row]:
    """A network like the base policy's, which clones good chunks more than bad ones: no guidance."""
    rows = []
    for temperature in TEMPERATURES:
        path = task.runs / f"awr-{temperature:g}-seed{seed}.pt"
        _extracted(task, seed, path, mode="awr", awr_temperature=temperature, steps=CLONING_STEPS)
        policy = load_policy(path, device="cpu")
        with evaluation_envs(policy, n_envs=2) as envs:
            rows.append(played(f"temperature {temperature:g}", policy, envs, EPISODES))
    return rows


def steered_base(task: Manipulation, seed: int) -> list[Row]:
    """Noise-aliased SAC on the base policy."""
    return _steered(task, seed, "base", task.base_policy, [])


def steered_guided(task: Manipulation, seed: int) -> list[Row]:
    """On the guided policy, at the weight that was recommended on other starts."""
    path = task.runs / f"curve-seed{seed}.json"
    if not path.exists():
        extracted(task, seed)
    weight = json.loads(path.read_text())["recommended"]
    return _steered(task, seed, "guided", _guided(task, seed), ["--load.guidance-weight", str(weight)])


def steered_weight(task: Manipulation, seed: int) -> list[Row]:
    """On the guided policy, with the weight as a part of the noise."""
    return _steered(task, seed, "weight", _guided(task, seed), ["--steer-guidance", str(MAX_WEIGHT)])


def _guided(task: Manipulation, seed: int) -> Path:
    return _extracted(task, seed, task.runs / f"guided-seed{seed}.pt")


def _extracted(task: Manipulation, seed: int, path: Path, **more: Any) -> Path:
    if path.exists():
        return path
    return extract(
        ExtractConfig(
            base_policy=task.base_policy,
            dataset=dataset(TASKS[task.name], task.bases),
            out=path,
            run_dir=path.with_suffix(""),
            seed=seed,
            device="cpu",
            overwrite=True,
            **more,
        )
    )


def _steered(task: Manipulation, seed: int, name: str, policy: Path, flags: list[str]) -> list[Row]:
    """A row per evaluation on the way."""
    run_dir = task.runs / f"steered-{name}-seed{seed}"
    settings = {"base-policy": policy, "run-dir": run_dir, "seed": seed, "n-envs": 4, "device": "cpu"}
    settings |= {"probe-episodes": 0, "final-repeats": 1, **BUDGET}
    named = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    dsrl = "import sys; from dsrl.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", dsrl, "finetune", *named, "--overwrite", *flags], check=True)
    with (run_dir / "evaluations.csv").open() as file:
        found = list(csv.DictReader(file))
    return [
        {
            "setting": f"{row['env_steps']} env steps" if row["policy"] == "steered" else "before steering",
            "success_rate": float(row["success_rate"]),
            "low": float(row["success_low"]),
            "high": float(row["success_high"]),
            "episodes": int(row["episodes"]),
            "mean_length": float(row["mean_length"]),
        }
        for row in found
    ]
