"""What a policy does when it is sampled, for people who have just got hold of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dsrl.policy import FrozenPolicy
from dsrl.vision import image_keys

BATCH, SEEN = 64, 8
"""observations; so many with images, which take longer"""


@torch.no_grad()
def verify(policy: FrozenPolicy, seed: int = 0) -> list[tuple[str, str]]:
    """Sample ``BATCH`` chunks twice, and say what came out, as rows of name and value.

    Observations are drawn where the policy's normaliser expects them: normally distributed around its offset, pixels
    uniformly from 0 to 1. They are not those of a task, so ranges and shares are a first look and no evaluation.
    """
    generator = torch.Generator().manual_seed(seed)
    obs = _draw(policy, generator)
    noise = torch.randn(len(obs), *policy.spec.noise_shape, generator=generator).to(policy.device)
    chunk = policy.sample(obs, noise)
    again = policy.sample(obs, noise)
    alone = policy.sample(obs[:1], noise[:1])
    other = policy.sample(obs, noise.roll(1, dims=0))
    return [
        ("deterministic", _same(chunk, again)),
        (f"batch of 1 and of {len(obs)}", _same(alone, chunk[:1])),
        ("another noise", f"moves actions by {_number((chunk - other).abs().mean())} on average"),
        *_ranges(chunk, policy),
    ]


def _draw(policy: FrozenPolicy, generator: torch.Generator) -> Tensor:
    shapes, steps = policy.spec.obs_shapes, policy.spec.n_obs_steps
    images = image_keys(shapes)
    batch = SEEN if images else BATCH
    low = {key: math.prod(shape) for key, shape in shapes.items() if key not in images}
    values = torch.randn(batch, steps, sum(low.values()), generator=generator).to(policy.device)
    normalizer: Any = getattr(policy, "obs_normalizer", None)
    if normalizer is not None and normalizer.offset.numel() == values.shape[-1]:
        values = normalizer.unnormalize(values.to(normalizer.offset))
    parts = dict(zip(low, values.split(list(low.values()), dim=-1), strict=True)) if low else {}
    for key in images:
        pixels = torch.rand(batch, steps, math.prod(shapes[key]), generator=generator)
        parts[key] = pixels.to(values)
    return torch.cat([parts[key] for key in shapes], dim=-1)


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
