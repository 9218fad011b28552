"""What every policy of ours is made of, whatever makes its chunks: units, shapes, and what is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from dsrl.errors import DsrlError, nearest
from dsrl.networks import build_denoiser
from dsrl.normalize import Normalizer
from dsrl.policy import Obs, PolicySpec, concat_obs
from dsrl.sampler import Prediction, Sampler
from dsrl.vision import VisionEncoder

Config = TypeVar("Config")
Policy = TypeVar("Policy", bound="ChunkPolicy")


@dataclass(frozen=True)
class ChunkConfig:
    """What the config of every such policy begins with."""

    network: Mapping[str, Any] = field(default_factory=lambda: {"type": "mlp"})
    """arguments of :func:`~dsrl.networks.build_denoiser`; sizes that the spec fixes are filled in"""
    vision: Mapping[str, Any] | None = None
    """arguments of :class:`~dsrl.vision.VisionEncoder`, for observations with images"""
    obs_clip: float | None = 5.0
    """bound of the normalised observation, in standard deviations"""
    obs_double: bool = False
    """normalise observations in double precision, for those that hardly vary around a large value"""


class ChunkPolicy(nn.Module):
    """A network, how it is sampled, and the normalisers around it; subclasses add a config and a loss.

    Args:
        spec: shapes; ``noise_shape`` is ``(Tp, Da)``.
        config: of the subclass.
        sampler: how the network makes a chunk of noise.
        label_dim: numbers that the network is told beside every observation; zeros, unless :meth:`tell` says more.
    """

    kind: str
    prediction: Prediction
    """what the network predicts"""
    box: float | None
    """half-width of what the finished chunk is kept in, in normalised actions"""

    def __init__(self, spec: PolicySpec, config: ChunkConfig, sampler: Sampler, label_dim: int = 0):
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


def weighted_error(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over ``(B, ...)``, every row times its weight ``(B,)``."""
    if weight is None:
        return nn.functional.mse_loss(prediction, target)
    return (weight * (prediction - target).square().flatten(1).mean(dim=1)).mean()


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
