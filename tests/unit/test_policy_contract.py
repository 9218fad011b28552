"""One contract for every frozen policy, whatever its kind, network and prediction."""

import pytest
import torch
from contract import FrozenPolicyContract, check_a_move
from specimens import OWN, SPEC, inputs, own_policy

from dsrl.actor import NoiseActor
from dsrl.critics import CriticEnsemble
from dsrl.diffusion import DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.noise import NoiseSpace, reduced_spaces
from dsrl.pretrained import load_policy, save_policy
from dsrl.pretrained.toy import ToyPolicy
from dsrl.steered import SelectingPolicy, SteeredPolicy

SPACES = {space.describe(): space for space in reduced_spaces((SPEC.horizon, SPEC.action_dim), 1.5)}


def make_steered(base, space=None):
    torch.manual_seed(0)
    space = space or NoiseSpace(base.spec.noise_shape)
    sizes = {"sizes": [base.cond_dim, 32], "action_dim": space.size, "activation": "silu", "noise": space.layout()}
    actor = NoiseActor({**sizes, "state_dependent_std": True, "squash": True, "bound": 1.5})
    actor.requires_grad_(False).log_std.weight.zero_()  # wide enough that the noise is heard
    return SteeredPolicy(base, actor)


def make_selecting(base, space=None, candidates=3):
    actor = make_steered(base, space).actor
    torch.manual_seed(1)
    critic = CriticEnsemble(base.cond_dim, base.spec.n_action_steps * base.spec.action_dim, (32,), n_critics=3)
    limit = [0.5 + index for index in range(base.spec.action_dim)]
    choice = {"candidates": candidates, "low": [-value for value in limit], "high": limit}
    return SelectingPolicy(base, actor, critic.requires_grad_(False), choice)


@pytest.fixture(params=[*OWN, "toy", "steered", "steered twice", "selecting", "selecting, a row", *SPACES])
def policy(request):
    if request.param.startswith("selecting"):
        space = SPACES["first row, the rest from the prior"] if request.param.endswith("row") else None
        return make_selecting(own_policy(OWN[0]), space)
    if request.param in SPACES:
        return make_steered(own_policy(OWN[0]), SPACES[request.param])
    if request.param == "toy":
        return ToyPolicy()
    if request.param.startswith("steered"):
        steered = make_steered(own_policy(OWN[0]))
        return make_steered(steered) if request.param.endswith("twice") else steered
    return own_policy(request.param)


@pytest.fixture(params=OWN)
def own(request):
    return own_policy(request.param)


class TestOwn(FrozenPolicyContract):
    """Whatever its kind, network and prediction, steered or not."""

    def test_it_works_where_it_is_moved(self, policy, given):
        check_a_move(policy, *given)


def test_save_and_load_change_nothing(own, tmp_path):
    obs, noise = inputs(own.spec)
    save_policy(own, tmp_path / "ckpt.pt")
    loaded = load_policy(tmp_path, device="cpu")
    assert torch.equal(own.sample(obs, noise), loaded.sample(obs, noise))
    assert list(loaded.spec.obs_shapes.items()) == list(SPEC.obs_shapes.items())
    assert loaded.config_dict() == own.config_dict()


@pytest.mark.parametrize("space", [NoiseSpace((8, 3)), *SPACES.values()], ids=NoiseSpace.describe)
def test_a_steered_policy_is_saved_with_its_noise_space(space, tmp_path):
    live = make_steered(own_policy(OWN[0]), space)
    save_policy(live, tmp_path / "steered.pt")
    loaded = load_policy(tmp_path / "steered.pt", device="cpu")
    obs, noise = inputs(live.spec)
    assert loaded.noise_space == space and loaded.spec.noise_shape == live.spec.noise_shape
    assert torch.equal(loaded.sample(obs, noise), live.sample(obs, noise))


@pytest.mark.parametrize("space", [NoiseSpace((8, 3)), *SPACES.values()], ids=NoiseSpace.describe)
def test_a_selecting_policy_is_saved_with_its_critics_and_its_choice(space, tmp_path):
    live = make_selecting(own_policy(OWN[0]), space)
    save_policy(live, tmp_path / "selecting.pt")
    loaded = load_policy(tmp_path / "selecting.pt", device="cpu")
    obs, noise = inputs(live.spec)
    assert loaded.kind == "selecting" and loaded.acting_scale == 1.0 and loaded.choice == live.choice
    assert loaded.noise_space == space and loaded.spec.noise_shape == live.spec.noise_shape
    assert torch.equal(loaded.sample(obs, noise), live.sample(obs, noise))


def test_a_selecting_policy_plays_the_candidate_of_the_highest_pessimistic_value():
    policy = make_selecting(own_policy(OWN[0]), candidates=6)
    low, high = torch.tensor(policy.choice["low"]), torch.tensor(policy.choice["high"])
    obs, noise = inputs(policy.spec)
    noise = 2 * noise  # some of it outside the box that the agent knows
    cond, played = policy.encode(obs), []
    for row in range(len(obs)):
        candidates = noise[row].clamp(-1.5, 1.5).view(6, 8, 3)
        chunks = policy.base.decode(cond[row].expand(6, -1), candidates).clamp(low, high)
        values = policy.critic(cond[row].expand(6, -1), chunks.flatten(1)).amin(dim=0)
        played.append(chunks[values.argmax()])
    torch.testing.assert_close(policy.decode(cond, noise), torch.stack(played), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_selecting_policy_always_draws_what_it_chooses_from(deterministic):
    policy = make_selecting(own_policy(OWN[0]))
    obs, noise = inputs(policy.spec)
    drawn = torch.randn(noise.shape, generator=torch.Generator().manual_seed(4))
    chunk = policy.predict(obs.numpy(), deterministic, torch.Generator().manual_seed(4))
    assert chunk.shape == (8, 4, 3) and (chunk == policy.sample(obs, drawn).numpy()).all()
    assert policy.predict(obs[0].numpy(), deterministic).shape == (4, 3)


def test_a_steered_file_without_a_noise_space_means_the_full_one(tmp_path):
    live = make_steered(own_policy(OWN[0]))
    save_policy(live, tmp_path / "new.pt")
    checkpoint = torch.load(tmp_path / "new.pt", weights_only=True)
    del checkpoint["config"]["actor"]["noise"]  # as files were before there were noise spaces
    torch.save(checkpoint, tmp_path / "old.pt")
    assert load_policy(tmp_path / "old.pt", device="cpu").noise_space == NoiseSpace((8, 3))


@pytest.mark.parametrize("noise", [{"rows": 9}, {"rows": 2}, {"rows": "1"}, {"row": 1}, {"rows": 1, "rest": "mean"}, 3])
def test_a_steered_file_with_an_impossible_noise_space_is_refused(noise, tmp_path):
    save_policy(make_steered(own_policy(OWN[0])), tmp_path / "steered.pt")
    checkpoint = torch.load(tmp_path / "steered.pt", weights_only=True)
    checkpoint["config"]["actor"]["noise"] = noise
    torch.save(checkpoint, tmp_path / "steered.pt")
    with pytest.raises(DsrlError, match="do not make a steered policy"):
        load_policy(tmp_path / "steered.pt", device="cpu")


def test_actions_stay_inside_the_data(own):
    obs, noise = inputs(own.spec)
    chunk = own.sample(100 * obs, 3 * noise)
    middle, half = own.action_normalizer.offset, own.action_normalizer.scale
    assert ((chunk - middle).abs() <= half * 1.0001).all()


def test_far_observations_are_clipped(own):
    obs, _ = inputs(own.spec)
    assert own.encode(1e6 * obs).abs().max() == 5.0


def test_nan_is_named_by_the_key_that_holds_it(own):
    obs, noise = inputs(own.spec)
    obs[3, 1, 5] = float("nan")
    with pytest.raises(ValueError, match=r"observation 'eef_pos'\[1\] is nan \(row 3, step 1\)"):
        own.sample(obs, noise)


def test_the_executed_slice_starts_at_action_start(own):
    obs, noise = inputs(own.spec)
    whole = own.sampler(own.denoiser, own.encode(obs), noise)
    executed = own.action_normalizer.unnormalize(whole)[:, 1:5]
    torch.testing.assert_close(own.sample(obs, noise), executed)


def test_the_loss_falls_and_is_seeded(own):
    obs, _ = inputs(SPEC, batch=32)
    chunks = 0.5 + 2 * torch.rand(32, 8, 3, generator=torch.Generator().manual_seed(2))

    def loss():
        return own.loss(obs, chunks, torch.Generator().manual_seed(3))

    own.requires_grad_(True)
    optimizer = torch.optim.Adam(own.parameters(), lr=3e-3)
    first = loss().item()
    assert loss().item() == first
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.8 * first


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(DsrlError, match="Did you mean 'sampling_steps'"):
        DiffusionPolicy.from_config({"samplingsteps": 8}, SPEC)
    with pytest.raises(ValueError, match="unknown network type 'ump'"):
        FlowPolicy(SPEC, FlowConfig({"type": "ump"}))
