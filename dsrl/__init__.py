"""dsrl: reinforcement-learning fine-tuning of frozen diffusion and flow policies through their noise."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# name -> module; imported on first use, so that `import dsrl` stays light
_EXPORTS = {
    "DsrlError": "dsrl.errors",
    "EnvSpec": "dsrl.env_spec",
    "FrozenPolicy": "dsrl.policy",
    "PolicySpec": "dsrl.policy",
    "NoiseSpace": "dsrl.noise",
    "DiffusionPolicy": "dsrl.diffusion",
    "FlowPolicy": "dsrl.diffusion",
    "SteeredPolicy": "dsrl.steered",
    "load_policy": "dsrl.pretrained",
    "save_policy": "dsrl.pretrained",
    "make_env": "dsrl.wrappers",
    "make_vec_env": "dsrl.wrappers",
    "SteeredVecEnv": "dsrl.wrappers",
    "SteeredVectorEnv": "dsrl.wrappers",
    "SteeredEnv": "dsrl.wrappers",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dsrl' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
