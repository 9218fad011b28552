"""The border to environments: chunks, histories, the steered environment, and one adapter per simulator family."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "ActionChunk": "dsrl.wrappers.chunk",
    "ObservationHistory": "dsrl.wrappers.history",
    "RewardConvention": "dsrl.wrappers.reward",
    "SeededEpisodes": "dsrl.wrappers.seeds",
    "SteeredEnv": "dsrl.wrappers.steered",
    "SteeredVecEnv": "dsrl.wrappers.steered",
    "SteeredVectorEnv": "dsrl.wrappers.steered",
    "chunked": "dsrl.wrappers.vec",
    "make_chunk_env": "dsrl.wrappers.vec",
    "make_env": "dsrl.wrappers.make",
    "make_vec_env": "dsrl.wrappers.vec",
    "resolve_env_spec": "dsrl.wrappers.make",
    "resolve_reward": "dsrl.wrappers.make",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dsrl.wrappers' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
