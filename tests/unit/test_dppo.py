"""DPPO's checkpoints play here what they play there, and say what is wrong with their weights."""

import random

import dppo_runs
import pytest
import torch
from dppo_runs import CASES, GOLDEN, checkpoint_in, expected, load_golden, steps_of
from traps import Evil

from dsrl.errors import DsrlError
from dsrl.pretrained import describe, load_policy, save_policy
from dsrl.pretrained.formats import find_format
from dsrl.pretrained.found import Found
from dsrl.pretrained.loading import FORMATS

ROBOT = {"robot0_eef_pos": (3,), "robot0_eef_quat": (4,), "robot0_gripper_qpos": (2,), "object": (14,)}
run, make_run = dppo_runs.run, dppo_runs.make_run


# -- what upstream plays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize("case", CASES)
def test_it_plays_what_upstream_plays(case, weights):
    golden = expected(case)
    chunk = load_golden(case, weights=weights).sample(golden["obs"], golden["noise"])
    wanted = golden["chunk_model" if case == "finetuned" else f"chunk_{weights}"]
    torch.testing.assert_close(chunk.double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_format_is_found_and_a_batch_is_its_singles(case):
    path, golden = checkpoint_in(GOLDEN / case), expected(case)
    assert find_format(Found(path), FORMATS).name == "dppo"
    policy = load_golden(case)
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
    spec = load_golden(case).spec
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
    golden, policy = expected(case), load_golden(case)
    own = load_policy(save_policy(policy, tmp_path / "own.pt"), device="cpu")
    assert torch.equal(own.sample(golden["obs"], golden["noise"]), policy.sample(golden["obs"], golden["noise"]))


def test_moving_average_raw_weights_and_steps_are_other_policies():
    hashes = {
        load_golden("mlp").spec.sha256,
        load_golden("mlp", weights="model").spec.sha256,
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


# -- weights ----------------------------------------------------------------------------------------------------------


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
    whole, golden, right = run.path.read_bytes(), expected(case), load_golden(case)
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
