"""What DPPO keeps beside its checkpoints is found, and is refused where it does not fit or would run code."""

import shutil

import dppo_runs
import numpy as np
import pytest
import torch
from dppo_runs import GOLDEN, expected, load_golden
from traps import Evil

run, make_run = dppo_runs.run, dppo_runs.make_run


# -- YAML -------------------------------------------------------------------------------------------------------------


def test_a_missing_yaml_is_explained(run):
    shutil.rmtree(run.folder / ".hydra")
    run.refused(r"state_3.pt.*stand in the YAML.*\.hydra/config.yaml.*run/checkpoint and .*run\. .*--load.config")
    run.refused("nowhere.yaml: no YAML can be read", config=run.folder / "nowhere.yaml")
    assert run.load(config=GOLDEN / "mlp" / ".hydra" / "config.yaml").spec.horizon == 4


@pytest.mark.parametrize("place", ["checkpoint", "."])
def test_a_yaml_beside_the_checkpoint_is_found(run, place):
    run.yaml.rename(run.folder / place / "eval_diffusion_mlp.yaml")
    (run.folder / place / "notes.yaml").write_text("colour: blue")
    assert run.load().spec.horizon == 4
    shutil.copy(run.folder / place / "eval_diffusion_mlp.yaml", run.folder / place / "other.yml")
    run.refused("which of eval_diffusion_mlp.yaml, other.yml .*--load.config")


@pytest.mark.parametrize("target", ["diffusion_eval", "diffusion_eval_ft"])
def test_both_places_of_the_evaluation_class_are_known(run, target):
    run.settings(lambda values: values["model"].update(_target_=f"model.diffusion.{target}.DiffusionEval"))
    assert run.load().spec.horizon == 4


def test_ddpm_is_refused_unless_ddim_is_asked_for(run):
    run.settings(lambda values: values["model"].pop("use_ddim"))
    run.refused("sampled by DDPM.*--load.sampling-steps")
    assert len(run.load(sampling_steps=8).sampler.steps) == 8


def test_no_expression_is_evaluated(run, tmp_path):
    trap = tmp_path / "created"
    expression = f'${{eval:\'__import__("os").system("touch {trap}")\'}}'
    run.settings(lambda values: values["model"]["network"].update(cond_dim=expression, mlp_dims=expression))
    assert run.load().denoiser.config["hidden_dims"] == [24, 24, 24]  # sizes come from the tensors
    run.settings(lambda values: values["model"].update(denoising_steps=expression))
    run.refused(r"config.yaml: 'model.denoising_steps' is .*not evaluated.*--load.config")
    assert not trap.exists()


def test_a_yaml_that_would_run_code_runs_nothing(run, tmp_path):
    trap = tmp_path / "created"
    run.yaml.write_text(f"model: !!python/object/apply:os.system ['touch {trap}']\n")
    run.refused("config.yaml is no YAML of plain values.*python/object/apply.*nothing in it was executed")
    assert not trap.exists()


def _network(**changes):
    return lambda values: values["model"]["network"].update(changes)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("mlp", _network(mlp_dims=[512, 512, 512]), r"mlp_dims \[24, 24, 24\] by its tensors.* \[512, 512, 512\]"),
        ("mlp", _network(cond_mlp_dims=[512, 64]), r"cond_mlp_dims None by its tensors.*\[512, 64\]"),
        ("mlp_variant", _network(cond_mlp_dims=None), r"cond_mlp_dims \[20, 12\] by its tensors.*None"),
        ("mlp", _network(residual_style=False), "residual_style True by its tensors"),
        ("mlp", _network(time_dim=32), "time_dim 16 by its tensors"),
        ("mlp", _network(activation_type="Mush"), "'Mush'. Did you mean 'Mish'"),
        ("mlp", _network(mlp_dim=3), "'model.network.mlp_dim' is no setting.*Did you mean 'mlp_dims'"),
        ("mlp", _network(_target_="model.diffusion.unet.Unet1D"), "class DiffusionMLP by its tensors"),
        ("mlp", lambda v: v["model"].update(network="yes"), "'model.network' is 'yes'"),
        ("mlp", lambda v: v.update(horizon_steps=8), r"28 by its tensors.*horizon_steps 8 and action_dim 7"),
        ("mlp", lambda v: v.update(cond_steps=2), r"history: 23 by its tensors.*cond_steps 2 times the 23"),
        ("mlp", lambda v: v.update(obs_dim=24), r"normalization.npz has obs_dim 23, but .*config.yaml says 24"),
        ("mlp", lambda v: v.update(act_steps=5), "'act_steps' is 5; it must be from 1 to horizon_steps, 4"),
        ("mlp", lambda v: v.update(denoising_steps="many"), "'many'; it must be a number"),
        ("mlp", lambda v: v.update(denoising_steps=2.5), "2.5; it must be a whole number"),
        ("mlp", lambda v: v.update(denoising_steps=0), "'denoising_steps' is 0"),
        ("mlp", lambda v: v["model"].update(ddim_steps=21), "'ddim_steps' from 1 to 20, found 21"),
        ("mlp", lambda v: v["model"].update(use_ddim="maybe"), "'maybe'; it must be true or false"),
        ("mlp", lambda v: v["model"].update(eps_clip_value=1), "only null is supported"),
        ("mlp", lambda v: v["model"].update(denoised_clip_value=-1), "must be above 0, or null"),
        ("mlp", lambda v: v.pop("model"), "config.yaml has no section 'model'"),
        ("unet", _network(dim_mults=[1, 4]), r"channels \[2, 4\] by its tensors.*dim_mults \[1, 4\]"),
        ("unet", _network(n_groups=None), "group normalisation True by its tensors"),
        ("unet", _network(n_groups=3), "multiples of 3"),
        ("unet", _network(smaller_encoder=True), "smaller_encoder False by its tensors"),
        ("unet", _network(cond_predict_scale=False), "cond_predict_scale True by its tensors"),
        ("unet", lambda v: (v.pop("horizon_steps"), v["model"].pop("horizon_steps")), "'horizon_steps' is None"),
        ("unet", lambda v: v.update(horizon_steps=5), "use a multiple of 2"),
    ],
)
def test_a_yaml_that_contradicts_the_weights_is_refused(make_run, case, change, message):
    run = make_run(case)
    run.settings(change)
    run.refused(message)


def test_a_clipping_environment_is_a_clipping_policy(run):
    run.settings(lambda values: values["env"]["wrappers"]["robomimic_lowdim"].update(clamp_obs=True))
    obs = expected("mlp")["obs"]
    assert run.load().encode(100 + obs).max() == 1.0 < load_golden("mlp").encode(100 + obs).min()


@pytest.mark.parametrize("keys", [["object", "more"], ["robot0_eef_pos"], ["object", "object"], "object", None])
def test_observation_keys_of_unknown_sizes_are_one(run, keys):
    run.settings(lambda values: values["env"]["wrappers"]["robomimic_lowdim"].update(low_dim_keys=keys))
    assert run.load().spec.obs_shapes == {"state": (23,)}


# -- ranges -----------------------------------------------------------------------------------------------------------


def test_missing_ranges_are_explained(run):
    elsewhere = run.npz.rename(run.folder.parent / "ranges.npz")
    run.refused(r"state_3.pt.*normalization.npz.*missing. Looked for .*--load.normalization")
    golden, given = expected("mlp"), run.load(normalization=elsewhere)
    assert torch.equal(
        given.sample(golden["obs"], golden["noise"]), load_golden("mlp").sample(golden["obs"], golden["noise"])
    )
    run.settings(lambda values: values.update(normalization_path=str(elsewhere)))
    assert run.load().spec.sha256 == given.spec.sha256
    run.refused("no normalization at .*gone.npz", normalization=run.folder / "gone.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_min": None}, "normalization.npz lacks an array .*obs_min"),
        ({"obs_min": np.zeros((2, 23))}, r"'obs_min' is float64 of shape \(2, 23\)"),
        ({"action_max": np.full(7, np.nan)}, "'action_max' is .*finite"),
        ({"action_max": np.full(6, 1.0)}, "'action_min' and 'action_max' are no ranges"),
        ({"obs_max": np.full(23, -9.0)}, "'obs_min' and 'obs_max' are no ranges"),
        ({"obs_min": np.zeros(22), "obs_max": np.ones(22)}, "has obs_dim 22, but .*config.yaml says 23"),
        ({"action_min": np.zeros(0), "action_max": np.ones(0)}, r"'action_min' is float64 of shape \(0,\)"),
    ],
)
def test_broken_ranges_are_refused(run, changes, message):
    run.ranges(**changes)
    run.refused(message)


def test_ranges_that_would_run_code_run_nothing(run, tmp_path):
    trap = tmp_path / "created"
    run.ranges(obs_min=np.array([Evil(trap)], dtype=object))
    run.refused("normalization.npz is broken or no npz of plain arrays.*nothing in it was executed")
    assert not trap.exists()
    run.npz.write_bytes(run.npz.read_bytes()[:300])
    run.refused("normalization.npz is broken")
