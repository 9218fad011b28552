"""The actor inside an agent of stable-baselines3, in memory or in its zip, read without running anything."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dsrl.actor import NoiseActor
from dsrl.critics import CriticEnsemble
from dsrl.errors import DsrlError, OtherBasePolicy
from dsrl.policy import FrozenPolicy
from dsrl.steered import SelectingPolicy, SteeredPolicy

AGENT, WEIGHTS = "agent.json", "agent.safetensors"
"""of an agent that is a folder: no pickle, not even one that is read with care"""
_FORMAT, _VERSION = "dsrl-agent", 1


@dataclass(frozen=True)
class _Layout:
    """Where an algorithm keeps its actor in ``policy.state_dict()``."""

    trunk: str
    mean: str
    log_std: str
    activation: str = ""
    squash: bool = False


_LAYOUTS = {
    # its file says how it was built
    "na": _Layout("deployed_actor.trunk.", "deployed_actor.mean.", "deployed_actor.log_std"),
    "sac": _Layout("actor.latent_pi.", "actor.mu.", "actor.log_std", "silu", squash=True),
    "ppo": _Layout("mlp_extractor.policy_net.", "action_net.", "log_std", "tanh", squash=False),
}

# what reading a file that is no agent may raise; UnpicklingError is torch's refusal to run what stands in it
_DAMAGE = (
    zipfile.BadZipFile, pickle.UnpicklingError, OSError, EOFError,
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, SafetensorError,
)  # fmt: skip


def actor_from_state(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> NoiseActor:
    """Copy the actor out of a policy's state dict.

    Args:
        state: ``model.policy.state_dict()``.
        facts: ``model.steering``: the algorithm, the bound of the noise, and the noise space where it is not full.
    """
    layout = _LAYOUTS[facts["algo"]]
    picked = {"trunk." + key.removeprefix(layout.trunk): state[key] for key in state if key.startswith(layout.trunk)}
    picked |= {"mean." + key.removeprefix(layout.mean): state[key] for key in state if key.startswith(layout.mean)}
    picked |= {
        "log_std" + key.removeprefix(layout.log_std): state[key] for key in state if key.startswith(layout.log_std)
    }
    trunk = [value for key, value in picked.items() if key.startswith("trunk.") and key.endswith("weight")]
    weights = [value for value in trunk if value.ndim == 2]
    config = {
        "sizes": [weights[0].shape[1], *(weight.shape[0] for weight in weights)],
        "action_dim": picked["mean.weight"].shape[0],
        "activation": facts.get("activation", layout.activation),
        "state_dependent_std": "log_std" not in picked,
        "squash": facts.get("squash", layout.squash),
        "layer_norm": len(trunk) > len(weights),
        "bound": float(facts["bound"]),
        "noise": dict(facts.get("noise", {})),
    }
    # looking at an agent must not move the random numbers that it is trained with
    with torch.random.fork_rng(devices=[]):
        actor = NoiseActor(config)
    actor.load_state_dict(picked)
    return actor.to(weights[0].device).requires_grad_(False).eval()


def steered_from_state(policy: FrozenPolicy, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> SteeredPolicy:
    """The base policy, steered by a copy of what is in a policy's state dict.

    Args:
        policy: the base policy.
        state: ``model.policy.state_dict()``.
        facts: ``model.steering``, and ``deployed`` where the agent can act in more than one way.
    """
    actor = actor_from_state(state, facts)
    deployed = facts.get("deployed", "actor")
    if deployed == "actor":
        return SteeredPolicy(policy, actor)
    critic = _critic(state, facts)
    # the base policy is a choice of one
    choice = {**facts["choice"], "candidates": 1} if deployed == "base" else facts["choice"]
    return SelectingPolicy(policy, actor, critic, choice)


def read_actor(path: Path, policy: FrozenPolicy) -> NoiseActor:
    """The actor of a saved agent; see :func:`read_steered`."""
    return read_steered(path, policy).actor


def read_steered(path: Path, policy: FrozenPolicy) -> SteeredPolicy:
    """Read a saved agent, which must have been trained on this base policy.

    Nothing in the file is unpickled: the facts are JSON, the weights are loaded with ``weights_only=True``.

    Raises:
        DsrlError: when the file is missing or damaged, or the agent steers another base policy.
    """
    state, facts = _read(path, policy)
    try:
        steered = steered_from_state(policy, state, facts)
    except (KeyError, RuntimeError, TypeError, ValueError) as misfit:
        raise DsrlError(f"{path} does not say which noise it chooses, or was edited by hand: {misfit}") from misfit
    if not all(torch.isfinite(parameter).all() for parameter in steered.actor.parameters()):
        raise DsrlError(f"{path} holds NaN or infinite weights; take another agent of the run, such as --agent best")
    return steered


def read_critic(path: Path, policy: FrozenPolicy) -> tuple[CriticEnsemble, Tensor, Tensor]:
    """What a saved agent thinks of executed chunks: ``Q(cond, chunk)``, and the limits ``(Da,)`` of its actions.

    Chunks are clipped to the limits before they are rated.

    Raises:
        DsrlError: as :func:`read_steered`, and for an agent that only rates noise.
    """
    state, facts = _read(path, policy)
    if "critic" not in facts:
        raise DsrlError(
            f"{path} is an agent of --algo {facts['algo']}, whose critic rates noise, not chunks; an agent of "
            "--algo na has one that does"
        )
    try:
        critic = _critic(state, facts)
        low, high = (torch.tensor(facts["choice"][name], device=policy.device) for name in ("low", "high"))
    except (KeyError, RuntimeError, TypeError, ValueError) as misfit:
        raise DsrlError(f"{path} does not say how its critic was built, or was edited by hand: {misfit}") from misfit
    return critic, low, high


def save_as_folder(path: Path, folder: Path) -> dict[str, Any]:
    """Write a saved agent as ``agent.json`` and ``agent.safetensors``, which :func:`read_steered` reads, too.

    Returns:
        its facts.

    Raises:
        DsrlError: when the agent is missing or damaged.
    """
    state, facts = _contents(path, torch.device("cpu"))
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    content = save(weights)
    (folder / WEIGHTS).write_bytes(content)
    data = {"format": _FORMAT, "version": _VERSION, "weights_sha256": _sha256(content), "steering": facts}
    (folder / AGENT).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return facts


def _critic(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> CriticEnsemble:
    weights = {key.removeprefix("critic."): value for key, value in state.items() if key.startswith("critic.")}
    with torch.random.fork_rng(devices=[]):
        critic = CriticEnsemble(**facts["critic"])
    critic.load_state_dict(weights)
    return critic.to(weights["weights.0"].device).requires_grad_(False).eval()


def _read(path: Path, policy: FrozenPolicy) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and facts of an agent that steers this policy."""
    state, facts = _contents(path, policy.device)
    if facts["base_policy_sha256"] != policy.spec.sha256:
        raise OtherBasePolicy(path, facts["base_policy_sha256"], policy.spec.sha256)
    return state, facts


def _contents(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and facts of a zip of stable-baselines3, or of a folder."""
    if not path.exists():
        raise DsrlError(f"there is no agent at {path}")
    try:
        state, facts = (_from_folder if path.is_dir() else _from_zip)(path, device)
        facts["base_policy_sha256"] = str(facts["base_policy_sha256"])
    except _DAMAGE as damage:
        reason = (str(damage) or type(damage).__name__).splitlines()[0]
        raise DsrlError(f"{path} is not an agent that dsrl saved, or it is damaged: {reason}") from damage
    return state, facts


def _from_zip(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
        weights = archive.read("policy.pth")
    facts = {**data["steering"], "deployed": data.get("deployed", "actor")}
    return torch.load(io.BytesIO(weights), map_location=device, weights_only=True), facts


def _from_folder(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    data = json.loads((path / AGENT).read_text(encoding="utf-8"))
    if data["format"] != _FORMAT or data["version"] > _VERSION:
        raise ValueError(f"{AGENT} is {data['format']} {data['version']}; this dsrl reads {_FORMAT} {_VERSION}")
    content = (path / WEIGHTS).read_bytes()
    if _sha256(content) != data["weights_sha256"]:
        raise ValueError(f"{WEIGHTS} hashes to {_sha256(content)[:12]}, {AGENT} says {data['weights_sha256']:.12}")
    return {name: tensor.to(device) for name, tensor in load(content).items()}, dict(data["steering"])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
