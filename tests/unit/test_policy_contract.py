"""One contract for every frozen policy, whatever its kind, network and prediction."""

import pytest
import torch

from dsrl.actor import NoiseActor
from dsrl.critics import CriticEnsemble
from dsrl.diffusion import DiffusionConfig, DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.noise import NoiseSpace, reduced_spaces
from dsrl.policy import FrozenPolicy, PolicySpec
from dsrl.pretrained import load_policy, save_policy
from dsrl.pretrained.toy import ToyPolicy
from dsrl.steered import SelectingPolicy, SteeredPolicy

SPEC = PolicySpec(
    {"object": (2, 2), "eef_pos": (3,)}, action_dim=3, horizon=8, n_action_steps=4, n_obs_steps=2, action_start=1
)
NETWORKS = {
    "mlp": {"type": "mlp", "hidden_dims": [32] * 5},
    "unet": {"type": "unet", "down_dims": [16, 32], "time_dim": 16},
}
CASES = [
    *(f"diffusion-{network}-{kind}" for network in NETWORKS for kind in ("epsilon", "sample", "v_prediction")),
    *(f"flow-{network}" for network in NETWORKS),
]


def make_policy(case):
    kind, network, *prediction = case.split("-")
    torch.manual_seed(0)
    if kind == "flow":
        policy = FlowPolicy(SPEC, FlowConfig(NETWORKS[network]))
    else:
        # 20 levels in 10 steps: every one of them is also the start of the next
        config = DiffusionConfig(NETWORKS[network], sampling_steps=10, prediction_type=prediction[0])
        policy = DiffusionPolicy(SPEC, config)
    policy.fit_normalizers(1 + 3 * torch.randn(64, 2, 7), 0.5 + 2 * torch.rand(64, 8, 3))
    return policy.freeze()


def make_inputs(spec, batch=8):
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(batch, spec.n_obs_steps, spec.obs_dim, generator=generator)
    return obs, torch.randn(batch, *spec.noise_shape, generator=generator)


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


@pytest.fixture(params=[*CASES, "toy", "steered", "steered twice", "selecting", "selecting, a row", *SPACES])
def policy(request):
    if request.param.startswith("selecting"):
        space = SPACES["first row, the rest from the prior"] if request.param.endswith("row") else None
        return make_selecting(make_policy(CASES[0]), space)
    if request.param in SPACES:
        return make_steered(make_policy(CASES[0]), SPACES[request.param])
    if request.param == "toy":
        return ToyPolicy()
    if request.param.startswith("steered"):
        steered = make_steered(make_policy(CASES[0]))
        return make_steered(steered) if request.param.endswith("twice") else steered
    return make_policy(request.param)


@pytest.fixture(params=CASES)
def own_policy(request):
    return make_policy(request.param)


def test_it_is_a_frozen_policy(policy):
    assert isinstance(policy, FrozenPolicy)
    assert not [name for name, parameter in policy.named_parameters() if parameter.requires_grad]


def test_declared_shapes(policy):
    obs, noise = make_inputs(policy.spec)
    cond = policy.encode(obs)
    chunk = policy.decode(cond, noise)
    assert cond.shape == (8, policy.cond_dim)
    assert chunk.shape == (8, policy.spec.n_action_steps, policy.spec.action_dim)
    assert chunk.dtype == torch.float32 and chunk.device == policy.device and torch.isfinite(chunk).all()


def test_it_works_where_it_is_moved(policy):
    """The meta device stands for a GPU: a tensor that was made on the CPU does not mix with its tensors."""
    obs, noise = make_inputs(policy.spec)
    cond = policy.encode(obs)
    policy.decode(cond, noise)  # what is remembered from before the move must not be used after it
    chunk = policy.to("meta").decode(cond.to("meta"), noise.to("meta"))
    assert policy.device.type == chunk.device.type == "meta"


def test_same_noise_same_chunk(policy):
    obs, noise = make_inputs(policy.spec)
    first = policy.sample(obs, noise)
    torch.randn(100)  # the global generator plays no part
    assert torch.equal(first, policy.sample(obs, noise))
    assert torch.equal(first, policy.decode(policy.encode(obs), noise))


def test_different_noise_different_chunk(policy):
    obs, noise = make_inputs(policy.spec)
    # a constant shift: white noise averages out over the horizon of an untrained network
    assert not torch.allclose(policy.sample(obs, noise), policy.sample(obs, noise + 1), atol=1e-3)


def test_a_batch_is_its_singles(policy):
    obs, noise = make_inputs(policy.spec)
    singles = torch.cat([policy.sample(obs[i : i + 1], noise[i : i + 1]) for i in range(len(obs))])
    torch.testing.assert_close(policy.sample(obs, noise), singles, atol=1e-5, rtol=1e-5)


def test_a_dict_is_its_concatenation(policy):
    obs, noise = make_inputs(policy.spec)
    sizes = [int(torch.Size(shape).numel()) for shape in policy.spec.obs_shapes.values()]
    parts = {
        key: part.unflatten(-1, shape)
        for (key, shape), part in zip(policy.spec.obs_shapes.items(), obs.split(sizes, dim=-1), strict=True)
    }
    shuffled = dict(reversed(parts.items()))
    assert torch.equal(policy.sample(obs, noise), policy.sample(shuffled, noise))


def test_inputs_are_left_alone(policy):
    obs, noise = make_inputs(policy.spec)
    kept = obs.clone(), noise.clone()
    policy.sample(obs, noise)
    assert torch.equal(obs, kept[0]) and torch.equal(noise, kept[1])


def test_a_critic_can_learn_on_what_it_returns(policy):
    obs, noise = make_inputs(policy.spec)
    cond = policy.encode(obs)
    chunk = policy.decode(cond, noise)
    critic = torch.nn.Linear(policy.cond_dim + policy.spec.action_dim, 1)
    critic(torch.cat([cond, chunk[:, 0]], dim=-1)).sum().backward()
    assert torch.isfinite(critic.weight.grad).all()


def test_wrong_noise_is_explained(policy):
    obs, noise = make_inputs(policy.spec)
    with pytest.raises(ValueError, match=r"noise has shape .*this policy denoises"):
        policy.sample(obs, noise[:, :-1])
    with pytest.raises(ValueError, match="observation has shape"):
        policy.sample(obs[..., :-1], noise)


def test_save_and_load_change_nothing(own_policy, tmp_path):
    obs, noise = make_inputs(own_policy.spec)
    save_policy(own_policy, tmp_path / "ckpt.pt")
    loaded = load_policy(tmp_path, device="cpu")
    assert torch.equal(own_policy.sample(obs, noise), loaded.sample(obs, noise))
    assert list(loaded.spec.obs_shapes.items()) == list(SPEC.obs_shapes.items())
    assert loaded.config_dict() == own_policy.config_dict()


@pytest.mark.parametrize("space", [NoiseSpace((8, 3)), *SPACES.values()], ids=NoiseSpace.describe)
def test_a_steered_policy_is_saved_with_its_noise_space(space, tmp_path):
    live = make_steered(make_policy(CASES[0]), space)
    save_policy(live, tmp_path / "steered.pt")
    loaded = load_policy(tmp_path / "steered.pt", device="cpu")
    obs, noise = make_inputs(live.spec)
    assert loaded.noise_space == space and loaded.spec.noise_shape == live.spec.noise_shape
    assert torch.equal(loaded.sample(obs, noise), live.sample(obs, noise))


@pytest.mark.parametrize("space", [NoiseSpace((8, 3)), *SPACES.values()], ids=NoiseSpace.describe)
def test_a_selecting_policy_is_saved_with_its_critics_and_its_choice(space, tmp_path):
    live = make_selecting(make_policy(CASES[0]), space)
    save_policy(live, tmp_path / "selecting.pt")
    loaded = load_policy(tmp_path / "selecting.pt", device="cpu")
    obs, noise = make_inputs(live.spec)
    assert loaded.kind == "selecting" and loaded.acting_scale == 1.0 and loaded.choice == live.choice
    assert loaded.noise_space == space and loaded.spec.noise_shape == live.spec.noise_shape
    assert torch.equal(loaded.sample(obs, noise), live.sample(obs, noise))


def test_a_selecting_policy_plays_the_candidate_of_the_highest_pessimistic_value():
    policy = make_selecting(make_policy(CASES[0]), candidates=6)
    low, high = torch.tensor(policy.choice["low"]), torch.tensor(policy.choice["high"])
    obs, noise = make_inputs(policy.spec)
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
    policy = make_selecting(make_policy(CASES[0]))
    obs, noise = make_inputs(policy.spec)
    drawn = torch.randn(noise.shape, generator=torch.Generator().manual_seed(4))
    chunk = policy.predict(obs.numpy(), deterministic, torch.Generator().manual_seed(4))
    assert chunk.shape == (8, 4, 3) and (chunk == policy.sample(obs, drawn).numpy()).all()
    assert policy.predict(obs[0].numpy(), deterministic).shape == (4, 3)


def test_a_steered_file_without_a_noise_space_means_the_full_one(tmp_path):
    live = make_steered(make_policy(CASES[0]))
    save_policy(live, tmp_path / "new.pt")
    checkpoint = torch.load(tmp_path / "new.pt", weights_only=True)
    del checkpoint["config"]["actor"]["noise"]  # as files were before there were noise spaces
    torch.save(checkpoint, tmp_path / "old.pt")
    assert load_policy(tmp_path / "old.pt", device="cpu").noise_space == NoiseSpace((8, 3))


@pytest.mark.parametrize("noise", [{"rows": 9}, {"rows": 2}, {"rows": "1"}, {"row": 1}, {"rows": 1, "rest": "mean"}, 3])
def test_a_steered_file_with_an_impossible_noise_space_is_refused(noise, tmp_path):
    save_policy(make_steered(make_policy(CASES[0])), tmp_path / "steered.pt")
    checkpoint = torch.load(tmp_path / "steered.pt", weights_only=True)
    checkpoint["config"]["actor"]["noise"] = noise
    torch.save(checkpoint, tmp_path / "steered.pt")
    with pytest.raises(DsrlError, match="do not make a steered policy"):
        load_policy(tmp_path / "steered.pt", device="cpu")


def test_actions_stay_inside_the_data(own_policy):
    obs, noise = make_inputs(own_policy.spec)
    chunk = own_policy.sample(100 * obs, 3 * noise)
    middle, half = own_policy.action_normalizer.offset, own_policy.action_normalizer.scale
    assert ((chunk - middle).abs() <= half * 1.0001).all()


def test_far_observations_are_clipped(own_policy):
    obs, _ = make_inputs(own_policy.spec)
    assert own_policy.encode(1e6 * obs).abs().max() == 5.0


def test_nan_is_named(policy):
    obs, noise = make_inputs(policy.spec)
    obs[3, -1, 3] = float("nan")
    last, (key, shape) = policy.spec.n_obs_steps - 1, next(iter(policy.spec.obs_shapes.items()))
    assert torch.Size(shape).numel() == 4, "the fourth number is still one of the first key"
    with pytest.raises(ValueError, match=rf"observation '{key}'\[3\] is nan \(row 3, step {last}\)"):
        policy.sample(obs, noise)


def test_nan_is_named_by_the_key_that_holds_it(own_policy):
    obs, noise = make_inputs(own_policy.spec)
    obs[3, 1, 5] = float("nan")
    with pytest.raises(ValueError, match=r"observation 'eef_pos'\[1\] is nan \(row 3, step 1\)"):
        own_policy.sample(obs, noise)


def test_the_executed_slice_starts_at_action_start(own_policy):
    obs, noise = make_inputs(own_policy.spec)
    whole = own_policy.sampler(own_policy.denoiser, own_policy.encode(obs), noise)
    executed = own_policy.action_normalizer.unnormalize(whole)[:, 1:5]
    torch.testing.assert_close(own_policy.sample(obs, noise), executed)


def test_the_loss_falls_and_is_seeded(own_policy):
    obs, _ = make_inputs(SPEC, batch=32)
    chunks = 0.5 + 2 * torch.rand(32, 8, 3, generator=torch.Generator().manual_seed(2))

    def loss():
        return own_policy.loss(obs, chunks, torch.Generator().manual_seed(3))

    own_policy.requires_grad_(True)
    optimizer = torch.optim.Adam(own_policy.parameters(), lr=3e-3)
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
