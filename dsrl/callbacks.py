"""What happens beside learning: counting env steps, the progress bar, evaluation and checkpoints."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from dsrl.actor_file import steered_from_state
from dsrl.errors import LossNotFinite
from dsrl.eval_budget import EvaluationPlan
from dsrl.evaluate import Evaluation, evaluate
from dsrl.files import replacing
from dsrl.policy import FrozenPolicy
from dsrl.run import RunFolder
from dsrl.steered import SteeredPolicy


class StopWatch:
    """Training time: it stands still while something else, such as an evaluation, is going on."""

    def __init__(self) -> None:
        self._banked = np.zeros(2)
        self._since = self._now()
        self._running = True

    @property
    def seconds(self) -> float:
        """Wall time on the watch."""
        return float(self._read()[0])

    @property
    def cpu_seconds(self) -> float:
        """CPU time of this process: learning and acting, without simulators in processes of their own."""
        return float(self._read()[1])

    def state(self) -> list[float]:
        """What it reads."""
        return self._read().tolist()

    def restore(self, state: list[float]) -> None:
        """Go on from there."""
        self._banked, self._since = np.array(state), self._now()

    def __enter__(self) -> StopWatch:
        self._banked, self._running = self._read(), False
        return self

    def __exit__(self, *_: object) -> None:
        self._since, self._running = self._now(), True

    def _read(self) -> np.ndarray:
        return self._banked + (self._now() - self._since if self._running else 0.0)

    @staticmethod
    def _now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])


class EnvSteps(BaseCallback):
    """Counts env steps (one timestep of the agent is a whole chunk) and ends the run when the budget is spent.

    Shows them in a progress bar with the success rate of the last training episodes, env steps per second and the
    time left.
    """

    def __init__(self, budget: int, watch: StopWatch, console: Console):
        super().__init__()
        self.env_steps = 0
        self.budget = budget
        self.watch = watch
        self._recent: deque[float] = deque(maxlen=50)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} env steps"),
            TextColumn("success {task.fields[success]}"),
            TextColumn("{task.fields[rate]:.0f} env steps/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("steering", total=budget, success="-", rate=0.0)

    def _on_training_start(self) -> None:
        self._progress.start()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            self.env_steps += info["chunk_length"]
            if "is_success" in info:
                self._recent.append(float(info["is_success"]))
        success = f"{sum(self._recent) / len(self._recent):.0%}" if self._recent else "-"
        rate = self.env_steps / max(self.watch.seconds, 1e-6)
        self._progress.update(self._task, completed=min(self.env_steps, self.budget), success=success, rate=rate)
        self.logger.record("time/env_steps", self.env_steps)
        self.logger.record("time/env_steps_per_second", rate)
        return self.env_steps < self.budget

    def _on_training_end(self) -> None:
        self.stop()

    def state(self) -> dict[str, Any]:
        """Env steps and the last results."""
        return {"env_steps": self.env_steps, "recent": list(self._recent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.env_steps = state["env_steps"]
        self._recent.extend(state["recent"])

    def stop(self) -> None:
        """Leave the terminal as it was, also after an interruption."""
        self._progress.stop()


class WarmUp(BaseCallback):
    """Lets an off-policy agent begin to learn, and to steer, after so many episodes of the base policy.

    It goes on, up to three times as long, until there are ``successes`` to learn from, where the environment reports
    them. It takes half of the budget at most, so that something is left to steer.
    """

    def __init__(self, episodes: int, steps: EnvSteps, *, successes: int = 0):
        super().__init__()
        self.episodes, self.steps, self.successes = episodes, steps, successes
        self.played, self.succeeded, self.over = 0, 0, False

    def state(self) -> dict[str, Any]:
        """How far it is."""
        return {"played": self.played, "succeeded": self.succeeded, "over": self.over}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.played, self.succeeded, self.over = state["played"], state["succeeded"], state["over"]

    def _on_step(self) -> bool:
        if self.over:
            return True
        for env in np.flatnonzero(self.locals["dones"]):
            self.played += 1
            self.succeeded += bool(self.locals["infos"][env].get("is_success", True))
        enough = self.succeeded >= self.successes or self.played >= 3 * self.episodes
        self.over = (self.played >= self.episodes and enough) or 2 * self.steps.env_steps >= self.steps.budget
        if self.over and hasattr(self.model, "learning_starts"):
            # learning begins when the count of decisions is above it, steering when it is no longer below
            self.model.learning_starts = self.num_timesteps - 1
        return True


class SteeringEvaluation(BaseCallback):
    """Scores the steered policy on the same episodes whenever the plan says so, keeps the best and the latest agent.

    A new best has the higher success rate, then the higher return, then the shorter episodes.
    """

    def __init__(
        self,
        steps: EnvSteps,
        folder: RunFolder,
        policy: FrozenPolicy,
        envs: VecEnv,
        *,
        plan: EvaluationPlan,
        seed: int,
        watch: StopWatch,
    ):
        super().__init__()
        self.steps, self.folder, self.policy, self.envs = steps, folder, policy, envs
        self.plan, self.seed, self.watch = plan, seed, watch
        self.scored_at = -1
        self._best = (-1.0, float("-inf"), 0.0)

    def state(self) -> dict[str, Any]:
        """What was scored, and when it is due again."""
        return {"scored_at": self.scored_at, "best": self._best, "plan": self.plan.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.scored_at = state["scored_at"]
        self.plan.restore(state["plan"])
        rate, mean_return, negative_length = state["best"]
        self._best = (rate, mean_return, negative_length)

    def steered(self) -> SteeredPolicy:
        """The steered policy as it is now."""
        model: Any = self.model  # which carries `steering`, see algorithms.steering_facts
        facts = {**model.steering, "deployed": getattr(model, "deployed", "actor")}
        return steered_from_state(self.policy, model.policy.state_dict(), facts)

    def record_base(self) -> Evaluation:
        """The first row of ``evaluations.csv``: the base policy at env step 0."""
        result = evaluate(self.policy, self.envs, episodes=self.plan.episodes, seed=self.seed)
        self._record(result, {**result.row(0, 0.0), "cpu_seconds": 0.0})
        return result

    def _on_rollout_start(self) -> None:
        # as soon as something has been learned, before the first steered decision
        first = self.scored_at < 0 and getattr(self.model, "_n_updates", False)
        if first and self.plan.starts(self.steps.env_steps):
            with self.watch:
                self.score()

    def _on_step(self) -> bool:
        # while the warm-up lasts, the base policy's own evaluation stands for it
        learned = self.scored_at >= 0 or not hasattr(self.model, "learning_starts")
        if self.plan.due(self.steps.env_steps) and learned:
            with self.watch:
                self.score()
        return True

    def score(self) -> Evaluation:
        """Evaluate now and save what is better."""
        check_finite(self.model, self.folder)
        steered = self.steered()
        result = evaluate(
            steered,
            self.envs,
            episodes=self.plan.episodes,
            seed=self.seed,
            name="steered",
            noise_scale=steered.acting_scale,
        )
        self.scored_at = self.steps.env_steps
        row = result.row(self.steps.env_steps, self.watch.seconds)
        self._record(result, {**row, "cpu_seconds": round(self.watch.cpu_seconds, 2)})
        self.logger.record("eval/success_rate", result.success_rate)
        self.logger.record("eval/mean_return", float(result.returns.mean()))
        self.logger.record("eval/mean_length", float(result.lengths.mean()))
        self._keep(self.folder.checkpoints / "latest.zip")
        rank = (result.success_rate, float(result.returns.mean()), -float(result.lengths.mean()))
        if rank > self._best:
            self._best = rank
            self._keep(self.folder.best)
        return result

    def _record(self, result: Evaluation, row: dict[str, Any]) -> None:
        self.plan.played(result.env_steps)
        self.folder.append_evaluation({**row, "eval_env_steps": self.plan.spent})

    def _keep(self, path: Path) -> None:
        """Save whole or not at all: a kill in the middle leaves the earlier agent."""
        with replacing(path) as aside:
            self.model.save(aside)


def check_finite(model: Any, folder: RunFolder) -> None:
    """Stop a run whose networks have gone to NaN, naming the last good agent."""
    if not all(torch.isfinite(parameter).all() for parameter in model.policy.parameters()):
        raise LossNotFinite(f"the agent's weights are no longer finite; {last_good(folder)}")


def last_good(folder: RunFolder) -> str:
    """Which agent is left when the present one is not worth keeping."""
    latest = folder.checkpoints / "latest.zip"
    return f"the last good agent is kept: {latest if latest.exists() else 'none was saved yet'}"
