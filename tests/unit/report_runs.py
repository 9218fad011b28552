"""Run folders as a run leaves them, without the run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from dsrl.compare import BASE
from dsrl.config import FinetuneConfig, to_dict
from dsrl.episodes import Episodes
from dsrl.run import RunFolder
from dsrl.statistics import paired_difference, wilson
from dsrl.wrappers import resolve_env_spec

STEERED = {500: 0.3, 1003: 0.5, 1500: 0.75, 2001: 0.9}
LOOKED = ("noise/rms", "noise/saturated", "noise/kl", "critic/std", "critic/gap", "critic/agreement")


def make_run(path: Path, seed: int = 0, *, finished: bool = True, env=None, curve=STEERED, **settings) -> Path:
    """A run of ``dsrl/PointReach-v0``."""
    config = replace(FinetuneConfig(run_dir=path, seed=seed), **settings)
    spec = env or resolve_env_spec("dsrl/PointReach-v0")
    base = {"path": "base.pt", "sha256": "0" * 64, "env": spec.to_robomimic(), "load": {}}
    folder = RunFolder.create(path, to_dict(config), base)
    spent = 0
    for env_steps, rate in {0: 0.25, **curve}.items():
        spent += 400
        low, high = wilson(round(20 * rate), 20)
        numbers = {"success_rate": rate, "success_low": round(low, 4), "success_high": round(high, 4)}
        numbers |= {"mean_return": rate + 0.01 * seed, "mean_length": 20.5, "held_rate": rate, "mean_jerk": 0.0123}
        row = {"env_steps": env_steps, "policy": "steered" if env_steps else "base", "deterministic": env_steps > 0}
        times = {"eval_env_steps": spent, "wall_seconds": 1.5, "cpu_seconds": 1.25}
        folder.append_evaluation({**row, "episodes": 20, **numbers, **times})
    for step in range(1, 9):
        looked = {name: 0.1 * step + 0.01 * seed for name in LOOKED}
        folder.append_metrics({"step": step, "time/env_steps": 250 * step, "rollout/success_rate": step / 9, **looked})
    if finished:
        comparison(folder, seed)
    return path


def comparison(folder: RunFolder, seed: int, episodes: int = 80) -> None:
    """The base policy fails where the second coordinate is high, the steered one almost nowhere."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(-1, 1, size=(episodes, 4)).astype(np.float32)
    base, steered = starts[:, 1] < 0, rng.uniform(size=episodes) < 0.95
    gain = paired_difference(base, steered)
    rows = [row(BASE, base), row("zero noise", base), row("steered", steered)]
    data = {"seed": 400_000_000, "repeats": 1, "env_steps": 3000, "rows": rows, "paired": gain._asdict()}
    data["paired_others"] = {"return": {"difference": 0.5, "low": 0.4, "high": 0.6, "p": 1e-4}}
    (folder.path / "comparison.json").write_text(json.dumps(data))
    success = np.stack([base, base, steered])
    numbers = {"returns": success.astype(float), "lengths": 20 + 0 * success, "jerk": 0.1 + 0.0 * success}
    names = {"columns": tuple(f"obs[{i}]" for i in range(4)), "policies": (BASE, "zero noise", "steered")}
    kept = Episodes(seeds=np.arange(episodes), starts=starts, success=success, held=success, **names, **numbers)
    kept.save(folder.path / "comparison_episodes.npz")


def row(name: str, success: np.ndarray) -> dict:
    low, high = wilson(int(success.sum()), success.size)
    rates = {"success_rate": float(success.mean()), "success_low": low, "success_high": high}
    rest = {
        "held_rate": float(success.mean()),
        "mean_return": 0.5,
        "mean_length": 20.0,
        "jerk": 0.1,
        "decision_ms": 1.5,
    }
    return {"policy": name, "deterministic": False, "episodes": int(success.size), **rates, **rest}
