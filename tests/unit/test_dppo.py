"""DPPO's checkpoints play here what they play there, and say what is wrong with them."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dsrl.errors import DsrlError
from dsrl.pretrained import describe, load_policy, save_policy
from dsrl.pretrained.formats import find_format
from dsrl.pretrained.found import Found
from dsrl.pretrained.loading import FORMATS

GOLDEN = Path(__file__).parents[1] / "golden" / "dppo"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
ROBOT = {"robot0_eef_pos": (3,), "robot0_eef_quat": (4,), "robot0_gripper_qpos": (2,), "object": (14,)}


def checkpoint_in(folder):
    (path,) = (folder / "checkpoint").iterdir()
    return path


def steps_of(case):
    return 5 if case == "plain_mlp" else None  # the YAML of a pre-training run: sampled by DDPM


def load(case, **more):
    return load_policy(checkpoint_in(GOLDEN / case), device="cpu", sampling_steps=steps_of(case), **more)


def expected(case):
    with np.load(GOLDEN / case / "expected.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


class Run:
    """A copy of a golden run folder, to be damaged."""

    def __init__(self, folder, case):
        shutil.copytree(GOLDEN / case, folder)
        self.folder, self.path = folder, checkpoint_in(folder)
        self.yaml, self.npz = folder / ".hydra" / "config.yaml", folder / "normalization.npz"

    def settings(self, change):
        values = yaml.safe_load(self.yaml.read_text())
        change(values)
        self.yaml.write_text(yaml.safe_dump(values))

    def content(self, change):
        content = torch.load(self.path, weights_only=True)
        change(content)
        torch.save(content, self.path)

    def ranges(self, **changes):
        with np.load(self.npz) as archive:
            arrays = {**archive, **changes}
        np.savez(self.npz, **{name: array for name, array in arrays.items() if array is not None})

    def load(self, **more):
        return load_policy(self.path, device="cpu", **more)

    def refused(self, message, **more):
        with pytest.raises(DsrlError, match=message):
            self.load(**more)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", "mlp")


@pytest.fixture
def make_run(tmp_path):
    return lambda case: Run(tmp_path / case, case)


# -- what upstream plays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize("case", CASES)
def test_it_plays_what_upstream_plays(case, weights):
    golden = expected(case)
    chunk = load(case, weights=weights).sample(golden["obs"], golden["noise"])
    wanted = golden["chunk_model" if case == "finetuned" else f"chunk_{weights}"]
    torch.testing.assert_close(chunk.double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_format_is_found_and_a_batch_is_its_singles(case):
    path, golden = checkpoint_in(GOLDEN / case), expected(case)
    assert find_format(Found(path), FORMATS).name == "dppo"
    policy = load(case)
    singles = [policy.sample(golden["obs"][i : i + 1], golden["noise"][i : i + 1]) for i in range(8)]
    batch = policy.sample(golden["obs"], golden["noise"])
    torch.testing.assert_close(batch, torch.cat(singles), atol=1e-5, rtol=1e-5)
    assert not [name for name, parameter in policy.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("case", "obs", "n_obs_steps", "horizon", "n_action_steps", "action_dim"),
    [
        ("mlp", ROBOT, 1, 4, 4, 7),
        ("mlp_variant", {"state": (11,)}, 2, 4, 2, 3),
        ("plain_mlp", {"state": (11,)}, 1, 4, 4, 3),
        ("unet", ROBOT, 1, 4, 4, 7),
        ("unet_variant", ROBOT, 1, 8, 4, 7),
        ("finetuned", ROBOT, 1, 4, 4, 7),
    ],
)
def test_the_spec(case, obs, n_obs_steps, horizon, n_action_steps, action_dim):
    spec = load(case).spec
    assert list(spec.obs_shapes.items()) == list(obs.items())
    assert (spec.n_obs_steps, spec.horizon, spec.action_start, spec.n_action_steps) == (
        n_obs_steps,
        horizon,
        0,
        n_action_steps,
    )
    assert spec.noise_shape == (horizon, action_dim) and spec.env is None


@pytest.mark.parametrize("case", CASES)
def test_it_survives_our_own_format(case, tmp_path):
    golden, policy = expected(case), load(case)
    own = load_policy(save_policy(policy, tmp_path / "own.pt"), device="cpu")
    assert torch.equal(own.sample(golden["obs"], golden["noise"]), policy.sample(golden["obs"], golden["noise"]))


def test_moving_average_raw_weights_and_steps_are_other_policies():
    hashes = {
        load("mlp").spec.sha256,
        load("mlp", weights="model").spec.sha256,
        load_policy(checkpoint_in(GOLDEN / "mlp"), device="cpu", sampling_steps=5).spec.sha256,
    }
    assert len(hashes) == 3


def test_describe_says_where_everything_came_from():
    rows = describe(checkpoint_in(GOLDEN / "finetuned"))
    notes = " ".join(value for name, value in rows if name == "note")
    assert ("format", "dppo fine-tuned") in rows
    assert "config.yaml" in notes and "normalization.npz" in notes and "levels below 8" in notes


# -- fine-tuned files -------------------------------------------------------------------------------------------------


def test_the_base_policy_is_not_played_by_accident(make_run):
    run = make_run("finetuned")
    run.settings(lambda values: values.update(ft_denoising_steps=0))
    run.refused("'actor_ft.*ft_denoising_steps 0.*base policy would be played")
    run.settings(lambda values: values["model"].pop("ft_denoising_steps"))
    run.refused("ft_denoising_steps None")


def test_without_ddim_fine_tuned_steps_are_noise_levels(make_run):
    run = make_run("finetuned")
    run.settings(lambda values: (values.update(ft_denoising_steps=10), values["model"].update(use_ddim=False)))
    assert run.load(sampling_steps=5).denoiser.switch == 10


def test_when_every_step_was_fine_tuned_the_base_policy_is_left_out(make_run):
    run = make_run("finetuned")
    run.settings(lambda values: values.update(ft_denoising_steps=5))
    golden, policy = expected("finetuned"), run.load()
    fine_tuned = torch.load(run.path, weights_only=True)["model"]["actor_ft.mlp_mean.layers.0.weight"]
    assert torch.equal(policy.denoiser.layers[0].weight, fine_tuned)
    assert not torch.allclose(policy.sample(golden["obs"], golden["noise"]).double(), golden["chunk_model"], atol=1e-2)


def test_files_of_other_algorithms_are_refused(make_run):
    run = make_run("finetuned")
    run.settings(lambda values: values["model"].update(_target_="model.diffusion.diffusion_idql.IDQLDiffusion"))
    run.refused("'IDQLDiffusion' samples in its own way")
    run.content(lambda content: content["model"].update({"target_q.weight": torch.zeros(2)}))
    run.refused(r"'model' holds 'target_q.weight'.*fine-tuned by PPO")


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
    assert run.load().encode(100 + obs).max() == 1.0 < load("mlp").encode(100 + obs).min()


@pytest.mark.parametrize("keys", [["object", "more"], ["robot0_eef_pos"], ["object", "object"], "object", None])
def test_observation_keys_of_unknown_sizes_are_one(run, keys):
    run.settings(lambda values: values["env"]["wrappers"]["robomimic_lowdim"].update(low_dim_keys=keys))
    assert run.load().spec.obs_shapes == {"state": (23,)}


# -- ranges -----------------------------------------------------------------------------------------------------------


def test_missing_ranges_are_explained(run):
    elsewhere = run.npz.rename(run.folder.parent / "ranges.npz")
    run.refused(r"state_3.pt.*normalization.npz.*missing. Looked for .*--load.normalization")
    golden, given = expected("mlp"), run.load(normalization=elsewhere)
    assert torch.equal(given.sample(golden["obs"], golden["noise"]), load("mlp").sample(golden["obs"], golden["noise"]))
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


# -- weights ----------------------------------------------------------------------------------------------------------


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_file_that_would_run_code_runs_nothing(run, tmp_path):
    trap = tmp_path / "created"
    run.content(lambda content: content.update(epoch=Evil(trap)))
    run.refused(r"state_3.pt wants to run '\w+\.system'.*nothing was executed")
    run.refused("nothing was executed", format="dppo")
    assert not trap.exists()


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_file_is_refused(run, share):
    run.path.write_bytes(run.path.read_bytes()[: int(share * run.path.stat().st_size)])
    run.refused("state_3.pt is truncated or no torch file")


LAST = "network.mlp_mean.layers.2.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("ema"), "state_3.pt has no moving average 'ema'; --load.weights model"),
        (lambda c: c["ema"].pop(LAST), "state_3.pt lacks the tensor 'mlp_mean.layers.2.weight'"),
        (lambda c: c["ema"].pop("network.mlp_mean.layers.1.l2.bias"), r"missing: .*layers.1.l2.bias"),
        (lambda c: c["ema"].update({"network.more": torch.zeros(1)}), "state_3.pt: the tensor 'more' is none"),
        (lambda c: c["ema"].update(more=torch.zeros(1)), "'ema' holds 'more'"),
        (lambda c: c["ema"].update({LAST: "text"}), "'ema' must hold tensors of numbers only"),
        (lambda c: c["ema"].update({LAST: torch.zeros(28, 24).bool()}), "'ema' must hold tensors of numbers only"),
        (lambda c: c["ema"][LAST].fill_(float("nan")), "'denoiser.layers.2.weight' holds NaN"),
        (lambda c: c["ema"].update({LAST: torch.zeros(28, 23)}), r"layers.2.weight' has shape \[28, 23\].*\[28, 24\]"),
        (lambda c: c["ema"].update({LAST: torch.zeros(28)}), r"'mlp_mean.layers.2.weight' has shape \[28\]"),
        (lambda c: c["ema"].update({"network.backbone.w": torch.zeros(1)}), "policy for images"),
        (lambda c: c.update(ema={"network.mlp_mean.weight": torch.zeros(1)}), "holds no diffusion network"),
    ],
)
def test_weights_that_do_not_fit_are_named(run, change, message):
    run.content(change)
    run.refused(message)


def test_an_unknown_tensor_of_the_unet_is_named(make_run):
    run = make_run("unet")
    run.content(lambda content: content["ema"].update({"network.mid_modules.0.blocks.0.block.1.bias": torch.zeros(1)}))
    run.refused("'mid_modules.0.blocks.0.block.1.bias' is none of this network's")


@pytest.mark.parametrize("model", [{}, {"layer": torch.zeros(1)}, {"nets": {}}, [1]])
def test_other_programs_files_are_not_taken_for_it(tmp_path, model):
    torch.save({"model": model, "ema": model, "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(DsrlError, match="another program"):
        load_policy(tmp_path / "x.pt", device="cpu")
    with pytest.raises(DsrlError, match=r"x\.pt"):
        load_policy(tmp_path / "x.pt", device="cpu", format="dppo")


@pytest.mark.parametrize(("case", "seed"), [("plain_mlp", 0), ("plain_mlp", 1), ("finetuned", 2)])
def test_no_mutation_crashes_or_passes_unseen(make_run, case, seed):
    """A file with flipped or missing bytes is refused by name, or plays the same, or has another hash."""
    run, dice = make_run(case), random.Random(seed)
    whole, golden, right = run.path.read_bytes(), expected(case), load(case)
    chunk, refused = right.sample(golden["obs"], golden["noise"]), 0
    for _ in range(20):
        damaged = bytearray(whole[: dice.randrange(len(whole))] if dice.random() < 0.2 else whole)
        for _ in range(dice.choice([1, 8, 64])):
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        run.path.write_bytes(damaged)
        try:
            policy = run.load(sampling_steps=steps_of(case))
        except DsrlError as error:
            refused += 1
            assert run.path.name in str(error) or "config.yaml" in str(error)
            continue
        plays_the_same = torch.equal(policy.sample(golden["obs"], golden["noise"]), chunk)
        assert plays_the_same or policy.spec.sha256 != right.spec.sha256
    assert refused > 0
