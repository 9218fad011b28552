"""The policies that our own files hold, by kind, built from a file's config and spec."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dsrl.actor import NoiseActor
from dsrl.anchored import AnchoredPolicy
from dsrl.awr import GaussianPolicy
from dsrl.cfgrl import GuidedPolicy
from dsrl.chunk_policy import read_config
from dsrl.critics import CriticEnsemble
from dsrl.diffusion import DiffusionPolicy, FlowPolicy
from dsrl.goals import GoalPolicy, HierarchicalPolicy, high_spec
from dsrl.guidance import Guidance
from dsrl.policy import PolicySpec
from dsrl.pretrained.toy import ToyPolicy
from dsrl.steered import SelectingPolicy, SteeredPolicy
from dsrl.weighted import WeightedPolicy

Weights = Mapping[str, Tensor]
Builder = Callable[[Mapping[str, Any], PolicySpec, Weights], nn.Module]


def weights_sha256(weights: Weights) -> str:
    """Over names, types, shapes and raw bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _build_diffusion(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    _check_noise(spec)
    return DiffusionPolicy.from_config(config, spec)


def _build_flow(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    _check_noise(spec)
    return FlowPolicy.from_config(config, spec)


def _check_noise(spec: PolicySpec) -> None:
    if spec.noise_shape != (spec.horizon, spec.action_dim):
        raise ValueError(f"noise of shape {spec.noise_shape} is no chunk of {spec.horizon} x {spec.action_dim}")


def _build_gaussian(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    return GaussianPolicy.from_config(config, spec)


def _build_guided(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    base: Any = KINDS[config["base"]["kind"]](config["base"]["config"], spec, _of_base(weights))
    return GuidedPolicy.from_config(config, base)


def _build_anchored(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    base: Any = KINDS[config["base"]["kind"]](config["base"]["config"], spec, _of_base(weights))
    anchored = AnchoredPolicy.from_config(config, base)
    anchored.spec = spec
    return anchored


def _build_goal(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    policy = GoalPolicy.from_config(config, _base_without_goal(config, spec, weights))
    policy.spec = spec
    return policy


def _build_hierarchical(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    base, higher = _base_without_goal(config, spec, weights), config["high"]
    above = {key.removeprefix("high."): value for key, value in weights.items() if key.startswith("high.")}
    high_base = _base_without_goal(higher, high_spec(base.spec, base.label_dim - 1), above)
    guidance = read_config(Guidance, config["guidance"])
    policy = HierarchicalPolicy(base, guidance, config["goal_key"], high=GoalPolicy.from_config(higher, high_base))
    policy.spec = spec
    return policy


def _base_without_goal(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> Any:
    shapes = {key: shape for key, shape in spec.obs_shapes.items() if key != config["goal_key"]}
    inner = replace(spec, obs_shapes=shapes, noise_shape=())
    return KINDS[config["base"]["kind"]](config["base"]["config"], inner, _of_base(weights))


def _build_steered(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    inner = config["base"]
    base_weights = _of_base(weights)
    base_spec = replace(
        spec, noise_shape=tuple(inner["noise_shape"]), sha256=weights_sha256(base_weights), provenance={}
    )
    base: Any = KINDS[inner["kind"]](inner["config"], base_spec, base_weights)
    actor = NoiseActor(config["actor"])
    steered = SteeredPolicy(base, actor)
    if "critic" in config:
        steered = SelectingPolicy(base, actor, CriticEnsemble(**config["critic"]), config["choice"])
    steered.spec = replace(steered.spec, env=spec.env, sha256=spec.sha256, provenance=spec.provenance)
    return steered


def _build_weighted(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    inner = config["base"]
    base_spec = replace(spec, noise_shape=tuple(inner["noise_shape"]), sha256="", provenance={})
    base: Any = KINDS[inner["kind"]](inner["config"], base_spec, _of_base(weights))
    weighted = WeightedPolicy(base, config["max_weight"])
    weighted.spec = spec
    return weighted


def _of_base(weights: Weights) -> dict[str, Tensor]:
    return {key.removeprefix("base."): value for key, value in weights.items() if key.startswith("base.")}


def _build_toy(config: Mapping[str, Any], spec: PolicySpec, weights: Weights) -> nn.Module:
    return ToyPolicy()


# a builder gives the module; its weights are checked and loaded afterwards, in build_policy
KINDS: dict[str, Builder] = {
    "diffusion": _build_diffusion,
    "flow": _build_flow,
    "gaussian": _build_gaussian,
    "guided": _build_guided,
    "anchored": _build_anchored,
    "goal": _build_goal,
    "hierarchical": _build_hierarchical,
    "weighted": _build_weighted,
    "steered": _build_steered,
    "selecting": _build_steered,
    "toy": _build_toy,
}
