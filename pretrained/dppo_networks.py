"""DPPO's networks: their sizes, read from the tensors and compared with the YAML, and their names here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dsrl.errors import DsrlError, nearest
from dsrl.mlp import ACTIVATIONS
from dsrl.pretrained.dppo_files import RunConfig

Weights = Mapping[str, Tensor]

_KEYS = {
    "DiffusionMLP": """action_dim horizon_steps cond_dim time_dim mlp_dims cond_mlp_dims activation_type
        out_activation_type use_layernorm residual_style""",
    "Unet1D": """action_dim cond_dim diffusion_step_embed_dim dim dim_mults smaller_encoder cond_mlp_dims kernel_size
        n_groups activation_type cond_predict_scale groupnorm_eps""",
}
"""what upstream's classes take; another key could mean another network"""


@dataclass(frozen=True)
class Network:
    """One network of a file."""

    config: Mapping[str, Any]
    """for :func:`~dsrl.networks.build_denoiser`, less what the policy fills in"""
    weights: Weights
    """by the names of our modules"""
    outputs: int
    """numbers per chunk (MLP) or per step (U-Net)"""
    cond_dim: int
    """numbers of the observation history"""
    sizes: Mapping[str, tuple[Any, Any]]
    """key of the YAML -> what the tensors say, what upstream takes when the YAML says nothing"""

    @property
    def is_unet(self) -> bool:
        """Whether the horizon does not show in the weights."""
        return self.config["type"] == "unet"


class _Shapes:
    """Sizes of tensors by name, or an error that says which one is missing."""

    def __init__(self, weights: Weights, path: Path):
        self.weights, self.path = weights, path

    def __call__(self, name: str, ndim: int = 2) -> tuple[int, ...]:
        if name not in self.weights:
            raise DsrlError(
                f"{self.path} lacks the tensor '{name}' of DPPO's networks (has {sorted(self.weights)[:5]}); "
                "is the file complete?"
            )
        shape = tuple(self.weights[name].shape)
        if len(shape) != ndim:
            raise DsrlError(
                f"{self.path}: '{name}' has shape {list(shape)}; expected {ndim} dimensions; was it edited?"
            )
        return shape

    def count(self, pattern: str, first: int = 0) -> int:
        """How many names there are with numbers ``first``, ``first + 1``, ... in place of ``{}``."""
        n = 0
        while pattern.format(first + n) in self.weights:
            n += 1
        return n


def read_network(weights: Weights, run: RunConfig, section: str, path: Path) -> Network:
    """What the tensors say, checked against the section of the YAML.

    Args:
        weights: by upstream's names, without ``network.`` or ``actor.``.
        run: the YAML.
        section: where it describes the network.
        path: of the checkpoint, for error messages.

    Raises:
        DsrlError: when tensors are missing or unknown, YAML and tensors contradict each other, or the network is of
            another kind.
    """
    shapes = _Shapes(weights, path)
    if any(key.startswith(("backbone.", "compress")) for key in weights):
        raise DsrlError(f"{path} is a DPPO policy for images ('backbone'); only those for states can be read")
    if "time_mlp.1.weight" in weights:
        network, kind = _read_unet(shapes, run, section), "Unet1D"
    elif "time_embedding.1.weight" in weights:
        network, kind = _read_mlp(shapes, run, section), "DiffusionMLP"
    else:
        raise DsrlError(
            f"{path} holds no diffusion network: neither 'time_embedding.1.weight' (MLP) nor 'time_mlp.1.weight' "
            f"(U-Net) is in it (has {sorted(weights)[:5]}). Gaussian and image policies cannot be read"
        )
    _check_section(run, section, kind, path)
    for key, (size, default) in network.sizes.items():
        stated = run.known(f"{section}.{key}", default)
        if not run.hides(f"{section}.{key}") and _plain(stated) != _plain(size):
            raise contradiction(path, key, size, run, stated)
    return network


def contradiction(path: Path, name: str, found: Any, run: RunConfig, stated: Any) -> DsrlError:
    """The tensors say one thing, the YAML another."""
    return DsrlError(
        f"{path} has {name} {_plain(found)} by its tensors, but {run.path} says {_plain(stated)}; they belong to "
        "different runs. Give the YAML of this one with --load.config"
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _check_section(run: RunConfig, section: str, kind: str, path: Path) -> None:
    target = run.target(section)
    if target and target != kind:
        raise contradiction(path, "a network of class", kind, run, target)
    allowed = [*_KEYS[kind].split(), "_target_"]
    settings = run.get(section, {})
    if not isinstance(settings, Mapping):
        raise DsrlError(f"{run.path}: '{section}' is {settings!r}; it must describe the network")
    for key in settings:
        if key not in allowed:
            raise DsrlError(
                f"{run.path}: '{section}.{key}' is no setting of {kind} known here.{nearest(str(key), allowed)} "
                f"Known: {', '.join(allowed)}"
            )
    if run.get(f"{section}.out_activation_type", "Identity") != "Identity":
        raise DsrlError(f"{run.path}: only '{section}.out_activation_type: Identity' is supported")


def _activation(run: RunConfig, section: str) -> str:
    name = run.get(f"{section}.activation_type", "Mish")
    if name not in ACTIVATIONS:
        raise DsrlError(
            f"{run.path}: '{section}.activation_type' is {name!r}.{nearest(str(name), ACTIVATIONS)} Known: "
            f"{', '.join(ACTIVATIONS)}"
        )
    return name


# -- MLP --------------------------------------------------------------------------------------------------------------


def _read_mlp(shapes: _Shapes, run: RunConfig, section: str) -> Network:
    time_dim = shapes("time_embedding.1.weight")[1]
    n_cond = shapes.count("cond_mlp.moduleList.{}.linear_1.weight")
    cond_dims = [shapes(f"cond_mlp.moduleList.{i}.linear_1.weight")[0] for i in range(n_cond)] or None
    is_residual = "mlp_mean.layers.0.weight" in shapes.weights
    if is_residual:
        width, n_in = shapes("mlp_mean.layers.0.weight")
        blocks = shapes.count("mlp_mean.layers.{}.l1.weight", first=1)
        outputs = shapes(f"mlp_mean.layers.{blocks + 1}.weight")[0]
        hidden, has_norm = [width] * (2 * blocks + 1), "mlp_mean.layers.1.norm1.weight" in shapes.weights
    else:
        n_layers = shapes.count("mlp_mean.moduleList.{}.linear_1.weight")
        n_in = shapes("mlp_mean.moduleList.0.linear_1.weight")[1]
        *hidden, outputs = (shapes(f"mlp_mean.moduleList.{i}.linear_1.weight")[0] for i in range(n_layers))
        has_norm = "mlp_mean.moduleList.0.norm_1.weight" in shapes.weights
    cond_dim = n_in - time_dim - outputs if cond_dims is None else shapes("cond_mlp.moduleList.0.linear_1.weight")[1]
    sizes = {
        "time_dim": (time_dim, 16),
        "residual_style": (is_residual, False),
        "mlp_dims": (hidden, [256, 256]),
        "cond_mlp_dims": (cond_dims, None),
        "use_layernorm": (has_norm, False),
    }
    config = {
        "type": "mlp" if is_residual else "plain_mlp",
        "hidden_dims": hidden,
        "time_dim": time_dim,
        "activation": _activation(run, section),
        "layer_norm": has_norm,
        "cond_mlp_dims": cond_dims,
    }
    return Network(config, _rename(shapes, _MLP_NAMES), outputs, cond_dim, sizes)


_MLP_NAMES = (
    (r"time_embedding\.([13])\.(weight|bias)", r"time_embedding.\1.\2"),
    (r"cond_mlp\.moduleList\.(\d+)\.linear_1\.(weight|bias)", r"cond_mlp.linears.\1.\2"),
    (r"mlp_mean\.layers\.(\d+(?:\.(?:l1|l2|norm1|norm2))?)\.(weight|bias)", r"layers.\1.\2"),
    (r"mlp_mean\.moduleList\.(\d+)\.linear_1\.(weight|bias)", r"layers.linears.\1.\2"),
    (r"mlp_mean\.moduleList\.(\d+)\.norm_1\.(weight|bias)", r"layers.norms.\1.\2"),
)


# -- U-Net ------------------------------------------------------------------------------------------------------------


def _read_unet(shapes: _Shapes, run: RunConfig, section: str) -> Network:
    time_dim = shapes("time_mlp.1.weight")[1]
    n_levels = shapes.count("down_modules.{}.0.blocks.0.block.0.weight")
    _, outputs, kernel_size = shapes("down_modules.0.0.blocks.0.block.0.weight", 3)
    down_dims = [shapes(f"down_modules.{i}.0.blocks.0.block.0.weight", 3)[0] for i in range(n_levels)]
    is_large = "mid_modules.0.cond_encoder.0.weight" in shapes.weights
    width, cond_dim = shapes(f"mid_modules.0.cond_encoder.{0 if is_large else 1}.weight")
    cond_dim, cond_dims = cond_dim - time_dim, None
    if "cond_mlp.layers.0.weight" in shapes.weights:
        first, cond_dim = shapes("cond_mlp.layers.0.weight")
        blocks = shapes.count("cond_mlp.layers.{}.l1.weight", first=1)
        cond_dims = [first] * (2 * blocks + 1) + [shapes(f"cond_mlp.layers.{blocks + 1}.weight")[0]]
    has_norm = "final_conv.0.block.2.weight" in shapes.weights
    n_groups, eps = run.integer(f"{section}.n_groups"), run.number(f"{section}.groupnorm_eps", 1e-5)
    if eps is None:
        raise DsrlError(f"{run.path}: '{section}.groupnorm_eps' is null; leave it out for 1e-5")
    if has_norm != bool(n_groups):
        raise contradiction(shapes.path, "group normalisation", has_norm, run, f"n_groups {n_groups}")
    sizes = {
        "diffusion_step_embed_dim": (time_dim, 32),
        "dim": (down_dims[0], 32),
        "kernel_size": (kernel_size, 5),
        "cond_predict_scale": (width == 2 * down_dims[-1], False),
        "cond_mlp_dims": (cond_dims, None),
        "action_dim": (outputs, outputs),
    }
    base, mults = run.known(f"{section}.dim", 32), run.known(f"{section}.dim_mults", [1, 2, 4, 8])
    are_numbers = isinstance(mults, list) and all(isinstance(number, int) for number in (base, *mults))
    if are_numbers and [base * mult for mult in mults] != down_dims:
        raise contradiction(shapes.path, "channels", down_dims, run, f"dim {base} times dim_mults {mults}")
    if cond_dims is None:
        sizes["smaller_encoder"] = (not is_large, False)
    config = {
        "type": "unet",
        "down_dims": down_dims,
        "time_dim": time_dim,
        "kernel_size": kernel_size,
        "n_groups": n_groups or None,
        "group_norm_eps": eps,
        "activation": _activation(run, section),
        "cond_predict_scale": width == 2 * down_dims[-1],
        "large_encoder": is_large,
        "cond_mlp_dims": cond_dims,
    }
    return Network(config, _rename(shapes, _UNET_NAMES), outputs, cond_dim, sizes)


# upstream reshapes before and after its GroupNorm, which moves it from place 1 to 2
_UNET_NAMES = (
    (r"time_mlp\.([13])\.(weight|bias)", r"diffusion_step_encoder.\1.\2"),
    (r"cond_mlp\.layers\.(\d+(?:\.(?:l1|l2))?)\.(weight|bias)", r"cond_mlp.\1.\2"),
    (r"((?:\w+_modules\.[\d.]+blocks\.[01]|final_conv\.0)\.block)\.0\.(weight|bias)", r"\1.0.\2"),
    (r"((?:\w+_modules\.[\d.]+blocks\.[01]|final_conv\.0)\.block)\.2\.(weight|bias)", r"\1.1.\2"),
    (r"(\w+_modules\.[\d.]+\.(?:cond_encoder\.[0124]|residual_conv|conv)|final_conv\.1)\.(weight|bias)", r"\1.\2"),
)


def _rename(shapes: _Shapes, names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in shapes.weights.items():
        for pattern, ours in names:
            if match := re.fullmatch(pattern, key):
                renamed[match.expand(ours)] = tensor
                break
        else:
            raise DsrlError(
                f"{shapes.path}: the tensor '{key}' is none of this network's; it was added by another program, or "
                "belongs to another version of DPPO"
            )
    return renamed
