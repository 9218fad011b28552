"""A diffusion model of trajectory windows (arXiv 2404.06356): observations, actions, rewards and ends, all at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dsrl.edm import EDM, EDMConfig, Guide
from dsrl.errors import DsrlError
from dsrl.files import replacing_folder
from dsrl.networks import build_denoiser
from dsrl.policy_guidance import PolicyGuidance, Target, drift
from dsrl.trajectory_windows import Layout, WindowCodec, Windows

_SMALL = {"kernel_size": 3, "activation": "ReLU"}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"down_dims": (16, 32), "time_dim": 16, **_SMALL},
    "small": {"down_dims": (32, 64), "time_dim": 32, **_SMALL},
    "medium": {"down_dims": (64, 128), "time_dim": 64, **_SMALL},
    "large": {"down_dims": (256, 512, 1024), "time_dim": 128},
}
"""of the U-Net, wider where the rows are (:func:`wide_enough`); small ones are trained on two cores in minutes, the
last one wants a GPU"""
_NOISE_TIME = 100.0
"""c_noise = ln(sigma) / 4 lies in [-1.6, 1.1]; the sinusoids of the U-Net are made for times of about this size"""
_FILES = ("config.json", "weights.safetensors")


@dataclass(frozen=True)
class TrajectoryConfig:
    """A trajectory model beside its weights."""

    layout: Layout
    network: Mapping[str, Any] = field(default_factory=lambda: dict(PRESETS["small"]))
    """arguments of :class:`~dsrl.networks.ConditionalUnet1D`; sizes that the layout fixes are filled in"""
    edm: EDMConfig = field(default_factory=EDMConfig)
    conditional: bool = False
    """the network can be told the first observation; without one it is told nothing"""
    drop_start: float = 0.25
    """how often a conditional network is told nothing in training"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """about the data: environment, observations, reward convention"""


def wide_enough(down_dims: Sequence[int], channels: int) -> tuple[int, ...]:
    """Channels per level of the U-Net: with few for a channel of a row it does not see all of them.

    The first level has four for each as far as 64, and two anyway; the others grow with it.
    """
    least = max(2 * channels, min(4 * channels, 64))
    factor = max(1.0, least / down_dims[0])
    return tuple(8 * math.ceil(factor * width / 8) for width in down_dims)


class TrajectoryDiffusion(nn.Module):
    """Draws windows like those of a data set, towards what a target policy would do where one is given.

    Args:
        config: layout, network and noise levels.
        low, high: limits of the actions, ``(Da,)``.
    """

    def __init__(self, config: TrajectoryConfig, low: Tensor, high: Tensor):
        super().__init__()
        layout = config.layout
        self.config = config
        self.codec = WindowCodec(layout, low, high)
        self.edm = EDM(config.edm)
        widths = wide_enough(config.network["down_dims"], layout.channels)
        self._pad = -layout.rows % 2 ** (len(widths) - 1)
        self._told = layout.obs_dim + 1 if config.conditional else 0
        sizes = {"action_dim": layout.channels, "horizon": layout.rows + self._pad, "cond_dim": self._told}
        self.network = build_denoiser({"type": "unet", **config.network, "down_dims": widths, **sizes})
        # the noise of a row, which is most of what is to be predicted, need not pass through the shortened levels
        self.gain = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, layout.channels))
        for start in self.gain[2].parameters():
            nn.init.zeros_(start)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.codec.offset.device

    def freeze(self) -> TrajectoryDiffusion:
        """Evaluation mode, no gradients."""
        return self.eval().requires_grad_(False)

    def loss(self, x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """That of EDM, on windows ``(B, L + 1, C)`` in network units."""
        start = None
        if self.config.conditional:
            start = self._tell(x0[:, 0, : self.config.layout.obs_dim])
            kept = torch.rand(len(x0), 1, generator=generator, device=x0.device) >= self.config.drop_start
            start = start * kept
        return self.edm.loss(lambda x, t: self._predict(x, t, start), x0, generator)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        generator: torch.Generator,
        target: Target | None = None,
        guidance: PolicyGuidance | None = None,
        start: Tensor | None = None,
        batch_size: int = 512,
    ) -> Windows:
        """Draw windows.

        Args:
            count: how many.
            generator: of everything that is random, on this device.
            target: the policy whose actions are wanted.
            guidance: how strongly; weight 0, like no target, gives the same windows to the bit as unguided sampling.
            start: ``(count, Do)`` first observations in environment units, for a conditional model.
            batch_size: windows that are denoised together.

        Raises:
            DsrlError: when a start is given to a model that cannot be told one.
        """
        if start is not None and not self.config.conditional:
            raise DsrlError("this trajectory model was trained without first observations; train a conditional one")
        layout = self.config.layout
        drawn = []
        for begin in range(0, count, batch_size):
            size = min(batch_size, count - begin)
            noise = torch.randn(size, layout.rows, layout.channels, generator=generator, device=self.device)
            # a generator of its own: what is drawn for the target must not change the windows
            seed = int(torch.randint(2**62, (), generator=generator, device=self.device))
            own = torch.Generator(device=self.device).manual_seed(seed)
            told = None
            if start is not None:
                where = slice(0, layout.obs_dim)
                first = start[begin : begin + size].to(self.device)
                told = self._tell((first - self.codec.offset[where]) / self.codec.scale[where])
            guide = self._guide(target, guidance, size, own)
            x = self.edm.sample(lambda x, sigma: self._denoise(x, sigma, told), noise, generator, guide)  # noqa: B023
            drawn.append(self.codec.decode(x))
        return Windows(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))

    def policy_gradient(self, x: Tensor, target: Target, sigma: float) -> Tensor:
        """Gradient of the target's log-probability with respect to the action channels of ``x``, else zero.

        Observations are held fixed. ``x (B, L + 1, C)`` is in network units, and so is the result.
        """
        raw = x * self.codec.scale + self.codec.offset
        obs = raw[..., : self.config.layout.obs_dim]
        gradient = torch.zeros_like(x)
        score = target.score(obs, self.codec.actions(x), sigma)
        gradient[:, :-1, self.config.layout.actions] = score * self.codec.action_slope(x)
        return gradient

    def _guide(
        self, target: Target | None, guidance: PolicyGuidance | None, size: int, generator: torch.Generator
    ) -> Guide | None:
        if target is None or guidance is None or guidance.weight == 0:
            return None
        settled, sigmas = target.drawn(size, generator), self.edm.sigmas

        def guide(step: int, x: Tensor, estimate: Tensor) -> Tensor:
            gradient = self.policy_gradient(estimate if guidance.at_denoised else x, settled, sigmas[step])
            return drift(x, gradient, guidance.weight_at(step, sigmas), guidance.normalize)

        return guide

    def _denoise(self, x: Tensor, sigma: float, start: Tensor | None) -> Tensor:
        levels = torch.full((len(x),), sigma, device=x.device)
        return self.edm.denoise(lambda scaled, t: self._predict(scaled, t, start), x, levels)

    def _predict(self, x: Tensor, c_noise: Tensor, start: Tensor | None) -> Tensor:
        """The raw networks, on windows that are padded with their last row to a length that can be halved."""
        told = x.new_zeros(len(x), self._told) if start is None else start
        padded = torch.cat([x, x[:, -1:].expand(-1, self._pad, -1)], dim=1) if self._pad else x
        return (
            self.network(padded, _NOISE_TIME * c_noise, told)[:, : x.shape[1]]
            + self.gain(c_noise[:, None])[:, None] * x
        )

    @staticmethod
    def _tell(obs: Tensor) -> Tensor:
        """Standardised first observations ``(B, Do)``, and that there are some."""
        return torch.cat([obs, torch.ones_like(obs[:, :1])], dim=-1)


def save_model(model: TrajectoryDiffusion, folder: Path) -> Path:
    """Write ``config.json`` and ``weights.safetensors``; the folder appears whole or not at all."""
    values = asdict(model.config)
    with replacing_folder(folder) as aside:
        (aside / _FILES[0]).write_text(json.dumps({"format": "dsrl-trajectory", "version": 1, **values}, indent=2))
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, aside / _FILES[1])
    return folder


def load_model(folder: Path, device: torch.device | str = "cpu") -> TrajectoryDiffusion:
    """What :func:`save_model` wrote, frozen.

    Raises:
        DsrlError: when it is missing, damaged, or not a trajectory model.
    """
    folder = Path(folder)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise DsrlError(f"{folder} is no trajectory model: it lacks {', '.join(missing)}; `dsrl synthesize` writes one")
    try:
        values = json.loads((folder / _FILES[0]).read_text(encoding="utf-8"))
        if values.pop("format", None) != "dsrl-trajectory" or values.pop("version", None) != 1:
            raise DsrlError(f"{folder / _FILES[0]} is not that of a trajectory model of version 1")
        values["layout"] = Layout(**values["layout"])
        values["edm"] = EDMConfig(**values["edm"])
        config = TrajectoryConfig(**values)
        weights = load_file(folder / _FILES[1])
        with torch.random.fork_rng(devices=[]):
            model = TrajectoryDiffusion(config, weights["codec.low"], weights["codec.high"])
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DsrlError(f"{folder} holds a damaged trajectory model: {reason}") from error
    return model.to(device).freeze()
