"""All that an agent of stable-baselines3 is while it learns, as plain values and tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr

from dsrl.errors import DsrlError

_COUNTERS = (
    "num_timesteps",
    "_episode_num",
    "_n_updates",
    "_actor_updates",
    "learning_starts",
    "deployed",
    "_current_progress_remaining",
)
_ARRAYS = ("_last_obs", "_last_episode_starts", "_last_original_obs")


def agent_state(model: BaseAlgorithm) -> dict[str, Any]:
    """Networks, optimisers, temperature, counters, last observations, last results, and what waits to be logged.

    Neither the replay buffer nor random generators are part of it.
    """
    _, variables = model._get_torch_save_params()
    pilots = getattr(model, "pilots", None)
    logger = model.logger
    waiting = {name: float(v) for name, v in logger.name_to_value.items() if isinstance(v, int | float | np.generic)}
    return {
        "parameters": {name: _named(values) for name, values in model.get_parameters().items()},
        "variables": {name: recursive_getattr(model, name) for name in variables},
        "counters": {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)},
        "arrays": {name: getattr(model, name, None) for name in _ARRAYS},
        "episodes": list(model.ep_info_buffer or ()),
        "successes": [float(success) for success in model.ep_success_buffer or ()],
        "pilots": None if pilots is None else pilots.state(),
        "log": {
            "values": waiting,
            "counts": dict(logger.name_to_count),
            "excluded": {name: list(logger.name_to_excluded[name]) for name in waiting},
        },
    }


def restore_agent(model: BaseAlgorithm, state: Mapping[str, Any]) -> None:
    """Put what :func:`agent_state` returned into an agent that was set up in the same way.

    Raises:
        DsrlError: when its networks have other shapes.
    """
    parameters: Any = {name: _numbered(values) for name, values in state["parameters"].items()}
    try:
        model.set_parameters(parameters, exact_match=True, device=model.device)
    except (ValueError, RuntimeError, KeyError) as misfit:
        raise DsrlError(f"the networks of the checkpoint do not fit this agent: {str(misfit).splitlines()[0]}") from (
            misfit
        )
    for name, values in state["variables"].items():
        recursive_setattr(model, f"{name}.data", values.to(model.device))
    for name, value in {**state["counters"], **state["arrays"]}.items():
        setattr(model, name, value)
    window = model._stats_window_size
    model.ep_info_buffer = deque(state["episodes"], maxlen=window)
    model.ep_success_buffer = deque(state["successes"], maxlen=window)
    if state["pilots"] is not None:
        model.pilots.restore(state["pilots"])  # type: ignore[attr-defined]
    log = state["log"]
    model.logger.name_to_value.update(log["values"])
    model.logger.name_to_count.update(log["counts"])
    model.logger.name_to_excluded.update({name: tuple(formats) for name, formats in log["excluded"].items()})


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser numbers its parameters; words as keys can be written."""
    if "param_groups" not in values:
        return dict(values)
    return {**values, "state": {str(number): state for number, state in values["state"].items()}}


def _numbered(values: Mapping[str, Any]) -> dict[str, Any]:
    if "param_groups" not in values:
        return dict(values)
    return {**values, "state": {int(number): state for number, state in values["state"].items()}}
