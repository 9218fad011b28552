"""No damage to a checkpoint makes it crash without a word, run code, or become another policy of the same name."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from mutants import mutate
from specimens import lay, load, settings_of, usual_inputs

from dsrl.errors import DsrlError
from dsrl.pretrained import load_policy
from dsrl.pretrained.loading import FORMATS

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:invalid escape sequence")]

CASES = {
    "dsrl/diffusion-mlp-epsilon": 500,
    "dppo/finetuned": 500,
    "diffusion-policy/transformer_mlp": 500,
    "robomimic/offset": 500,
    "lerobot/v033": 250,
    "lerobot/v044_quantiles": 250,
    "diffusers/dppo/finetuned": 500,
}
"""and how often each is damaged"""


def test_there_is_a_case_of_every_format():
    assert {case.split("/")[0] for case in CASES} == set(FORMATS)


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_checkpoint_is_refused_or_has_another_hash_or_plays_the_same(case, tmp_path):
    (tmp_path / "whole").mkdir()
    whole, trap, rng = lay(case, tmp_path / "whole"), tmp_path / "created", random.Random(case)
    policy = load(case, whole)
    obs, noise = usual_inputs(policy)
    steps = settings_of(case).sampling_steps
    chunk, faults, refused = policy.sample(obs, noise), [], 0
    for number in range(CASES[case]):
        root = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "whole", root)
        path = root / whole.relative_to(tmp_path / "whole")
        name = rng.choice(["auto", case.split("/")[0]])
        done = mutate(_changed_part(path, case), rng, trap)
        try:
            damaged = load_policy(path, format=name, sampling_steps=steps, device="cpu")
            same = damaged.spec.obs_shapes.items() == policy.spec.obs_shapes.items()
            same = same and list(damaged.spec.obs_shapes) == list(policy.spec.obs_shapes)
            same = same and damaged.spec.noise_shape == policy.spec.noise_shape
            if damaged.spec.sha256 == policy.spec.sha256 and not (
                same and torch.equal(damaged.sample(obs, noise), chunk)
            ):
                faults.append(f"{number} {done}: another policy under the same hash")
        except DsrlError as error:
            refused += 1
            if str(root) not in str(error):
                faults.append(f"{number} {done}: the file is not named: {error}")
        except BaseException as error:
            faults.append(f"{number} {done}: {type(error).__name__}: {error}")
        shutil.rmtree(root)
    assert not faults, f"{len(faults)} of {CASES[case]}:\n" + "\n".join(faults)
    assert not trap.exists()
    assert refused > CASES[case] / 4


def _changed_part(path: Path, case: str) -> Path:
    """What is damaged: the checkpoint, with what lies beside it."""
    return path.parents[1] if case.startswith("dppo") else path
