"""Diffusion and flow policies over action chunks: how they are trained, and how noise becomes actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dsrl.chunk_policy import ChunkConfig, ChunkPolicy, read_config, weighted_error
from dsrl.policy import Obs, PolicySpec
from dsrl.sampler import Sampler, ddim_steps, flow_steps

DenoiserCall = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(B, Tp, Da), (B,), (B, C) -> (B, Tp, Da)``"""


@dataclass(frozen=True)
class DiffusionConfig(ChunkConfig):
    """A diffusion policy beside its weights. The sampler belongs to it: other steps make another policy."""

    train_steps: int = 20
    """noise levels; few are enough for low-dimensional actions"""
    beta_schedule: str = "squaredcos_cap_v2"
    """diffusers' name of the noise schedule"""
    beta_start: float = 0.0001
    """first beta of the linear schedules; squaredcos_cap_v2 has none"""
    beta_end: float = 0.02
    """last beta of the linear schedules"""
    prediction_type: str = "epsilon"
    """what the network predicts: epsilon, sample or v_prediction"""
    sampling_steps: int = 10
    """network evaluations per chunk"""
    timestep_spacing: str = "trailing"
    """trailing starts at the last level, the only one whose marginal is N(0, I) (arXiv 2305.08891)"""
    steps_offset: int = 0
    """added to the levels of leading spacing"""
    set_alpha_to_one: bool = True
    """the last step ends without noise"""
    clip_sample: bool = True
    """keep the estimate of the clean chunk inside the box"""
    clip_sample_range: float = 1.0
    """half-width of that box, in normalised actions"""
    use_clipped_model_output: bool = True
    """recompute the noise from the clipped estimate"""
    final_clip: float | None = None
    """half-width of a box around the finished chunk, in normalised actions"""
    label_dim: int = 0
    """numbers that the network is told beside every observation"""


@dataclass(frozen=True)
class FlowConfig(ChunkConfig):
    """A rectified-flow policy beside its weights; diffusers' convention, sigma = 1 is noise."""

    train_steps: int = 1000
    """the network is told ``sigma * train_steps``"""
    shift: float = 1.0
    """moves the sampling steps towards noise when above 1"""
    sampling_steps: int = 8
    """Euler steps per chunk"""
    clip_sample: bool = True
    """keep the chunk inside the box"""
    clip_sample_range: float = 1.0
    """half-width of that box, in normalised actions"""
    label_dim: int = 0
    """numbers that the network is told beside every observation"""


class DenoisingPolicy(ChunkPolicy):
    """A chunk policy whose network learns to undo noise; subclasses say which noise, and what the network predicts."""

    def corrupt(
        self, x0: Tensor, noise: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Chunks and noise ``(B, Tp, Da)``, normalised -> noisy chunks, times ``(B,)`` and what is to be predicted."""
        raise NotImplementedError

    def loss(
        self,
        obs: Obs,
        chunk: Tensor,
        generator: torch.Generator | None = None,
        *,
        label: Tensor | None = None,
        weight: Tensor | None = None,
        denoiser: DenoiserCall | None = None,
    ) -> Tensor:
        """Mean squared error of the prediction at random noise levels.

        Args:
            obs: ``(B, To, Do)`` in environment units.
            chunk: ``(B, Tp, Da)`` in environment units.
            generator: on the policy's device.
            label: ``(B, label_dim)``, what the network is told.
            weight: ``(B,)`` of each row in the mean.
            denoiser: ``(x, t, cond)`` to train instead of the policy's own.
        """
        cond, x0 = self.condition(obs), self.action_normalizer.normalize(chunk)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        noisy, time, target = self.corrupt(x0, noise, generator)
        return weighted_error((denoiser or self.denoiser)(noisy, time, self.tell(cond, label)), target, weight)


class DiffusionPolicy(DenoisingPolicy):
    """Denoising diffusion over action chunks (arXiv 2303.04137), sampled by DDIM with eta 0.

    Args:
        spec: shapes; ``noise_shape`` is ``(Tp, Da)``.
        config: network, noise schedule and sampler.
    """

    kind = "diffusion"

    def __init__(self, spec: PolicySpec, config: DiffusionConfig):
        steps = ddim_steps(ddim_scheduler(config), config.sampling_steps, config.use_clipped_model_output)
        super().__init__(spec, config, Sampler(steps, config.final_clip), config.label_dim)
        inside = config.clip_sample_range if config.clip_sample else None
        self.prediction, self.box = (
            self.config.prediction_type,
            inside if config.final_clip is None else config.final_clip,
        )
        self.train_scheduler = DDPMScheduler(**_schedule(config))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: PolicySpec) -> DiffusionPolicy:
        """Without weights, from what :meth:`config_dict` gave."""
        return cls(spec, read_config(DiffusionConfig, config))

    def corrupt(
        self, x0: Tensor, noise: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """At random steps, where the target is what ``prediction_type`` says."""
        t = torch.randint(self.config.train_steps, (len(x0),), generator=generator, device=x0.device)
        noisy = self.train_scheduler.add_noise(x0, noise, t)
        target = {
            "epsilon": lambda: noise,
            "sample": lambda: x0,
            "v_prediction": lambda: self.train_scheduler.get_velocity(x0, noise, t),
        }[self.config.prediction_type]()
        return noisy, t, target


class FlowPolicy(DenoisingPolicy):
    """Rectified flow over action chunks (arXiv 2209.03003), sampled by Euler steps from sigma 1 to 0.

    Args:
        spec: shapes; ``noise_shape`` is ``(Tp, Da)``.
        config: network and sampler.
    """

    kind = "flow"

    def __init__(self, spec: PolicySpec, config: FlowConfig):
        final_clip = config.clip_sample_range if config.clip_sample else None
        steps = flow_steps(flow_scheduler(config), config.sampling_steps)
        super().__init__(spec, config, Sampler(steps, final_clip), config.label_dim)
        self.prediction, self.box = "flow", final_clip

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: PolicySpec) -> FlowPolicy:
        """Without weights, from what :meth:`config_dict` gave."""
        return cls(spec, read_config(FlowConfig, config))

    def corrupt(
        self, x0: Tensor, noise: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """At random sigma, where the target is the velocity."""
        sigma = torch.rand(len(x0), 1, 1, generator=generator, device=x0.device, dtype=x0.dtype)
        # x_sigma = (1 - sigma) x0 + sigma noise, so dx/dsigma = noise - x0
        return torch.lerp(x0, noise, sigma), sigma.flatten() * self.config.train_steps, noise - x0


def ddim_scheduler(config: DiffusionConfig) -> DDIMScheduler:
    """The scheduler of diffusers whose steps with eta 0 the policy takes."""
    return DDIMScheduler(
        **_schedule(config),
        set_alpha_to_one=config.set_alpha_to_one,
        steps_offset=config.steps_offset,
        timestep_spacing=config.timestep_spacing,
    )


def flow_scheduler(config: FlowConfig) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of diffusers whose steps the policy takes."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.train_steps, shift=config.shift)


def _schedule(config: DiffusionConfig) -> dict[str, Any]:
    return {
        "num_train_timesteps": config.train_steps,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "prediction_type": config.prediction_type,
        "clip_sample": config.clip_sample,
        "clip_sample_range": config.clip_sample_range,
    }
