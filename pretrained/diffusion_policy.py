"""Checkpoints of Diffusion Policy (Chi et al., arXiv 2303.04137): ``*.ckpt``, low-dimensional observations.

::

    {"cfg": OmegaConf config, "pickles": ..., "state_dicts": {"model": ..., "ema_model": ..., "optimizer": ...}}

A pickle, read by :mod:`~dsrl.pretrained.allowlist`, which executes nothing; neither dill nor OmegaConf is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError
from dsrl.networks import build_denoiser
from dsrl.policy import PolicySpec
from dsrl.pretrained.allowlist import Node, StoredTensor, read_pickle
from dsrl.pretrained.archive import TorchArchive
from dsrl.pretrained.formats import Checkpoint, Format, refuse_side_files
from dsrl.pretrained.found import Found
from dsrl.pretrained.obs_keys import obs_shapes
from dsrl.pretrained.scheduler import ddim_config
from dsrl.pretrained.settings import Settings, plain
from dsrl.transformer import causal_masks

_ARGUMENTS = {
    *("_target_", "model", "noise_scheduler", "horizon", "obs_dim", "action_dim", "n_action_steps", "n_obs_steps"),
    *("num_inference_steps", "pred_action_steps_only", "use_clipped_model_output", "eta"),
}
_DUMMIES = ("_dummy_variable", "mask_generator._dummy_variable", "model._dummy_variable")
_GLOBAL_ONLY = (
    "only policies that see the observations as a global condition are read (obs_as_global_cond or obs_as_cond true); "
    "train one of those"
)


@dataclass(frozen=True)
class _Design:
    """What a policy class of theirs is in our terms."""

    network: Mapping[str, Any]
    horizon: int
    action_start: int


def detect(found: Found) -> bool:
    """Whether a workspace of Diffusion Policy wrote it; of the pickle only names are read."""
    if not any(name.startswith(("omegaconf.", "dill.")) for name in found.imports):
        return False
    try:
        content = TorchArchive(found.path).pickle()
    except DsrlError:
        return False
    return b"state_dicts" in content and b"cfg" in content


def read(found: Found, load: LoadConfig) -> Checkpoint:
    """A checkpoint of ``DiffusionUnetLowdimPolicy`` or ``DiffusionTransformerLowdimPolicy``.

    Raises:
        DsrlError: when it is damaged, unsafe, of another policy, or contradicts itself.
    """
    refuse_side_files(found, load)
    path = found.path
    if found.is_folder:
        raise DsrlError(f"{path} is a folder; name one of the .ckpt files in it, such as checkpoints/latest.ckpt")
    archive = TorchArchive(path)
    content = read_pickle(archive.pickle(), path)
    if not isinstance(content, dict) or not isinstance(content.get("cfg"), Node | dict):
        inside = sorted(map(str, content))[:8] if isinstance(content, dict) else type(content).__name__
        raise DsrlError(f"{path} lacks the config 'cfg' of a Diffusion Policy checkpoint (found: {inside})")
    settings = Settings(plain(content["cfg"], path), path)
    design = _design(settings)
    stored, which = _state_dict(content.get("state_dicts"), settings, load)
    spec = _spec(settings, design)
    sizes = {"action_dim": spec.action_dim, "horizon": spec.horizon, "cond_dim": spec.n_obs_steps * spec.obs_dim}
    _check_shapes(stored, {**design.network, **sizes}, settings)
    config = {"network": design.network, "obs_clip": None, **ddim_config(settings, found, load)}
    weights = _weights(stored, archive, settings, spec)
    return Checkpoint("diffusion", config, spec, weights, FORMAT.name, "unversioned", (which, *_notes(settings, load)))


# -- the policy -------------------------------------------------------------------------------------------------------


def _design(settings: Settings) -> _Design:
    name = settings.get("policy._target_", str).rpartition(".")[2]
    if name not in _DESIGNS:
        why = "it reads images, which is not supported; " if "Image" in name or "Video" in name else ""
        raise DsrlError(f"{settings.path} holds a {name}; {why}known are {', '.join(_DESIGNS)}")
    design, network_name, own_keys = _DESIGNS[name]
    found = settings.get("policy.model._target_", str, network_name).rpartition(".")[2]
    if found != network_name:
        raise DsrlError(f"{settings.path}: its network is a {found}; of a {name} only {network_name} is known")
    settings.only("policy", {*_ARGUMENTS, *own_keys}, "an argument that is handed to every step of its sampler")
    return design(settings)


def _unet(settings: Settings) -> _Design:
    model = "policy.model"
    settings.fixed("policy.obs_as_local_cond", False, False, _GLOBAL_ONLY)
    settings.fixed("policy.obs_as_global_cond", True, False, "that is inpainting; " + _GLOBAL_ONLY)
    settings.fixed(f"{model}.cond_predict_scale", True, False, "only FiLM with scale and bias (true) is known")
    settings.fixed(f"{model}.local_cond_dim", None, None, _GLOBAL_ONLY)
    settings.fixed(f"{model}.n_groups", 8, 8, "only 8 is known, because their last block always has 8 groups")
    down_dims = settings.get(f"{model}.down_dims", list, [256, 512, 1024])
    if not down_dims or len(down_dims) > 16 or not all(isinstance(n, int) and 0 < n <= 100_000 for n in down_dims):
        raise DsrlError(f"{settings.path}: '{model}.down_dims' in its config is {down_dims!s:.80}; it must list sizes")
    network = {
        "type": "unet",
        "down_dims": down_dims,
        "time_dim": settings.count(f"{model}.diffusion_step_embed_dim", 256, least=4),
        "kernel_size": settings.count(f"{model}.kernel_size", 3, most=100),
        "n_groups": 8,
    }
    if settings.get("policy.pred_action_steps_only", bool, False):
        return _Design(network, settings.count("policy.n_action_steps"), 0)
    n_obs_steps = settings.count("policy.n_obs_steps")
    aligned = settings.get("policy.oa_step_convention", bool, False)
    return _Design(network, settings.count("policy.horizon"), n_obs_steps - 1 if aligned else n_obs_steps)


def _transformer(settings: Settings) -> _Design:
    model = "policy.model"
    horizon, n_obs_steps = settings.count("policy.horizon"), settings.count("policy.n_obs_steps")
    agree = "it must be the policy's own"
    settings.fixed("policy.obs_as_cond", True, False, "that is inpainting; " + _GLOBAL_ONLY)
    settings.fixed("policy.pred_action_steps_only", False, False, "of transformers only false is known")
    settings.fixed(f"{model}.time_as_cond", True, True, "only decoders that see the time as a condition are known")
    settings.fixed(f"{model}.horizon", horizon, horizon, agree)
    settings.fixed(f"{model}.n_obs_steps", n_obs_steps, horizon, agree)
    settings.fixed(f"{model}.cond_dim", settings.count("policy.obs_dim"), 0, "it must be obs_dim; " + _GLOBAL_ONLY)
    network = {
        "type": "transformer",
        "n_obs_steps": n_obs_steps,
        "width": settings.count(f"{model}.n_emb", 768, least=4),
        "n_layers": settings.count(f"{model}.n_layer", 12, most=256),
        "n_heads": settings.count(f"{model}.n_head", 12, most=1024),
        "n_cond_layers": settings.count(f"{model}.n_cond_layers", 0, least=0, most=256),
        "causal": settings.get(f"{model}.causal_attn", bool, False),
    }
    return _Design(network, horizon, n_obs_steps - 1)


_DESIGNS: dict[str, tuple[Callable[[Settings], _Design], str, tuple[str, ...]]] = {
    "DiffusionUnetLowdimPolicy": (
        _unet,
        "ConditionalUnet1D",
        ("obs_as_local_cond", "obs_as_global_cond", "oa_step_convention"),
    ),
    "DiffusionTransformerLowdimPolicy": (_transformer, "TransformerForDiffusion", ("obs_as_cond",)),
}


def _spec(settings: Settings, design: _Design) -> PolicySpec:
    n_action_steps = settings.count("policy.n_action_steps")
    if design.action_start + n_action_steps > design.horizon:
        raise DsrlError(
            f"{settings.path}: its config executes {n_action_steps} steps ('policy.n_action_steps') from step "
            f"{design.action_start} of a horizon of {design.horizon}; there are not as many"
        )
    return PolicySpec(
        _obs_shapes(settings),
        settings.count("policy.action_dim"),
        design.horizon,
        n_action_steps,
        settings.count("policy.n_obs_steps"),
        design.action_start,
        provenance=_provenance(settings),
    )


def _obs_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    task = settings.values.get("task")
    keys = task.get("obs_keys") if isinstance(task, Mapping) else None
    return obs_shapes(keys, settings.count("policy.obs_dim"), "obs")


def _provenance(settings: Settings) -> dict[str, Any]:
    names = ("name", "task_name", "exp_name", "training.seed", "task.obs_keys", "task.abs_action")
    known = {}
    for name in names:
        try:
            known[name] = settings.raw(name)
        except DsrlError:  # missing, or a reference: nothing depends on it
            continue
    return known


def _notes(settings: Settings, load: LoadConfig) -> list[str]:
    notes = []
    values = _provenance(settings)
    if values.get("task.abs_action") is True:
        notes.append(
            "absolute actions: position, 6-D rotation and gripper per arm; the environment must convert the rotation "
            "to axis-angle and control absolute poses"
        )
    latency = settings.values.get("n_latency_steps")
    if isinstance(latency, int) and latency > 0:
        notes.append(f"n_latency_steps {latency}: the chunk is that much longer, and here all of it is executed")
    if load.sampling_steps:
        notes.append(f"sampled by DDIM in {load.sampling_steps} steps, as asked for")
    return notes


# -- weights ----------------------------------------------------------------------------------------------------------

Stored = dict[str, StoredTensor]


def _state_dict(state_dicts: Any, settings: Settings, load: LoadConfig) -> tuple[Stored, str]:
    """The weights of the policy, and which they are."""
    path = settings.path
    if not isinstance(state_dicts, dict) or not isinstance(state_dicts.get("model"), dict):
        inside = list(map(str, state_dicts)) if isinstance(state_dicts, dict) else type(state_dicts).__name__
        raise DsrlError(f"{path} lacks the weights 'state_dicts.model' (there: {inside}); was it saved completely?")
    averaged = settings.get("training.use_ema", bool, False)
    name, why = "model", "raw weights: training.use_ema is false"
    if load.weights == "model":
        why = "raw weights, as asked for"
    elif averaged and isinstance(state_dicts.get("ema_model"), dict):
        name, why = "ema_model", "moving average of the weights (ema_model)"
    elif averaged:
        why = "raw weights: training.use_ema is true, but there is no ema_model"
    for key, value in state_dicts[name].items():
        if not isinstance(key, str) or not isinstance(value, StoredTensor):
            raise DsrlError(f"{path}: 'state_dicts.{name}' holds '{key!s:.80}', which is no tensor")
    return state_dicts[name], why


def _check_shapes(stored: Stored, network: Mapping[str, Any], settings: Settings) -> None:
    """Compare with the config before anything of the sizes that it names is allocated."""
    try:
        with torch.device("meta"):
            expected = {f"model.{name}": value.shape for name, value in build_denoiser(network).state_dict().items()}
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise DsrlError(f"{settings.path}: its config describes no network that can be built: {error}") from error
    ours = {key for key in stored if key.startswith("model.")} - {*_DUMMIES, "model.mask", "model.memory_mask"}
    missing, extra = sorted(expected.keys() - ours), sorted(ours - expected.keys())
    if missing or extra:
        raise DsrlError(
            f"{settings.path}: its weights do not fit 'policy.model' in its config; missing: {missing[:4]}, not "
            f"expected: {extra[:4]}. Is it the config that it was trained with?"
        )
    for key, shape in expected.items():
        if stored[key].size != tuple(shape):
            raise DsrlError(
                f"{settings.path}: '{key}' has shape {list(stored[key].size)}, its config says {list(shape)}. Is it "
                "the config that it was trained with?"
            )


def _weights(stored: Stored, archive: TorchArchive, settings: Settings, spec: PolicySpec) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for key, value in stored.items():
        if key in ("model.mask", "model.memory_mask"):
            _check_mask(key, archive.tensor(value), settings, spec)
        elif key in _DUMMIES or key.startswith("normalizer."):
            continue
        elif key.startswith("model."):
            weights[f"denoiser.{key.removeprefix('model.')}"] = archive.tensor(value)
        else:
            raise DsrlError(f"{settings.path}: the weight '{key}' belongs to nothing that is known in such a policy")
    for ours, theirs, dim in (("obs", "obs", spec.obs_dim), ("action", "action", spec.action_dim)):
        offset, scale = _normalizer(stored, theirs, dim, archive)
        weights[f"{ours}_normalizer.offset"], weights[f"{ours}_normalizer.scale"] = offset, scale
    return weights


def _check_mask(key: str, mask: Tensor, settings: Settings, spec: PolicySpec) -> None:
    masks = dict(zip(("model.mask", "model.memory_mask"), causal_masks(spec.horizon, spec.n_obs_steps), strict=True))
    if not settings.get("policy.model.causal_attn", bool, False) or not torch.equal(mask, masks[key]):
        raise DsrlError(f"{settings.path}: '{key}' is not the causal mask that its config stands for")


def _normalizer(stored: Stored, field: str, dim: int, archive: TorchArchive) -> tuple[Tensor, Tensor]:
    """Theirs is ``x * scale + offset``, ours ``(x - offset) / scale``."""
    path, prefix = archive.path, "normalizer.params_dict."
    fields = {key.removeprefix(prefix).split(".")[0] for key in stored if key.startswith(prefix)}
    if fields != {"obs", "action"}:
        raise DsrlError(
            f"{path}: its normaliser has the fields {sorted(fields)}, a low-dimensional policy has 'action' and 'obs'. "
            "Was set_normalizer called before it was saved?"
        )
    values = []
    for name in ("scale", "offset"):
        key = f"{prefix}{field}.{name}"
        if key not in stored:
            raise DsrlError(f"{path}: its normaliser lacks '{key}'")
        if stored[key].size not in ((dim,), (1,)):
            raise DsrlError(f"{path}: '{key}' has shape {list(stored[key].size)}, its config says {[dim]}")
        values.append(archive.tensor(stored[key]).double().expand(dim))
    scale, offset = values
    if not torch.isfinite(scale).all() or not torch.isfinite(offset).all() or (scale == 0).any():
        raise DsrlError(f"{path}: the normaliser of '{field}' holds zeros, NaN or infinite values; it cannot be undone")
    return (-offset / scale).float(), (1 / scale).float()


FORMAT = Format("diffusion-policy", "checkpoints (.ckpt) of Diffusion Policy", detect, read)
