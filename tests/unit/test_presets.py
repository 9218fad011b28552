"""Configurations by name, and what the noise-aliased agent refuses to be told."""

from dataclasses import fields, replace

import pytest
import yaml

from dsrl.agent_config import NAConfig
from dsrl.algorithms import ALGORITHMS
from dsrl.cli import COMMANDS, _parse
from dsrl.config import FinetuneConfig, finetune_config, to_dict
from dsrl.errors import DsrlError
from dsrl.presets import PRESETS, preset


def parsed(*flags: object) -> FinetuneConfig:
    """What ``dsrl finetune`` makes of these flags."""
    return _parse("finetune", FinetuneConfig, COMMANDS["finetune"], [str(flag) for flag in flags])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(FinetuneConfig(algo="sac", seed=7))))
    return path


def test_without_flags_the_defaults_stand():
    assert parsed() == FinetuneConfig() and parsed().algo == "na"


@pytest.mark.parametrize("flags", [["--preset", "reference"], ["--preset=reference"]])
def test_a_preset_is_a_whole_configuration(flags: list[str]):
    assert parsed(*flags) == PRESETS["reference"] != FinetuneConfig()


def test_flags_change_a_preset_wherever_they_stand():
    config = parsed("--seed", 3, "--preset", "reference", "--na.batch-size", 64, "--na.no-soft-backup")
    reference = PRESETS["reference"]
    expected = replace(reference, seed=3, na=replace(reference.na, batch_size=64, soft_backup=False))
    assert config == expected


@pytest.mark.parametrize("trait", [f.name for f in fields(NAConfig)])
def test_every_trait_of_the_reference_can_be_switched_back_alone(trait: str):
    """So a comparison changes one thing at a time; a backup of pools needs a pool, and a soft one the actor."""
    needs = {"backup": {"pool_size": 8, "soft_backup": False}}
    reference = PRESETS["reference"].na
    replace(reference, **{trait: getattr(NAConfig(), trait)}, **needs.get(trait, {}))


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(DsrlError, match=r"no preset 'refrence'\. Did you mean 'reference'\? Known: reference"):
        parsed("--preset", "refrence")
    assert preset("reference") is PRESETS["reference"]


def test_a_preset_without_its_name_says_so():
    with pytest.raises(DsrlError, match="--preset needs a name, such as reference"):
        parsed("--preset")


def test_a_file_and_a_preset_exclude_each_other(file):
    assert parsed("--config", file).seed == 7 and parsed(f"--config={file}", "--seed", 8).seed == 8
    for flags in (["--config", file, "--preset", "reference"], ["--preset=reference", f"--config={file}"]):
        with pytest.raises(DsrlError, match="--config, --preset and --resume exclude"):
            parsed(*flags)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_survives_its_yaml_file(name: str):
    assert finetune_config(yaml.safe_load(yaml.safe_dump(to_dict(PRESETS[name])))) == PRESETS[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "--na.batch-size is 0; it must be at least 1"),
        ({"n_critics": 0}, "--na.n-critics is 0"),
        ({"buffer_size": 0}, "--na.buffer-size is 0"),
        ({"distill_noises": 0}, "--na.distill-noises is 0"),
        ({"candidates": 0}, "--na.candidates is 0"),
        ({"pool_size": -1}, "--na.pool-size is -1"),
        ({"fit_updates": -1}, "--na.fit-updates is -1"),
        ({"average_decay": 1.0}, "--na.average-decay is 1.0"),
        ({"tau": 0.0}, "--na.tau is 0.0"),
        ({"ent_coef": "warm"}, "--na.ent-coef is 'warm'; a number, 'auto' or 'auto_0.1'"),
        ({"targets": "td", "pool_size": 0}, "--na.backup max needs a pool; .* --na.backup actor"),
        ({"soft_backup": True}, "--na.soft-backup is about the actor's noise; --na.backup is 'max'"),
        ({"pool_refresh": 1.5}, r"--na.pool-refresh is 1.5; it must lie in \[0, 1\]"),
        ({"pool_refresh": -0.1}, "--na.pool-refresh is -0.1"),
    ],
)
def test_a_setting_of_the_noise_aliased_agent_that_cannot_be_is_named(settings: dict, message: str):
    with pytest.raises(DsrlError, match=message):
        finetune_config({"na": settings})


def test_the_box_depends_on_the_actor():
    wide, boxed = (FinetuneConfig(na=NAConfig(actor=actor)) for actor in ("gaussian", "box"))
    assert ALGORITHMS["na"].bound(wide) == 10.0 and ALGORITHMS["na"].bound(boxed) == 1.5
