"""What a policy does when it is sampled, for people who have just got hold of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsrl.policy import FrozenPolicy

BATCH = 64


@torch.no_grad()
def verify(policy: FrozenPolicy, seed: int = 0) -> list[tuple[str, str]]:
    """Sample ``BATCH`` chunks twice, and say what came out, as rows of name and value.

    Observations are drawn where the policy's normaliser expects them: normally distributed around its offset. They are
    not those of a task, so ranges and shares are a first look and no evaluation.
    """
    spec, generator = policy.spec, torch.Generator().manual_seed(seed)
    obs = torch.randn(BATCH, spec.n_obs_steps, spec.obs_dim, generator=generator)
    noise = torch.randn(BATCH, *spec.noise_shape, generator=generator).to(policy.device)
    obs_normalizer: Any = getattr(policy, "obs_normalizer", None)
    obs = obs.to(policy.device)
    if obs_normalizer is not None:
        obs = obs_normalizer.unnormalize(obs.to(obs_normalizer.offset))
    chunk = policy.sample(obs, noise)
    again = policy.sample(obs, noise)
    alone = policy.sample(obs[:1], noise[:1])
    other = policy.sample(obs, noise.roll(1, dims=0))
    return [
        ("deterministic", _same(chunk, again)),
        ("batch of 1 and of 64", _same(alone, chunk[:1])),
        ("another noise", f"moves actions by {_number((chunk - other).abs().mean())} on average"),
        *_ranges(chunk, policy),
    ]


def _same(first: Tensor, second: Tensor) -> str:
    if torch.equal(first, second):
        return "yes, to the bit"
    return f"differs by up to {_number((first - second).abs().max())}"


def _ranges(chunk: Tensor, policy: FrozenPolicy) -> list[tuple[str, str]]:
    low, high = chunk.amin((0, 1)).tolist(), chunk.amax((0, 1)).tolist()
    rows = [("actions", ", ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True)))]
    normalizer: Any = getattr(policy, "action_normalizer", None)
    config: Any = getattr(policy, "config", None)
    if normalizer is not None and config.clip_sample:
        bound = config.clip_sample_range
        clipped = normalizer.normalize(chunk).abs() >= bound * (1 - 1e-5)
        rows.append(("clipped by the sampler", f"{_number(100 * clipped.float().mean())} % of the actions"))
    outside = (chunk.abs() > 1).float().mean()
    rows.append(("outside of -1 to 1", f"{_number(100 * outside)} % of the actions"))
    return rows


def _number(value: Tensor) -> str:
    return f"{float(value):.3g}"
