"""Settings: one dataclass behind flags, files and run folders."""

from pathlib import Path

import pytest
import yaml

from dsrl.config import FinetuneConfig, NoiseSpaceConfig, PPOConfig, SACConfig, finetune_config, to_dict
from dsrl.errors import DsrlError
from dsrl.evaluate_config import ProbeConfig


def test_a_config_survives_its_yaml_file():
    config = FinetuneConfig(
        base_policy=Path("ckpt.pt"),
        hidden_dims=(64, 32),
        sac=SACConfig(ent_coef="auto"),
        ppo=PPOConfig(target_kl=None),
        noise=NoiseSpaceConfig(rows=1, rest="repeat"),
    )
    assert finetune_config(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_what_a_file_leaves_out_keeps_its_default():
    assert finetune_config({"sac": {"tau": 0.01}}) == FinetuneConfig(sac=SACConfig(tau=0.01))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"total_env_step": 1}, "'total_env_step'.*'total_env_steps'"),
        ({"sac": {"ent_cof": 1}}, r"'sac\.ent_cof'.*'ent_coef'"),
        ({"bound": 0}, "--bound is 0"),
        ({"bound": float("nan")}, "--bound is nan"),
        ({"gamma": 1.5}, "--gamma is 1.5"),
        ({"n_envs": 0}, "--n-envs is 0"),
        ({"final_repeats": 0}, "--final-repeats is 0"),
        ({"probe_episodes": -1}, "--probe-episodes is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"hidden_dims": []}, "--hidden-dims is"),
        ({"sac": {"ent_coef": "warm"}}, "--sac.ent-coef is 'warm'"),
        ({"sac": {"n_critics": 0}}, r"--sac\.n-critics is 0"),
        ({"demo_share": 0.0}, "--demo-share is 0.0"),
        ({"algo": "sac", "demos": "demos.hdf5"}, "--demos is for --algo na"),
        ({"warmup_episodes": 0}, "--warmup-episodes is 0"),
        ({"sac": 3}, "'sac' holds 3"),
        ({"seed": "one"}, "'seed' holds 'one', expected int"),
        ({"noise": {"rows": 0}}, r"--noise\.rows is 0"),
        ({"noise": {"rows": 1, "basis": 1}}, r"--noise\.rows and --noise\.basis exclude each other"),
        ({"noise": {"rest": "repeat"}}, r"--noise\.rest is 'repeat', but .* give --noise\.rows"),
        ({"noise": {"rows": 1, "rest": "mean"}}, r"'noise\.rest' holds 'mean', expected one of prior, zero, repeat"),
        ({"algo": "td3"}, "'algo' holds 'td3', expected one of na, sac, ppo"),
    ],
)
def test_a_setting_that_cannot_be_is_named(values: dict, message: str):
    with pytest.raises(DsrlError, match=message):
        finetune_config(values)


def test_a_probe_needs_a_box():
    with pytest.raises(DsrlError, match="--bound is 0"):
        ProbeConfig(Path("ckpt.pt"), bound=0)
