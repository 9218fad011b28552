"""Policies as targets of guidance: Gaussian ones, any at all by samples, diffusion and flow ones by their score.

All of them see a window as the policy would: a decision every ``n_action_steps`` env steps, on the last
``n_obs_steps`` observations, of which those before the window repeat its first one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from dsrl.awr import GaussianPolicy
from dsrl.diffusion import DiffusionPolicy, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.guidance import clean_chunk
from dsrl.policy import FrozenPolicy, PolicySpec
from dsrl.policy_guidance import Target

TargetKind = Literal["auto", "gaussian", "samples", "score"]
Moments = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``(N, To, Do)`` -> mean and standard deviation of the executed chunk, ``(N, Ta, Da)`` each (or what broadcasts)"""
_ROWS = 16_384
"""decisions that a policy is asked about at once"""


def make_target(policy: FrozenPolicy, kind: TargetKind, std: float, samples: int = 16) -> Target:
    """The target for a policy.

    Args:
        policy: whose actions are wanted.
        kind: ``gaussian`` for a Gaussian policy, ``score`` for a diffusion or flow policy, ``samples`` for any;
            ``auto`` is the first of them that does.
        std: of the Gaussians around sampled chunks, in environment units.
        samples: of them per decision, where a log-probability is asked for.

    Raises:
        DsrlError: when the policy is not of the kind.
    """
    is_gaussian, has_score = isinstance(policy, GaussianPolicy), isinstance(policy, DiffusionPolicy | FlowPolicy)
    if kind == "auto":
        kind = "gaussian" if is_gaussian else "score" if has_score else "samples"
    fits = {"gaussian": is_gaussian, "score": has_score, "samples": True}
    if not fits[kind]:
        what = getattr(policy, "kind", type(policy).__name__)
        raise DsrlError(f"--target is {kind}, which a policy of kind '{what}' cannot be; use --target samples")
    if isinstance(policy, GaussianPolicy) and kind == "gaussian":
        return GaussianTarget(policy.spec, moments_of(policy))
    sampled = SampledTarget(policy, std, samples)
    return ScoreTarget(policy, sampled) if kind == "score" else sampled


@dataclass(frozen=True)
class GaussianTarget:
    """``N(mean(obs), std(obs)^2)``; a deterministic actor is one with a standard deviation of its own choice."""

    spec: PolicySpec
    moments: Moments

    def drawn(self, n_windows: int, generator: torch.Generator) -> GaussianTarget:
        """Nothing is random."""
        return self

    def score(self, obs: Tensor, action: Tensor, sigma: float) -> Tensor:
        """``(mean - action) / std^2``; it is not blurred."""
        mean, std = self._moments(obs, action)
        return (mean - action) / std.square()

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Of the Gaussian, before it is clipped to the limits of the actions."""
        mean, std = self._moments(obs, action)
        return (-0.5 * ((action - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def _moments(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        shape = chunked(action, self.spec)
        mean, std = (part.expand_as(shape) for part in self.moments(histories(obs, self.spec)))
        return unchunked(mean, len(action)), unchunked(std, len(action))


@dataclass(frozen=True)
class SampledTarget:
    """Gaussians of one width around chunks that the policy has sampled: any policy has these.

    Guidance draws one chunk per decision and keeps its noise while a window is denoised; log-probabilities are those of
    the mixture of ``samples`` chunks.
    """

    policy: FrozenPolicy
    std: float
    samples: int = 16
    noise: Tensor | None = None
    """``(K, decisions, *noise_shape)`` once it is drawn"""

    def drawn(self, n_windows: int, generator: torch.Generator) -> SampledTarget:
        """With one noise per decision; how many decisions a window has shows later."""
        return replace(self, noise=_Lazy(self.policy.spec.noise_shape, generator))  # type: ignore[arg-type]

    def score(self, obs: Tensor, action: Tensor, sigma: float) -> Tensor:
        """Towards the chunk that was sampled: ``(chunk - action) / std^2``."""
        if self.noise is None:
            raise ValueError("SampledTarget.drawn(...) gives the target whose noise is settled")
        seen = histories(obs, self.policy.spec)
        noise: Any = self.noise
        chunk = _sample(self.policy, seen, noise.of(len(seen)))
        return (unchunked(chunk, len(action)) - action) / self.std**2

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Per env step: that of a whole chunk under the mixture, over its length."""
        spec, seen, done = self.policy.spec, histories(obs, self.policy.spec), chunked(action, self.policy.spec)
        generator = torch.Generator(device=obs.device).manual_seed(0)
        each = []
        for _ in range(self.samples):
            noise = torch.randn(len(seen), *spec.noise_shape, generator=generator, device=obs.device)
            error = (done - _sample(self.policy, seen, noise)) / self.std
            each.append(-0.5 * error.square().flatten(1).sum(dim=1))
        constant = done[0].numel() * (math.log(self.std) + 0.5 * math.log(2 * math.pi))
        whole = torch.stack(each).logsumexp(dim=0) - math.log(self.samples) - constant
        per_step = whole[:, None].expand(-1, spec.n_action_steps) / spec.n_action_steps
        return rearrange(per_step, "(b d) t -> b (d t)", b=len(action))


class _Lazy:
    """One draw that is made when its size is known, and then stays."""

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator):
        self.shape, self.generator = shape, generator
        self.drawn: Tensor | None = None

    def of(self, rows: int) -> Tensor:
        if self.drawn is None or len(self.drawn) != rows:
            device = self.generator.device
            self.drawn = torch.randn(rows, *self.shape, generator=self.generator, device=device)
        return self.drawn


@dataclass(frozen=True)
class ScoreTarget:
    """The score of a diffusion or flow policy itself: its network, asked at the noise level of the window.

    ``d log p_sigma(y) / dy = (E[y0 | y] - y) / sigma^2`` for chunks ``y`` blurred by ``sigma``. The level is that of
    the window, in standard deviations of the policy's actions, and at least ``least``, below which a network's errors
    rule.
    """

    policy: DiffusionPolicy | FlowPolicy | Any
    sampled: SampledTarget
    """which has the log-probabilities"""
    least: float = 0.1

    def drawn(self, n_windows: int, generator: torch.Generator) -> ScoreTarget:
        """Nothing is random."""
        return self

    def score(self, obs: Tensor, action: Tensor, sigma: float) -> Tensor:
        """Of whole chunks, of which those env steps count that are executed."""
        policy, spec = self.policy, self.policy.spec
        cond = policy.encode(histories(obs, spec))
        # 1. the whole horizon around every decision; what the window does not have repeats its ends
        steps = action.shape[1]
        decision = torch.arange(0, steps, spec.n_action_steps, device=action.device)
        time = decision[:, None] - spec.action_start + torch.arange(spec.horizon, device=action.device)
        y = policy.action_normalizer.normalize(rearrange(action[:, time.clamp(0, steps - 1)], "b d t a -> (b d) t a"))
        # 2. the clean chunk that the policy sees behind it
        alpha, noise, told = noise_level(policy, max(sigma, self.least))
        x = alpha * y
        clock = torch.full((len(x),), told, device=x.device, dtype=x.dtype)
        a, b = clean_chunk(policy.prediction, alpha, noise)
        clean = a * x + b * policy.denoiser(x, clock, policy.tell(cond))
        if policy.box is not None:
            clean = clean.clamp(-policy.box, policy.box)
        # 3. what is executed of it, in environment units
        score = (clean - y) / (noise / alpha) ** 2 / policy.action_normalizer.scale
        executed = score[:, spec.action_start : spec.action_start + spec.n_action_steps]
        return unchunked(executed, len(action))

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Of Gaussians around samples."""
        return self.sampled.log_prob(obs, action)


def noise_level(policy: DiffusionPolicy | FlowPolicy, sigma: float) -> tuple[float, float, float]:
    """``(alpha, noise, time)`` of the level of a policy whose ``noise / alpha`` is next to ``sigma``."""
    if isinstance(policy, FlowPolicy):
        share = min(sigma / (1 + sigma), 0.98)
        return 1 - share, share, share * policy.config.train_steps
    kept = policy.train_scheduler.alphas_cumprod.double()  # type: ignore[attr-defined]
    ratio = ((1 - kept) / kept).sqrt()
    index = int((ratio.log() - math.log(sigma)).abs().argmin())
    return float(kept[index].sqrt()), float((1 - kept[index]).sqrt()), float(index)


def moments_of(policy: GaussianPolicy) -> Moments:
    """What a Gaussian policy executes."""

    def moments(obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = policy.denoiser.moments(policy.condition(obs))
        start = policy.spec.action_start
        std = log_std[start : start + policy.spec.n_action_steps].exp() * policy.action_normalizer.scale
        return policy.executed(mean), std

    return moments


# -- windows as decisions ---------------------------------------------------------------------------------------------


def histories(obs: Tensor, spec: PolicySpec) -> Tensor:
    """``(B, L + 1, Do)`` -> what the policy sees at its decisions, ``(B * D, To, Do)``.

    Raises:
        DsrlError: when the window is not a whole number of chunks.
    """
    steps = obs.shape[1] - 1
    if steps % spec.n_action_steps:
        raise DsrlError(
            f"--window is {steps} env steps, the policy plays chunks of {spec.n_action_steps}; give a multiple of that"
        )
    decision = torch.arange(0, steps, spec.n_action_steps, device=obs.device)
    time = decision[:, None] - spec.n_obs_steps + 1 + torch.arange(spec.n_obs_steps, device=obs.device)
    return rearrange(obs[:, time.clamp(min=0)], "b d t o -> (b d) t o")


def chunked(action: Tensor, spec: PolicySpec) -> Tensor:
    """``(B, L, Da)`` -> ``(B * D, Ta, Da)``."""
    return rearrange(action, "b (d t) a -> (b d) t a", t=spec.n_action_steps)


def unchunked(chunk: Tensor, n_windows: int) -> Tensor:
    """``(B * D, Ta, Da)`` -> ``(B, L, Da)``."""
    return rearrange(chunk, "(b d) t a -> b (d t) a", b=n_windows)


def _sample(policy: FrozenPolicy, seen: Tensor, noise: Tensor) -> Tensor:
    parts = zip(seen.split(_ROWS), noise.split(_ROWS), strict=True)
    return torch.cat([policy.sample(obs, part) for obs, part in parts])
