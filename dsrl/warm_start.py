"""Synthetic decisions for the critics of noise-aliased SAC: before the first env step, and now and then after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from gymnasium.spaces import Box
from stable_baselines3.common.callbacks import BaseCallback

from dsrl.algorithms import discount_inside
from dsrl.callbacks import EnvSteps
from dsrl.config import FinetuneConfig
from dsrl.data import Trajectories
from dsrl.demo_mix import DemoMix
from dsrl.demos import decisions, fill, read_demos
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.noise_aliased import NoiseAliasedSAC
from dsrl.policy import FrozenPolicy
from dsrl.policy_guidance import PolicyGuidance
from dsrl.policy_targets import make_target
from dsrl.steered import SteeredPolicy
from dsrl.trajectory_diffusion import TrajectoryDiffusion, load_model
from dsrl.trajectory_windows import to_trajectories


class WarmStart:
    """Synthetic data of `dsrl synthesize`, mixed into the batches of an agent; their share falls to zero.

    Raises:
        DsrlError: when the data fit neither the policy nor the environment, or their model is not where they are.
    """

    def __init__(self, config: FinetuneConfig, policy: FrozenPolicy, env: EnvSpec, action_space: Box):
        assert config.warm_start is not None
        self.config, self.policy, self.action_space = config, policy, action_space
        self.path = path = config.warm_start
        self.data = read_demos(path, policy, env)
        self.agent: NoiseAliasedSAC | None = None
        self.mix: DemoMix | None = None
        self.model: TrajectoryDiffusion | None = None
        self.settings: Mapping[str, Any] = {}
        if config.synthesize_every is not None:
            self.model = load_model(path.with_suffix(".model"), policy.device)
            self.settings = _read_settings(path.with_suffix(".json"))
            steps, chunk = self.model.config.layout.length, policy.spec.n_action_steps
            if steps % chunk:
                raise DsrlError(f"{path} has windows of {steps} env steps, the policy plays chunks of {chunk}")

    def attach(self, model: NoiseAliasedSAC) -> int:
        """Give the agent the data, beside demonstrations where it has some; returns the number of decisions."""
        budget = self.config.total_env_steps // self.policy.spec.n_action_steps
        mix = DemoMix(self._buffer(model, self.data), "decay", self.config.synthetic_share, budget, model.demos)
        self.agent, self.mix, model.demos = model, mix, mix
        return mix.buffer.rows

    def callback(self, steps: EnvSteps, steered: Callable[[], SteeredPolicy]) -> Resynthesis | None:
        """What makes the data anew while the agent learns; None, when that is not wanted."""
        return None if self.model is None else Resynthesis(self, steps, steered)

    def renew(self, model: NoiseAliasedSAC, steered: SteeredPolicy, seed: int) -> int:
        """Replace the synthetic decisions by new ones, towards what the agent does now; returns their number."""
        assert self.model is not None and model.demos is not None
        half = float((self.model.codec.high - self.model.codec.low).mean()) / 2
        target = make_target(steered, "samples", self.settings["target_std"] * half)
        generator = torch.Generator(device=self.model.device).manual_seed(seed)
        guidance = PolicyGuidance(**self.settings["guidance"])
        made = to_trajectories(self.model.sample(len(self.data), generator, target, guidance), self.data)
        model.demos.buffer = self._buffer(model, made)
        return model.demos.buffer.rows

    def _buffer(self, model: NoiseAliasedSAC, data: Trajectories) -> Any:
        gamma, reward = discount_inside(self.config), self.config.reward
        cut = decisions(data, self.policy, gamma, reward, action_space=self.action_space)
        buffer = model.new_buffer(len(cut))
        fill(buffer, cut)
        return buffer


class Resynthesis(BaseCallback):
    """Makes the synthetic data anew every so many env steps, once something is steered."""

    def __init__(self, warm: WarmStart, steps: EnvSteps, steered: Callable[[], SteeredPolicy]):
        super().__init__()
        assert warm.config.synthesize_every is not None
        self.warm, self.steps, self.steered = warm, steps, steered
        self.every = self._due = warm.config.synthesize_every
        self.times = 0

    def state(self) -> dict[str, Any]:
        """When it is due, and the data that were made last."""
        mix = self.warm.mix
        assert mix is not None
        made = mix.buffer.record(0, mix.buffer.written) if self.times else None
        return {"due": self._due, "times": self.times, "made": made}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._due, self.times = state["due"], state["times"]
        if state["made"] is not None:
            assert self.warm.mix is not None and self.warm.agent is not None
            rows = len(state["made"]["reward"])
            self.warm.mix.buffer = self.warm.agent.new_buffer(rows)
            self.warm.mix.buffer.restore(rows, [state["made"]])

    def _on_step(self) -> bool:
        if self.steps.env_steps < self._due or not getattr(self.model, "_n_updates", 0):
            return True
        self._due = self.every * (self.steps.env_steps // self.every + 1)
        self.times += 1
        assert isinstance(self.model, NoiseAliasedSAC)
        with torch.random.fork_rng(devices=[]):
            rows = self.warm.renew(self.model, self.steered(), 1_000 * self.warm.config.seed + self.times)
        self.logger.record("synthetic/decisions", rows)
        self.logger.record("synthetic/times", self.times)
        return True


def _read_settings(path: Path) -> Mapping[str, Any]:
    """Guidance and width of the target, as `dsrl synthesize` used them."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return {"guidance": dict(settings["guidance"]), "target_std": float(settings["target_std"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DsrlError(
            f"{path} does not say how the synthetic data were made ({error}); `dsrl synthesize` writes it"
        ) from error
