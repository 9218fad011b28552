"""The noise scheduler of a Diffusion Policy config -> our sampler."""

from __future__ import annotations

from typing import Any

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError
from dsrl.pretrained.formats import check_first_level, ddim_steps_of
from dsrl.pretrained.found import Found
from dsrl.pretrained.settings import Settings

_ARGUMENTS = {
    *("_target_", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "variance_type"),
    *("clip_sample", "clip_sample_range", "prediction_type", "set_alpha_to_one", "steps_offset", "timestep_spacing"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value", "rescale_betas_zero_snr"),
}
_CHOICES = {
    "beta_schedule": ("linear", ("linear", "scaled_linear", "squaredcos_cap_v2")),
    "prediction_type": ("epsilon", ("epsilon", "sample", "v_prediction")),
    "timestep_spacing": ("leading", ("leading", "trailing", "linspace")),
}


def ddim_config(settings: Settings, found: Found, load: LoadConfig) -> dict[str, Any]:
    """The sampler among the fields of :class:`~dsrl.diffusion.DiffusionConfig`.

    Defaults are those of diffusers, so that a DDPM config becomes what ``DDIMScheduler.from_config`` makes of it.

    Raises:
        DsrlError: when it draws noise in every step and no other one is asked for, or is not known.
    """
    name = "policy.noise_scheduler"
    kind = settings.get(f"{name}._target_", str).rpartition(".")[2]
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise DsrlError(f"{found.path} is sampled by {kind}; known are DDPMScheduler and DDIMScheduler")
    settings.only(name, _ARGUMENTS, "an argument that is not known")
    settings.fixed(f"{name}.trained_betas", None, None, "only the noise schedules with a name are known")
    settings.fixed(f"{name}.thresholding", False, False, "dynamic thresholding is not supported")
    settings.fixed(f"{name}.rescale_betas_zero_snr", False, False, "only false is known")
    settings.fixed("policy.eta", 0, 0, "only eta 0 is deterministic; set it to 0, which changes the policy")
    config: dict[str, Any] = {}
    for key, (default, choices) in _CHOICES.items():
        config[key] = settings.get(f"{name}.{key}", str, default)
        if config[key] not in choices:
            raise DsrlError(f"{found.path}: '{name}.{key}' is '{config[key]:.40}'; known are {', '.join(choices)}")
    if config["beta_schedule"] != "squaredcos_cap_v2":  # which ignores both
        for key, usual in (("beta_start", 1e-4), ("beta_end", 0.02)):
            settings.fixed(f"{name}.{key}", usual, usual, f"of this schedule only {usual} is known")
    train_steps = settings.count(f"{name}.num_train_timesteps", 1000, most=10_000)
    own = None
    if kind == "DDIMScheduler":
        given = settings.raw("policy.num_inference_steps", None)
        own = train_steps if given is None else settings.count("policy.num_inference_steps")
    steps = ddim_steps_of(found, load, train_steps=train_steps, own=own, sampler="DDPM")
    offset = settings.count(f"{name}.steps_offset", 0, least=0, most=1)
    if config["timestep_spacing"] == "leading":
        setting = f"{name}.steps_offset"
        check_first_level(found.path, setting, steps=steps, train_steps=train_steps, offset=offset)
    return {
        **config,
        "train_steps": train_steps,
        "sampling_steps": steps,
        "steps_offset": offset,
        "set_alpha_to_one": settings.get(f"{name}.set_alpha_to_one", bool, True),
        "clip_sample": settings.get(f"{name}.clip_sample", bool, True),
        "clip_sample_range": settings.get(f"{name}.clip_sample_range", float, 1.0),
        "use_clipped_model_output": settings.get("policy.use_clipped_model_output", bool, False),
    }
