"""CFGRL: one network that knows which actions are good ones, guided towards them while it is sampled."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from dsrl.chunk_policy import read_config
from dsrl.diffusion import DiffusionPolicy, FlowPolicy
from dsrl.guidance import Branch, Guidance, GuidedSampler, Weight
from dsrl.policy import Obs
from dsrl.wrapped import WrappedPolicy

Policy = TypeVar("Policy", bound="Guided")

LABEL_DIM = 2
"""of a label: ``(1, 0)`` is a bad action, ``(0, 1)`` a good one, and ``(0, 0)`` says nothing"""


class Guided(WrappedPolicy[DiffusionPolicy | FlowPolicy]):
    """What guided policies share, whatever their two branches are: a weight, and the contract of a policy.

    Args:
        base: its sampler, normalisers and box count.
        guidance: weight, interval and clipping; part of the policy as its sampler is.
    """

    kind: str
    learns_from_bad = True
    """whether its loss has a use for chunks that are bad for certain"""

    def __init__(self, base: DiffusionPolicy | FlowPolicy, guidance: Guidance):
        super().__init__(base)
        self.guidance = guidance
        self.sampler = _sampler(base, guidance)

    @classmethod
    def from_config(cls: type[Policy], config: Mapping[str, Any], base: DiffusionPolicy | FlowPolicy) -> Policy:
        """Around ``base``, from what :meth:`config_dict` gave."""
        return cls(base, read_config(Guidance, config["guidance"]))

    def check_shapes(self, cond: Tensor, noise: Tensor) -> None:
        """Of what :meth:`decode` is given.

        Raises:
            ValueError: when one differs.
        """
        self.base.check_shapes(cond, noise)

    def branches(self, cond: Tensor) -> tuple[Branch, Branch]:
        """Reference and conditional for ``cond (B, cond_dim)``."""
        raise NotImplementedError

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor, weight: Weight | None = None) -> Tensor:
        """``(B, cond_dim), (B, Tp, Da)`` -> the executed chunk ``(B, Ta, Da)`` in environment units.

        Args:
            cond, noise: as for every policy.
            weight: of the guidance, instead of its own: one number, or one per row, ``(B,)``.

        Raises:
            ValueError: when a shape differs.
            DsrlError: for a negative weight.
        """
        self.check_shapes(cond, noise)
        return self.base.executed(self.sampler(*self.branches(cond), noise.to(cond), weight))

    def sample(self, obs: Obs, noise: Tensor, weight: Weight | None = None) -> Tensor:
        """``decode(encode(obs), noise, weight)``."""
        return self.decode(self.encode(obs), noise, weight)

    def at_weight(self: Policy, weight: float) -> Policy:
        """The same networks with another weight, which is another policy.

        Raises:
            DsrlError: when it is negative.
        """
        # a shallow copy: the networks are shared
        other = copy.copy(self)
        other.guidance = replace(self.guidance, weight=weight)
        other.sampler = _sampler(self.base, other.guidance)
        other.spec = replace(self.spec, sha256="")
        return other

    def freeze(self: Policy) -> Policy:
        """Evaluation mode, no gradients."""
        return self.eval().requires_grad_(False)

    def config_dict(self) -> dict[str, Any]:
        """What rebuilds this policy beside its weights."""
        return {
            "guidance": asdict(self.guidance),
            "base": {"kind": self.base.kind, "config": self.base.config_dict()},
        }


def _sampler(base: DiffusionPolicy | FlowPolicy, guidance: Guidance) -> GuidedSampler:
    return GuidedSampler(base.sampler, guidance, base.prediction, clip_range=base.box)


class GuidedPolicy(Guided):
    """A policy that is told to act well, and exaggerates what that changes (arXiv 2505.23458).

    Being a :class:`~dsrl.policy.FrozenPolicy`, it can be evaluated, saved, and steered in turn. With weight 0 it is the
    policy that is told nothing, to the bit. That is no fair stand-in for plain behaviour cloning: only a tenth of the
    training was spent on it.

    Args:
        base: with labels of :data:`LABEL_DIM` numbers.
        guidance: weight, interval and clipping; part of the policy as its sampler is.

    Raises:
        ValueError: when the base takes other labels.
    """

    kind = "guided"
    good: Tensor

    def __init__(self, base: DiffusionPolicy | FlowPolicy, guidance: Guidance):
        if base.label_dim != LABEL_DIM:
            raise ValueError(f"its network takes labels of {base.label_dim} numbers, guidance needs {LABEL_DIM}")
        super().__init__(base, guidance)
        self.register_buffer("good", torch.tensor([[0.0, 1.0]]), persistent=False)

    def branches(self, cond: Tensor) -> tuple[Branch, Branch]:
        """One network that is told nothing, or to act well."""
        good = self.base.tell(cond, self.good.expand(len(cond), -1))
        return Branch(self.base.denoiser, self.base.tell(cond)), Branch(self.base.denoiser, good)

    def loss(
        self,
        obs: Obs,
        chunk: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        drop_out: float = 0.1,
    ) -> Tensor:
        """Of the three losses in the paper's code the one of its single-task runs on OGBench.

        Good and bad actions have a label each, which is left out with probability ``drop_out``; one pass through the
        network. (On ExORL there is no bad label, and a second pass without labels weighs 0.1; the goal-conditioned one
        has goals for labels.) A soft label is drawn anew in every step.

        Args:
            obs: ``(B, To, Do)`` in environment units.
            chunk: ``(B, Tp, Da)`` in environment units.
            labels: ``(B,)`` in [0, 1], the probability of being a good action.
            generator: on the policy's device.
            drop_out: share of the rows that are told nothing.
        """
        return self.base.loss(obs, chunk, generator, label=draw_label(labels, generator, drop_out))


def draw_label(labels: Tensor, generator: torch.Generator | None = None, drop_out: float = 0.1) -> Tensor:
    """``(B,)`` probabilities of being good -> what the network is told, ``(B, LABEL_DIM)``; zeros where dropped."""
    is_good, is_told = torch.rand(2, len(labels), generator=generator, device=labels.device)
    # a draw is below 1, so a certain label is certain
    good = (is_good < labels).to(labels)
    return torch.stack([1 - good, good], dim=-1) * (is_told >= drop_out)[:, None]
