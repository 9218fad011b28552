"""The range of a setting: what passes, what does not, and what is said."""

from dataclasses import dataclass, replace

import pytest

from dsrl.agent_config import NAConfig, PPOConfig, SACConfig
from dsrl.config import FinetuneConfig
from dsrl.errors import DsrlError
from dsrl.limits import check_training, within


@dataclass(frozen=True)
class Recipe:
    steps: int = 10
    batch_size: int = 2
    lr: float = 0.1
    weight_decay: float = 0.0
    ema_decay: float = 0.9
    valid_share: float = 0.1
    tail_steps: int | None = None


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[1, inf)", [1, 2.5, 1e300], [0, 0.99, float("inf"), float("nan")]),
        ("(0, inf]", [1e-9, float("inf")], [0, -1, float("nan")]),
        ("(0, 1]", [0.01, 1], [0, 1.01]),
        ("[0, 1)", [0, 0.99], [-0.01, 1]),
    ],
)
def test_a_bracket_includes_its_end_and_a_parenthesis_does_not(interval, inside, outside):
    for value in inside:
        within(Recipe(lr=value), interval, "lr")
    for value in outside:
        with pytest.raises(DsrlError):
            within(Recipe(lr=value), interval, "lr")


@pytest.mark.parametrize(
    ("interval", "name", "value", "message"),
    [
        ("[1, inf)", "batch_size", 0, "--x.batch-size is 0; it must be at least 1"),
        ("(0, inf)", "lr", float("inf"), "--x.lr is inf; it must be above 0 and finite"),
        ("(0, inf]", "lr", 0.0, "--x.lr is 0.0; it must be above 0"),
        ("(0, 0.5]", "lr", 0.6, "--x.lr is 0.6; it must lie in (0, 0.5]"),
    ],
)
def test_the_message_names_flag_value_and_range(interval, name, value, message):
    with pytest.raises(DsrlError) as refusal:
        within(replace(Recipe(), **{name: value}), interval, name, prefix="x.")
    assert str(refusal.value) == message


def test_what_was_left_out_passes():
    within(Recipe(), "[1, inf)", "tail_steps")
    with pytest.raises(DsrlError, match="--tail-steps is 0; it must be at least 1"):
        within(Recipe(tail_steps=0), "[1, inf)", "tail_steps")


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch_size", 0), ("lr", 0.0), ("weight_decay", -1.0), ("ema_decay", 1.0), ("valid_share", 1.0)],
)
def test_recipes_are_checked(name, value):
    check_training(Recipe())
    with pytest.raises(DsrlError, match=f"--{name.replace('_', '-')} is {value}"):
        check_training(replace(Recipe(), **{name: value}))


@pytest.mark.parametrize(
    ("config", "name", "value", "flag"),
    [
        (NAConfig, "learning_rate", -1.0, "--na.learning-rate"),
        (NAConfig, "updates_per_env_step", 0.0, "--na.updates-per-env-step"),
        (NAConfig, "ent_coef_max", 0.0, "--na.ent-coef-max"),
        (SACConfig, "learning_rate", 0.0, "--sac.learning-rate"),
        (SACConfig, "tau", 2.0, "--sac.tau"),
        (PPOConfig, "gae_lambda", 1.5, "--ppo.gae-lambda"),
        (PPOConfig, "target_kl", 0.0, "--ppo.target-kl"),
        (FinetuneConfig, "warmup_successes", -1, "--warmup-successes"),
    ],
)
def test_numbers_that_an_agent_cannot_learn_with_are_refused(config, name, value, flag):
    with pytest.raises(DsrlError, match=f"{flag} is {value}; it must"):
        config(**{name: value})
