"""What is logged about the noise and the critics."""

import math

import pytest
import torch
from na_agents import COND, NOISE, agent, toy_envs
from stable_baselines3 import SAC

from dsrl.actor import NoiseActor
from dsrl.noise_diagnostics import NoiseDiagnostics, _of_noise


def actor(mean: float = 0.0, log_std: float = 0.0, squash: bool = False, bound: float = 10.0) -> NoiseActor:
    """The same Gaussian everywhere."""
    shape = {"sizes": [COND], "action_dim": NOISE, "activation": "silu", "state_dependent_std": False}
    made = NoiseActor({**shape, "squash": squash, "bound": bound})
    with torch.no_grad():
        made.mean.weight.zero_()
        made.mean.bias.fill_(mean)
        made.log_std.fill_(log_std)
    return made


def test_the_prior_is_at_no_distance_from_itself():
    found = {name: float(value) for name, value in _of_noise(actor(), torch.zeros(3, COND)).items()}
    assert found == pytest.approx({"noise/rms": 1.0, "noise/saturated": 0.0, "noise/kl": 0.0}, abs=1e-5)


def test_the_distance_of_a_gaussian_is_the_closed_form():
    found = _of_noise(actor(0.5, math.log(0.3)), torch.zeros(3, COND))
    kl = NOISE * 0.5 * (0.5**2 + 0.3**2 - 1 - 2 * math.log(0.3))
    assert float(found["noise/kl"]) == pytest.approx(kl, rel=1e-4)
    assert float(found["noise/rms"]) == pytest.approx(math.sqrt(0.5**2 + 0.3**2), rel=1e-4)


def test_noise_at_the_bound_is_counted():
    assert float(_of_noise(actor(50.0, squash=True, bound=1.5), torch.zeros(2, COND))["noise/saturated"]) == 1.0
    still = _of_noise(actor(0.0, -9.0, squash=True, bound=1.5), torch.zeros(2, COND))
    assert float(still["noise/saturated"]) == 0.0


def watched(model, budget=400):
    steps = [0]
    callback = NoiseDiagnostics(budget, lambda: steps[0], lambda: actor())
    on_step = callback._on_step

    def counting():
        steps[0] += sum(info["chunk_length"] for info in callback.locals["infos"])
        return on_step()

    callback._on_step = counting
    model.learn(160, callback=callback)
    return callback


def test_noise_aliased_sac_logs_all_of_it_and_learns_the_same():
    plain = agent()
    plain.learn(160)
    model = agent()
    found = watched(model).measure()
    assert set(found) == {"noise/rms", "noise/saturated", "noise/kl", "critic/std", "critic/gap", "critic/agreement"}
    # of the actor that learns, which has left the prior, whatever is deployed
    assert (
        found["noise/kl"] > 1e-4
        and -1 <= found["critic/agreement"] <= 1
        and found["critic/std"] > 0
        and found["critic/gap"] > 0
    )
    for one, other in zip(plain.policy.parameters(), model.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_critic_distilled_to_the_end_agrees_with_its_teacher():
    model = agent()
    callback = watched(model)
    steering = model._steering()

    class Teacher(torch.nn.Module):
        """Rates a noise by what becomes of it."""

        def forward(self, cond, noise):
            rows = cond.repeat_interleave(noise.shape[1], dim=0), noise.flatten(0, 1)
            return model.policy.critic(cond, steering.decode(*rows).flatten(1).unflatten(0, noise.shape[:2]))

    model.policy.noise_critic = Teacher()
    with torch.no_grad():
        found = callback._distilled(torch.zeros(4, COND))
    assert float(found["critic/gap"]) < 1e-6 and float(found["critic/agreement"]) == pytest.approx(1, abs=1e-4)


def test_stock_sac_logs_what_it_has():
    model = SAC("MlpPolicy", toy_envs(), learning_starts=40, seed=0, device="cpu", policy_kwargs={"net_arch": [16]})
    assert {"noise/kl", "critic/std"} <= set(watched(model).measure())
