"""What a checkpoint is, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dsrl.config import LoadConfig
from dsrl.guidance import Guidance
from dsrl.policy import PolicySpec
from dsrl.pretrained.loading import find_live, read_checkpoint
from dsrl.pretrained.native import Weights, build_policy
from dsrl.vision import image_keys


def describe(path: str | Path, load: LoadConfig | None = None) -> list[tuple[str, str]]:
    """What a checkpoint is, as rows of name and value."""
    load = load or LoadConfig()
    live, path = find_live(Path(path), load)
    policy: Any
    if live is not None:
        policy = live.open(path, load)
        return [*live.describe(policy), *_describe_spec(policy.spec), *_describe_origin(policy.spec)]
    checkpoint = read_checkpoint(path, load)
    policy = build_policy(checkpoint, path)
    spec, config, weights = policy.spec, checkpoint.config, checkpoint.weights
    # a steered policy carries its base policy's config
    inner = config.get("base", {}).get("config", config)
    network = inner.get("network", {})
    parameters = sum(p.numel() for p in policy.parameters())
    sizes = " ".join(f"{key}={value}" for key, value in network.items() if key.endswith(("_dims", "_size", "_groups")))
    rows = [
        ("file", f"{path} ({_size(path) / 1e6:.1f} MB)"),
        ("format", f"{checkpoint.format} {checkpoint.version}"),
        ("kind", checkpoint.kind),
        ("network", f"{network.get('type', '-')} {sizes}".strip() + f", {parameters:,} parameters"),
        *_describe_vision(inner.get("vision")),
        ("prediction", inner.get("prediction_type", "velocity" if "shift" in inner else "-")),
        ("sampler", _describe_sampler(inner)),
        *_describe_guidance(getattr(policy, "guidance", None)),
        *_describe_spec(spec),
        *_describe_normalizers(weights, image_keys(spec.obs_shapes)),
        *_describe_origin(spec),
        *(("note", note) for note in checkpoint.notes),
    ]
    return rows


def _describe_spec(spec: PolicySpec) -> list[tuple[str, str]]:
    return [
        *((f"observation {key}", str(list(shape))) for key, shape in spec.obs_shapes.items()),
        ("observation steps", str(spec.n_obs_steps)),
        ("horizon", f"{spec.horizon} x {spec.action_dim}, noise {list(spec.noise_shape)}"),
        ("executed", f"steps {spec.action_start} to {spec.action_start + spec.n_action_steps - 1}"),
    ]


def _describe_origin(spec: PolicySpec) -> list[tuple[str, str]]:
    return [
        ("environment", f"{spec.env.id} {dict(spec.env.kwargs) or ''}".strip() if spec.env else "not recorded"),
        ("sha256", spec.sha256),
        *((f"provenance {key}", str(value)) for key, value in spec.provenance.items()),
    ]


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _describe_sampler(config: Mapping[str, Any]) -> str:
    if "sampling_steps" not in config:
        return "-"
    steps = f"{config['sampling_steps']} steps"
    clip = f"clip {config['clip_sample_range']}" if config.get("clip_sample") else "no clip"
    if "shift" in config:
        return f"Euler, {steps}, shift {config['shift']}, {clip}"
    recompute = ", noise recomputed" if config["use_clipped_model_output"] else ""
    levels = f"{config['train_steps']} levels, {config['beta_schedule']}"
    return f"DDIM, {steps} of {levels}, {config['timestep_spacing']}, {clip}{recompute}"


def _describe_guidance(guidance: Guidance | None) -> list[tuple[str, str]]:
    if guidance is None:
        return []
    low, high = guidance.interval
    clip = "in every step" if guidance.clip_inside else "at the end"
    weight = f"weight {guidance.weight:g} of at most {guidance.max_weight:g}"
    return [("guidance", f"{weight}, noise levels {low:g} to {high:g}, clipped {clip}")]


def _describe_vision(vision: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if vision is None:
        return []
    values = ", ".join(f"{name} {value}" for name, value in vision.items() if value is not None)
    return [("vision", f"ResNet, {values}")]


def _describe_normalizers(weights: Weights, cameras: Sequence[str]) -> list[tuple[str, str]]:
    rows = []
    for name, offset in weights.items():
        if name.endswith("normalizer.offset"):
            label = "observation" if "obs_" in name else "action"
            rows.append(_statistics(label, offset, weights[name.removesuffix("offset") + "scale"]))
        elif name.endswith("vision.offset"):
            scales = weights[name.removesuffix("offset") + "scale"]
            rows += [_statistics(*row) for row in zip(cameras, offset, scales, strict=True)]
    return rows


def _statistics(label: str, offset: Tensor, scale: Tensor) -> tuple[str, str]:
    values = ", ".join(f"{o:.3g} +- {s:.3g}" for o, s in zip(offset.tolist(), scale.tolist(), strict=True))
    return f"{label} offset +- scale", values
