"""Advantage-weighted regression, the baseline of CFGRL: clone the data, good actions more than bad ones.

With a diffusion or flow policy (`dsrl extract --mode awr`) it is their own loss with the weights of
:func:`awr_weights`. With a Gaussian one it is what CFGRL was compared with (arXiv 2505.23458); that mixes how a policy
is improved with what it can express, which is why both are here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsrl.chunk_policy import ChunkConfig, ChunkPolicy, read_config
from dsrl.mlp import GaussianActor
from dsrl.policy import Obs, PolicySpec
from dsrl.sampler import Sampler, Step


def awr_weights(advantage: Tensor, beta: float, cap: float = 100.0) -> Tensor:
    """``min(exp(beta * A), cap)``, ``(B,)`` (arXiv 1910.00177); beta is 1 over the temperature."""
    return (beta * advantage).clamp(max=math.log(cap)).exp()


def awr_loss(policy: Any, obs: Obs, chunk: Tensor, weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The policy's own loss, in which row ``i`` counts ``weight[i]`` times; for :class:`~dsrl.training.Trainer`."""
    return policy.loss(obs, chunk, generator, weight=weight)


def effective_share(weight: Tensor) -> float:
    """Rows that count as much as all ``(N,)`` weighted ones do together, as a share of them (Kish's sample size).

    1 is behaviour cloning; close to 0, a handful of rows are all that is learned from.
    """
    return float(weight.sum().square() / (len(weight) * weight.square().sum()))


def few_count(share: float) -> str | None:
    """What speaks against weights of this :func:`effective_share`."""
    if 0.05 <= share <= 0.9:
        return None
    what = "a few chunks are nearly all that is learned from; raise" if share < 0.05 else "all count the same; lower"
    return f"labels/effective_share is {share:.1%}: {what} --awr-temperature"


@dataclass(frozen=True)
class GaussianConfig(ChunkConfig):
    """A Gaussian policy beside its weights."""

    network: Mapping[str, Any] = field(default_factory=lambda: {"type": "gaussian"})
    """arguments of :func:`~dsrl.networks.build_denoiser`; sizes that the spec fixes are filled in"""
    clip_sample_range: float = 1.0
    """half-width of the box around the chunk, in normalised actions"""


class GaussianPolicy(ChunkPolicy):
    """``mean(obs) + std * noise``: what the others are, with a single step for a sampler.

    Args:
        spec: shapes; ``noise_shape`` is ``(Tp, Da)``.
        config: network and box.
    """

    kind = "gaussian"
    acting_scale = 0.0
    """of the noise, when it acts as well as it can: it is evaluated at its mean"""
    denoiser: GaussianActor

    def __init__(self, spec: PolicySpec, config: GaussianConfig):
        # x <- the prediction, which is the whole chunk
        whole = Step(0.0, None, None, x_y=0.0, x_x=0.0, x_m=1.0, alpha=0.0, sigma=1.0)
        super().__init__(spec, config, Sampler([whole], config.clip_sample_range))
        self.prediction, self.box = "sample", config.clip_sample_range

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: PolicySpec) -> GaussianPolicy:
        """Without weights, from what :meth:`config_dict` gave."""
        return cls(spec, read_config(GaussianConfig, config))

    def loss(
        self,
        obs: Obs,
        chunk: Tensor,
        generator: torch.Generator | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood per number of the chunk, without its constant.

        Args:
            obs: ``(B, To, Do)`` in environment units.
            chunk: ``(B, Tp, Da)`` in environment units.
            generator: not used; every policy is trained by the same call.
            weight: ``(B,)`` of each row in the mean.
        """
        mean, log_std = self.denoiser.moments(self.condition(obs))
        error = (self.action_normalizer.normalize(chunk) - mean) / log_std.exp()
        surprise = (0.5 * error.square() + log_std).flatten(1).mean(dim=1)
        return surprise.mean() if weight is None else (weight * surprise).mean()
