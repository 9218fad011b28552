"""All random generators of a process as plain values: what a run needs to go on as if it had never stopped."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import Space


def random_state(spaces: Mapping[str, Space[Any]], generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """States of Python, numpy, torch, CUDA, of the ``spaces`` that are sampled from, and of further ``generators``."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    return {
        "python": random.getstate(),
        "numpy": {"name": name, "keys": keys, "position": position, "has_gauss": has_gauss, "gauss": gauss},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "spaces": {key: space.np_random.bit_generator.state for key, space in spaces.items()},
        "generators": {key: generator.get_state() for key, generator in generators.items()},
    }


def restore_random_state(
    state: Mapping[str, Any], spaces: Mapping[str, Space[Any]], generators: Mapping[str, torch.Generator]
) -> None:
    """Put back what :func:`random_state` returned; states of GPUs that are not here are left out."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    mersenne = state["numpy"]
    np.random.set_state(
        (mersenne["name"], mersenne["keys"], mersenne["position"], mersenne["has_gauss"], mersenne["gauss"])
    )
    torch.set_rng_state(state["torch"])
    for device, kept in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(kept, device)
    for key, space in spaces.items():
        space.np_random.bit_generator.state = state["spaces"][key]
    for key, generator in generators.items():
        generator.set_state(state["generators"][key])
