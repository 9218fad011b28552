"""``dsrl finetune --base-policy X --env Y`` for X of every format, from the command line to the files of the run."""

import json
from dataclasses import replace

import pytest
from specimens import SPEC, lay, load, own_policy, settings_of

from dsrl.cli import main
from dsrl.commands import load_run
from dsrl.pretrained import save_policy
from dsrl.pretrained.loading import FORMATS

pytestmark = [pytest.mark.integration]

CASES = [
    ("dppo/plain_mlp", "Hopper-v5"),
    ("dppo/mlp_variant", "Hopper-v5"),  # two observation steps, a state encoder
    ("dppo/finetuned", "fitting_env:dsrl-test/Can-v0"),
    pytest.param("diffusion-policy/unet_ddpm", "robosuite/Lift", marks=pytest.mark.robosuite),
    ("diffusion-policy/transformer_mlp", "fitting_env:dsrl-test/BlockPush-v0"),
    ("robomimic/ddim", "fitting_env:dsrl-test/Lifting-v0"),
    ("lerobot/v033", "fitting_env:dsrl-test/AgentPos-v0"),
    ("lerobot/v044_min_max", "fitting_env:dsrl-test/AgentPos-v0"),
    ("diffusers/dppo/plain_mlp", "Hopper-v5"),
    ("dsrl/diffusion-transformer-epsilon", "dsrl/PointReach-v0"),
    ("dsrl/flow-unet", "dsrl/PointReach-v0"),
]
SHORT = ["--total-env-steps", 300, "--n-envs", 1, "--warmup-episodes", 2, "--eval-interval", 300, "--device", "cpu"]
SHORT += ["--eval-episodes", 1, "--final-episodes", 1, "--final-repeats", 1, "--probe-episodes", 0]
SHORT += [
    "--hidden-dims",
    16,
    16,
    "--na.updates-per-env-step",
    0.1,
    "--na.fit-updates",
    10,
    "--na.fit-actor-updates",
    10,
]


def names(case):
    return case.values[0] if hasattr(case, "values") else case[0]


def test_there_is_a_case_of_every_format():
    assert {names(case).split("/")[0] for case in CASES} == set(FORMATS)


@pytest.mark.parametrize(("case", "env"), CASES)
def test_a_policy_of_any_format_is_steered(case, env, tmp_path):
    if case.startswith("dsrl/"):
        toy = replace(SPEC, obs_shapes={"state": (4,)}, action_dim=2, noise_shape=())
        path = save_policy(own_policy(case.removeprefix("dsrl/"), toy), tmp_path / "policy.pt")
    else:
        path = lay(case, tmp_path)
    steps = settings_of(case).sampling_steps
    load_flags = ["--load.sampling-steps", steps] if steps else []
    run = tmp_path / "run"
    command = ["finetune", "--base-policy", path, "--env", env, "--run-dir", run, *load_flags, *SHORT]
    assert main([str(word) for word in command]) == 0
    base = load(case, path)
    steered, spec = load_run(run, "final", "cpu")
    assert steered.base.spec.sha256 == base.spec.sha256 == json.loads((run / "base_policy.json").read_text())["sha256"]
    assert spec.id == env
    rows = json.loads((run / "comparison.json").read_text())
    assert rows and (run / "final.zip").is_file()
