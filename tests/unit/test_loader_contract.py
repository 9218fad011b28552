"""One contract for what is loaded, whatever wrote it."""

import pytest
import torch
from contract import FrozenPolicyContract, check_a_move
from specimens import CONVERTED, FOREIGN, NATIVE, SEEING, lay, load, settings_of, usual_inputs

from dsrl.pretrained import DEFAULT_CHECKPOINT, convert, describe
from dsrl.pretrained.loading import FORMATS

CASES = [*NATIVE, *FOREIGN, *SEEING, *CONVERTED]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def path(case, tmp_path_factory):
    return lay(case, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def policy(case, path):
    return load(case, path)


def test_there_is_a_case_of_every_format():
    assert {case.split("/")[0] for case in CASES} == set(FORMATS)


class TestLoaded(FrozenPolicyContract):
    @pytest.fixture
    def given(self, policy):
        """As in the data: what lies far outside saturates every network."""
        return usual_inputs(policy)


@pytest.mark.parametrize("case", ["dppo/finetuned", "dppo/plain_mlp"])  # two networks, double precision, a final clip
def test_it_works_where_it_is_moved(case, tmp_path):
    policy = load(case, lay(case, tmp_path))
    check_a_move(policy, *usual_inputs(policy))


def test_it_is_in_evaluation_mode(policy):
    assert not [name for name, module in policy.named_modules() if module.training]


def test_it_is_described(case, path, policy):
    rows = dict(describe(path, settings_of(case)))
    assert rows["format"].split()[0] == case.split("/")[0]
    assert rows["sha256"] == policy.spec.sha256
    assert rows["horizon"].startswith(f"{policy.spec.horizon} x {policy.spec.action_dim}, noise")
    assert all(rows[f"observation {key}"] == str(list(shape)) for key, shape in policy.spec.obs_shapes.items())


def test_a_converted_policy_plays_the_same_chunk(case, path, policy, tmp_path):
    spec = convert(path, tmp_path / "out", settings_of(case))
    again = load("", tmp_path / "out")
    assert spec == policy.spec == again.spec and list(again.spec.obs_shapes) == list(policy.spec.obs_shapes)
    obs, noise = usual_inputs(policy)
    assert torch.equal(again.sample(obs, noise), policy.sample(obs, noise))


def test_no_two_policies_have_the_same_hash(tmp_path):
    hashes = {}
    for index, case in enumerate([*NATIVE, *FOREIGN]):
        (tmp_path / str(index)).mkdir()
        hashes[case] = load(case, lay(case, tmp_path / str(index))).spec.sha256
    hashes["default"] = load("", DEFAULT_CHECKPOINT).spec.sha256
    assert len(set(hashes.values())) == len(hashes), hashes
