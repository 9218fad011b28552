"""Goal-conditioned CFGRL: an action that leads to the goal is a good one, so no value function is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from dsrl.cfgrl import Guided
from dsrl.chunk_policy import read_config
from dsrl.diffusion import DiffusionPolicy, FlowPolicy
from dsrl.guidance import Branch, Guidance, Weight
from dsrl.hindsight import Hindsight
from dsrl.normalize import Normalizer
from dsrl.policy import Obs, PolicySpec, concat_obs

Policy = TypeVar("Policy", bound="GoalPolicy")


class GoalPolicy(Guided):
    """A policy that is told a goal, guided away from what it does without one (arXiv 2505.23458).

    Weight 0 is behaviour cloning, weight 1 goal-conditioned behaviour cloning, more exaggerates what the goal changes.
    The goal is the last part of the observation, and travels to the network as a label: ``(goal, 1)``, or zeros for
    none, which say what the learned null vector of the paper's code says.

    Args:
        base: sees everything but the goal; its labels have one number more than a goal.
        guidance: weight, interval and clipping; part of the policy as its sampler is.
        goal_key: what the goal is called among the observations.
    """

    kind = "goal"

    def __init__(self, base: DiffusionPolicy | FlowPolicy, guidance: Guidance, goal_key: str = "goal"):
        if base.label_dim < 2 or goal_key in base.spec.obs_shapes:
            raise ValueError(
                f"its network takes labels of {base.label_dim} numbers and observes {list(base.spec.obs_shapes)}, but "
                f"it needs labels of a goal and one number more, and no '{goal_key}' among the observations"
            )
        super().__init__(base, guidance)
        self.goal_key, self.goal_dim = goal_key, base.label_dim - 1
        shapes = {**base.spec.obs_shapes, goal_key: (self.goal_dim,)}
        self.spec = replace(base.spec, obs_shapes=shapes, sha256="")
        self.goal_normalizer = Normalizer(self.goal_dim)

    @classmethod
    def from_config(cls: type[Policy], config: Mapping[str, Any], base: DiffusionPolicy | FlowPolicy) -> Policy:
        """Around ``base``, from what :meth:`config_dict` gave."""
        return cls(base, read_config(Guidance, config["guidance"]), config["goal_key"])

    @property
    def cond_dim(self) -> int:
        """That of the base, and the goal."""
        return self.base.cond_dim + self.goal_dim

    @torch.no_grad()
    def encode(self, obs: Obs) -> Tensor:
        """``(B, To, Do)`` or a dict, environment units -> ``(B, cond_dim)``; of the goals the last one counts."""
        obs = concat_obs(obs, self.spec).to(self.device)
        seen, goal = obs.split([self.base.spec.obs_dim, self.goal_dim], dim=-1)
        return torch.cat([self.base.encode(seen), self.goal_normalizer.normalize(goal[:, -1])], dim=-1)

    def check_shapes(self, cond: Tensor, noise: Tensor) -> None:
        """Of what :meth:`decode` is given.

        Raises:
            ValueError: when one differs.
        """
        if cond.shape != (len(noise), self.cond_dim):
            raise ValueError(
                f"cond has shape {tuple(cond.shape)}, expected {(len(noise), self.cond_dim)}; it comes from encode(obs)"
            )
        self.base.check_shapes(cond[:, : self.base.cond_dim], noise)

    def branches(self, cond: Tensor) -> tuple[Branch, Branch]:
        """One network that is told nothing, or the goal."""
        seen, goal = cond.split([self.base.cond_dim, self.goal_dim], dim=-1)
        told = self.base.tell(seen, _label(goal))
        return Branch(self.base.denoiser, self.base.tell(seen)), Branch(self.base.denoiser, told)

    def loss(
        self,
        obs: Tensor,
        chunk: Tensor,
        hindsight: Hindsight,
        generator: torch.Generator | None = None,
        drop_out: float = 0.1,
    ) -> Tensor:
        """The base's own denoising loss, told what was reached later, or nothing.

        Args:
            obs: ``(B, To, Do)`` in environment units, without a goal.
            chunk: ``(B, Tp, Da)`` in environment units.
            hindsight: of the same rows.
            generator: on the policy's device.
            drop_out: share of the rows that are told nothing.
        """
        return self.loss_towards(obs, chunk, hindsight.goal, generator, drop_out)

    def loss_towards(
        self, obs: Tensor, chunk: Tensor, goal: Tensor, generator: torch.Generator | None, drop_out: float
    ) -> Tensor:
        """The same for goals ``(B, G)`` in environment units."""
        is_told = torch.rand(len(goal), 1, generator=generator, device=goal.device) >= drop_out
        label = _label(self.goal_normalizer.normalize(goal)) * is_told
        return self.base.loss(obs, chunk, generator, label=label)

    def fit_normalizers(self, obs: Tensor, chunks: Tensor, reached: Tensor) -> None:
        """As those of the base; goals to unit variance, from ``(N, G)`` that were reached."""
        self.base.fit_normalizers(obs, chunks)
        self.goal_normalizer.fit_standard(reached)

    def config_dict(self) -> dict[str, Any]:
        """What rebuilds this policy beside its weights."""
        return {**super().config_dict(), "goal_key": self.goal_key}


class HierarchicalPolicy(GoalPolicy):
    """One policy proposes where to be some steps later on the way to the goal, another one goes there (HCFGRL).

    Both are :class:`GoalPolicy`, guided with the same weight: the higher one's chunk is a subgoal, a single step of
    ``goal_dim`` numbers, which is the goal of the lower one. The noise is that of both, ``(goal_dim + Tp * Da,)``.

    Args:
        base, guidance, goal_key: of the lower policy.
        high: observes what the base does; its own guidance weight is not used.
    """

    kind = "hierarchical"

    def __init__(
        self, base: DiffusionPolicy | FlowPolicy, guidance: Guidance, goal_key: str = "goal", *, high: GoalPolicy
    ):
        super().__init__(base, guidance, goal_key)
        expected = (1, self.goal_dim)
        if high.base.spec.noise_shape != expected or high.goal_dim != self.goal_dim:
            raise ValueError(f"the higher policy makes {high.base.spec.noise_shape} numbers, a subgoal has {expected}")
        self.high = high
        self.noise_parts = (self.goal_dim, math.prod(base.spec.noise_shape))
        self.spec = replace(self.spec, noise_shape=(sum(self.noise_parts),))

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor, weight: Weight | None = None) -> Tensor:
        """``(B, cond_dim), (B, G + Tp * Da)`` -> the executed chunk ``(B, Ta, Da)``; as :meth:`Guided.decode`.

        Raises:
            ValueError: when a shape differs.
            DsrlError: for a negative weight.
        """
        if noise.shape != (len(cond), *self.spec.noise_shape):
            raise ValueError(f"noise has shape {tuple(noise.shape)}, this policy denoises {self.spec.noise_shape} each")
        weight = self.guidance.weight if weight is None else weight
        first, second = noise.split(self.noise_parts, dim=-1)
        subgoal = self.high.decode(cond, first[:, None], weight)[:, 0]
        towards = torch.cat([cond[:, : self.base.cond_dim], self.goal_normalizer.normalize(subgoal)], dim=-1)
        return super().decode(towards, second.unflatten(1, self.base.spec.noise_shape), weight)

    def loss(
        self,
        obs: Tensor,
        chunk: Tensor,
        hindsight: Hindsight,
        generator: torch.Generator | None = None,
        drop_out: float = 0.1,
    ) -> Tensor:
        """The sum of both: chunks told the waypoint that they lead to, subgoals told the goal."""
        low = self.loss_towards(obs, chunk, hindsight.waypoint, generator, drop_out)
        return low + self.high.loss_towards(obs, hindsight.subgoal[:, None], hindsight.goal, generator, drop_out)

    def fit_normalizers(self, obs: Tensor, chunks: Tensor, reached: Tensor) -> None:
        """Of both policies."""
        super().fit_normalizers(obs, chunks, reached)
        self.high.fit_normalizers(obs, reached[:, None], reached)

    def config_dict(self) -> dict[str, Any]:
        """What rebuilds this policy beside its weights."""
        return {**super().config_dict(), "high": self.high.config_dict()}


def high_spec(spec: PolicySpec, goal_dim: int) -> PolicySpec:
    """Of the base of a higher policy: the same observations, one step of ``goal_dim`` numbers."""
    return replace(
        spec, action_dim=goal_dim, horizon=1, n_action_steps=1, action_start=0, noise_shape=(), sha256="", provenance={}
    )


def _label(goal: Tensor) -> Tensor:
    """``(B, G)``, normalised -> ``(B, G + 1)``: the goal, and that there is one."""
    return torch.cat([goal, torch.ones_like(goal[:, :1])], dim=-1)
