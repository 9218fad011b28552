"""Diffusion and flow policies over action chunks: how they are trained, and how noise becomes actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from einops import rearrange
from torch import Tensor, nn

from dsrl.errors import DsrlError, nearest
from dsrl.networks import build_denoiser
from dsrl.normalize import Normalizer
from dsrl.policy import Obs, PolicySpec, concat_obs
from dsrl.sampler import Prediction, Sampler, ddim_steps, flow_steps
from dsrl.vision import VisionEncoder

Config = TypeVar("Config")
Policy = TypeVar("Policy", bound="ChunkPolicy")


@dataclass(frozen=True)
class DiffusionConfig:
    """A diffusion policy beside its weights. The sampler belongs to it: other steps make another policy."""

    network: Mapping[str, Any] = field(default_factory=lambda: {"type": "mlp"})
    """arguments of :func:`~dsrl.networks.build_denoiser`; sizes that the spec fixes are filled in"""
    vision: Mapping[str, Any] | None = None
    """arguments of :class:`~dsrl.vision.VisionEncoder`, for observations with images"""
    obs_clip: float | None = 5.0
    """bound of the normalised observation, in standard deviations"""
    obs_double: bool = False
    """normalise observations in double precision, for those that hardly vary around a large value"""
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
class FlowConfig:
    """A rectified-flow policy beside its weights; diffusers' convention, sigma = 1 is noise."""

    network: Mapping[str, Any] = field(default_factory=lambda: {"type": "mlp"})
    """arguments of :func:`~dsrl.networks.build_denoiser`; sizes that the spec fixes are filled in"""
    vision: Mapping[str, Any] | None = None
    """arguments of :class:`~dsrl.vision.VisionEncoder`, for observations with images"""
    obs_clip: float | None = 5.0
    """bound of the normalised observation, in standard deviations"""
    obs_double: bool = False
    """normalise observations in double precision, for those that hardly vary around a large value"""
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


class ChunkPolicy(nn.Module):
    """What all of them share: units, shapes, and the executed slice of the prediction.

    Args:
        spec: shapes; ``noise_shape`` is ``(Tp, Da)``.
        config: a dataclass with the arguments of the network, and how observations are normalised.
        sampler: how the network makes a chunk of noise.
        label_dim: numbers that the network is told beside every observation; zeros, unless :meth:`tell` says more.
    """

    kind: str
    prediction: Prediction
    """what the network predicts"""
    box: float | None
    """half-width of what the finished chunk is kept in, in normalised actions"""

    def __init__(self, spec: PolicySpec, config: Any, sampler: Sampler, label_dim: int = 0):
        super().__init__()
        self.spec = spec
        self.sampler = sampler
        self.vision = VisionEncoder(spec.obs_shapes, **config.vision) if config.vision is not None else None
        self.label_dim = label_dim
        told_dim = self.cond_dim + spec.n_obs_steps * label_dim
        sizes = {"action_dim": spec.action_dim, "horizon": spec.horizon, "cond_dim": told_dim}
        self.denoiser = build_denoiser({**config.network, **sizes})
        vision = self.vision.config if self.vision else None
        self.config: Any = replace(config, network=self.denoiser.config, vision=vision)
        obs_dtype = torch.float64 if config.obs_double else torch.float32
        low_dim = self.vision.low_dim if self.vision else spec.obs_dim
        self.obs_normalizer = Normalizer(low_dim, config.obs_clip, obs_dtype)
        self.action_normalizer = Normalizer(spec.action_dim)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.action_normalizer.offset.device

    @property
    def cond_dim(self) -> int:
        """Length of the normalised, flattened observation history, features in the place of images."""
        return self.spec.n_obs_steps * (self.vision.step_dim if self.vision else self.spec.obs_dim)

    @torch.no_grad()
    def encode(self, obs: Obs) -> Tensor:
        """``(B, To, Do)`` or a dict, environment units -> ``(B, cond_dim)``, normalised and clipped.

        Raises:
            ValueError: when a key is missing, a shape differs, a value is not finite or a pixel not in [0, 1].
        """
        return self.condition(obs)

    def condition(self, obs: Obs) -> Tensor:
        """:meth:`encode`, with gradients for what sees images."""
        obs = concat_obs(obs, self.spec).to(self.device)
        if self.vision is None:
            cond = self._normalized(obs)
        else:
            low, images = self.vision.split(obs)
            cond = self.vision(self._normalized(low), images.to(self.action_normalizer.offset))
        return rearrange(cond, "b t d -> b (t d)")

    def _normalized(self, obs: Tensor) -> Tensor:
        return self.obs_normalizer.normalize(obs.to(self.obs_normalizer.offset)).to(self.action_normalizer.offset)

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, cond_dim), (B, Tp, Da)`` -> the executed chunk ``(B, Ta, Da)`` in environment units.

        Raises:
            ValueError: when a shape differs.
        """
        self.check_shapes(cond, noise)
        return self.executed(self.sampler(self.denoiser, self.tell(cond), noise.to(cond)))

    def check_shapes(self, cond: Tensor, noise: Tensor) -> None:
        """Of what :meth:`decode` is given.

        Raises:
            ValueError: when one differs.
        """
        spec = self.spec
        if noise.ndim != 3 or noise.shape[1:] != spec.noise_shape:
            expected = f"(B, {spec.horizon}, {spec.action_dim})"
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but this policy denoises {expected}; use NoiseSpace.to_noise"
            )
        if cond.shape != (len(noise), self.cond_dim):
            raise ValueError(
                f"cond has shape {tuple(cond.shape)}, expected {(len(noise), self.cond_dim)}; it comes from encode(obs)"
            )

    def executed(self, chunk: Tensor) -> Tensor:
        """``(B, Tp, Da)``, normalised -> what is executed of it, ``(B, Ta, Da)`` in environment units."""
        start = self.spec.action_start
        return self.action_normalizer.unnormalize(chunk[:, start : start + self.spec.n_action_steps])

    def tell(self, cond: Tensor, label: Tensor | None = None) -> Tensor:
        """Put ``label (B, label_dim)``, or zeros, beside every observation in ``cond (B, cond_dim)``.

        Raises:
            ValueError: when the network takes no label of this length.
        """
        if label is None and not self.label_dim:
            return cond
        label = cond.new_zeros(len(cond), self.label_dim) if label is None else label.to(cond)
        if label.shape != (len(cond), self.label_dim):
            raise ValueError(f"label has shape {tuple(label.shape)}, the network takes {(len(cond), self.label_dim)}")
        seen = rearrange(cond, "b (t d) -> b t d", t=self.spec.n_obs_steps)
        return torch.cat([seen, label[:, None].expand(-1, self.spec.n_obs_steps, -1)], dim=-1).flatten(1)

    def sample(self, obs: Obs, noise: Tensor) -> Tensor:
        """``decode(encode(obs), noise)``."""
        return self.decode(self.encode(obs), noise)

    def fit_normalizers(self, obs: Tensor, chunks: Tensor) -> None:
        """Observations to unit variance, actions to [-1, 1], from ``(N, To, Do)`` and ``(N, Tp, Da)``.

        Images are left in [0, 1].
        """
        self.obs_normalizer.fit_standard(self.vision.split(obs)[0] if self.vision else obs)
        self.action_normalizer.fit_min_max(chunks)

    def freeze(self: Policy) -> Policy:
        """Evaluation mode, no gradients."""
        return self.eval().requires_grad_(False)

    def config_dict(self) -> dict[str, Any]:
        """The config as JSON-able values."""
        return asdict(self.config)


class DiffusionPolicy(ChunkPolicy):
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

    def loss(
        self,
        obs: Obs,
        chunk: Tensor,
        generator: torch.Generator | None = None,
        *,
        label: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the prediction at random noise levels.

        Args:
            obs: ``(B, To, Do)`` in environment units.
            chunk: ``(B, Tp, Da)`` in environment units.
            generator: on the policy's device.
            label: ``(B, label_dim)``, what the network is told.
            weight: ``(B,)`` of each row in the mean.
        """
        cond, x0 = self.condition(obs), self.action_normalizer.normalize(chunk)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        t = torch.randint(self.config.train_steps, (len(x0),), generator=generator, device=x0.device)
        noisy = self.train_scheduler.add_noise(x0, noise, t)
        target = {
            "epsilon": lambda: noise,
            "sample": lambda: x0,
            "v_prediction": lambda: self.train_scheduler.get_velocity(x0, noise, t),
        }[self.config.prediction_type]()
        return weighted_error(self.denoiser(noisy, t, self.tell(cond, label)), target, weight)


class FlowPolicy(ChunkPolicy):
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

    def loss(
        self,
        obs: Obs,
        chunk: Tensor,
        generator: torch.Generator | None = None,
        *,
        label: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the velocity; arguments as in :meth:`DiffusionPolicy.loss`."""
        cond, x0 = self.condition(obs), self.action_normalizer.normalize(chunk)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        sigma = torch.rand(len(x0), 1, 1, generator=generator, device=x0.device, dtype=x0.dtype)
        # x_sigma = (1 - sigma) x0 + sigma noise, so dx/dsigma = noise - x0
        told, time = self.tell(cond, label), sigma.flatten() * self.config.train_steps
        return weighted_error(self.denoiser(torch.lerp(x0, noise, sigma), time, told), noise - x0, weight)


def weighted_error(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over ``(B, ...)``, every row times its weight ``(B,)``."""
    if weight is None:
        return nn.functional.mse_loss(prediction, target)
    return (weight * (prediction - target).square().flatten(1).mean(dim=1)).mean()


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


def read_config(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """A config dataclass from a mapping.

    Raises:
        DsrlError: for an unknown key, naming the nearest known one.
    """
    known = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise DsrlError(f"{cls.__name__} has no field '{key}'.{nearest(key, known)}")
    return cls(**values)
