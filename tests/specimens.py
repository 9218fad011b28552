"""A small checkpoint of every format and network: golden ones of other programs, fresh ones of our own."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from dsrl.config import LoadConfig
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.normalize import Normalizer
from dsrl.policy import FrozenPolicy, PolicySpec
from dsrl.pretrained import convert, load_policy, save_policy
from dsrl.vision import image_keys

GOLDEN = Path(__file__).with_name("golden")
SPEC = PolicySpec(
    {"object": (2, 2), "eef_pos": (3,)}, action_dim=3, horizon=8, n_action_steps=4, n_obs_steps=2, action_start=1
)
NETWORKS = {
    "mlp": {"type": "mlp", "hidden_dims": [32] * 5},
    "unet": {"type": "unet", "down_dims": [16, 32], "time_dim": 16},
    "transformer": {"type": "transformer", "n_obs_steps": 2, "width": 16, "n_layers": 2, "n_heads": 2},
}
OWN = [
    *(f"diffusion-{network}-{kind}" for network in NETWORKS for kind in ("epsilon", "sample", "v_prediction")),
    *(f"flow-{network}" for network in NETWORKS),
]
"""kind, network and prediction of our own policies"""
NATIVE = [
    f"dsrl/{case}" for case in ("diffusion-mlp-epsilon", "diffusion-unet-sample", "diffusion-transformer-epsilon")
]
NATIVE += [f"dsrl/flow-{network}" for network in NETWORKS]
FOREIGN = [
    *(f"dppo/{name}" for name in ("mlp", "mlp_variant", "plain_mlp", "unet", "unet_variant", "finetuned")),
    *(f"diffusion-policy/{name}" for name in ("unet_ddpm", "unet_ddim", "transformer_mlp", "transformer_encoder")),
    *(f"robomimic/{name}" for name in ("ddim", "ddpm", "offset")),
    *(f"lerobot/{name}" for name in ("v033", "v044_min_max", "v044_quantiles")),
]
SEEING = ["lerobot/v044_image"]
"""with a ResNet, whose 45 MB are drawn"""
CONVERTED = [
    f"diffusers/{case}"
    for case in (*NATIVE[2:4], "dppo/finetuned", "diffusion-policy/transformer_encoder", "robomimic/ddpm")
]
_DDPM = ("dppo/plain_mlp", "diffusion-policy/unet_ddpm", "diffusion-policy/transformer_mlp", "robomimic/ddpm")
_STEPS = dict.fromkeys(_DDPM, 3)


def own_policy(case: str, spec: PolicySpec = SPEC) -> DiffusionPolicy | FlowPolicy:
    """One of :data:`OWN`, with random weights."""
    kind, network, *prediction = case.split("-")
    torch.manual_seed(0)
    policy: DiffusionPolicy | FlowPolicy
    if kind == "flow":
        policy = FlowPolicy(spec, FlowConfig(NETWORKS[network]))
    else:
        # 20 levels in 10 steps: every one of them is also the start of the next
        policy = DiffusionPolicy(
            spec, DiffusionConfig(NETWORKS[network], sampling_steps=10, prediction_type=prediction[0])
        )
    obs, chunks = torch.randn(64, spec.n_obs_steps, spec.obs_dim), torch.rand(64, spec.horizon, spec.action_dim)
    policy.fit_normalizers(1 + 3 * obs, 0.5 + 2 * chunks)
    return policy.freeze()


def lay(case: str, folder: Path) -> Path:
    """Put the checkpoint of one of ``NATIVE``, ``FOREIGN`` or ``CONVERTED`` into an empty folder; its path."""
    kind, _, name = case.partition("/")
    if kind == "dsrl":
        return save_policy(own_policy(name), folder / "policy.pt")
    if kind == "diffusers":
        (folder / "source").mkdir()
        convert(lay(name, folder / "source"), folder / "converted", LoadConfig(sampling_steps=_STEPS.get(name)))
        return folder / "converted"
    if kind == "dppo":
        shutil.copytree(GOLDEN / case, folder / name)
        return next((folder / name / "checkpoint").iterdir())
    if case in SEEING:
        from lerobot_images import write  # beside the unit tests

        return write(name, folder / name)
    if kind == "lerobot":
        return Path(shutil.copytree(GOLDEN / case, folder / name))
    suffix = {"diffusion-policy": ".ckpt", "robomimic": ".pth"}[kind]
    return Path(shutil.copy((GOLDEN / kind.replace("-", "_") / name).with_suffix(suffix), folder))


def settings_of(case: str) -> LoadConfig:
    """With which flags it is read."""
    return LoadConfig(sampling_steps=_STEPS.get(case))


def load(case: str, path: Path) -> FrozenPolicy:
    """What :func:`lay` put there."""
    return load_policy(path, sampling_steps=settings_of(case).sampling_steps, device="cpu")


def inputs(spec: PolicySpec, batch: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """The same observations and noise every time."""
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(batch, spec.n_obs_steps, spec.obs_dim, generator=generator)
    return obs, torch.randn(batch, *spec.noise_shape, generator=generator)


def usual_inputs(policy: FrozenPolicy, batch: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations as they are in the data of a policy that was loaded, and noise."""
    obs, noise = inputs(policy.spec, batch)
    normalizer: Normalizer = policy.obs_normalizer  # type: ignore[attr-defined]
    if image_keys(policy.spec.obs_shapes):
        return obs.clamp(0, 1), noise
    return (normalizer.offset + normalizer.scale * obs.clamp(-1, 1)).float(), noise
