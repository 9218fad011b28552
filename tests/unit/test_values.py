"""Implicit Q-learning finds the values that can be worked out by hand."""

from dataclasses import replace

import pytest
import torch
from test_transitions import Reader, make_data, make_episode

from dsrl.errors import DsrlError, LossNotFinite
from dsrl.labels import Threshold, label
from dsrl.transitions import Transitions, cut_transitions
from dsrl.values import ImplicitQ, ValuesConfig, fit_values

GAMMA = 0.9
ROOMS = torch.eye(3)
"""the first room, the second one, the end"""
LEFT, RIGHT = torch.tensor([-1.0]), torch.tensor([1.0])


def make_chain():
    """In the first room, left leads to the second one and right ends with 0.5; there, right pays 1 and left nothing.

    Right is played in half of the visits to the first room and in a quarter of those to the second one.
    """
    rows = [
        # room, action, reward, next room, terminated; how often
        *[(0, LEFT, 0.0, 1, False)] * 2,
        *[(0, RIGHT, 0.5, 2, True)] * 2,
        (1, RIGHT, 1.0, 2, True),
        *[(1, LEFT, 0.0, 2, True)] * 3,
    ]
    room, action, reward, behind, ended = zip(*rows, strict=True)
    earned = torch.tensor(reward)
    return Transitions(
        cond=ROOMS[list(room)],
        chunk=torch.stack(action),
        reward=earned,
        discount=torch.full((8,), GAMMA),
        next_cond=ROOMS[list(behind)],
        terminated=torch.tensor(ended),
        earned=earned,
        remaining=torch.where(torch.tensor(ended), 0.0, GAMMA),
        last=torch.arange(8),
        gamma=GAMMA,
    )


def between(low, high, share_high, expectile):
    """The expectile of two values: where ``tau * p * (high - e) = (1 - tau) * (1 - p) * (e - low)``."""
    up, down = expectile * share_high, (1 - expectile) * (1 - share_high)
    return low + (high - low) * up / (up + down)


def learn(data, steps=300, **config):
    """On all rows in every step, so that nothing is left to chance but the initial weights."""
    sizes = data.cond.shape[1], data.chunk.shape[1]
    learner = ImplicitQ(*sizes, ValuesConfig(hidden_dims=(32,), lr=0.02, tau=0.2, **config))
    for step in range(steps):
        learner.update(data)
        for group in learner.optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
    return learner.requires_grad_(False)


@pytest.mark.parametrize("expectile", [0.5, 0.9, 0.99])
def test_the_values_of_a_chain_are_its_expectiles(expectile):
    """0.5 is the value of the behaviour (as SARSA learns it); towards 1 it becomes the best that was ever done."""
    data = make_chain()
    learner = learn(data, expectile=expectile)
    second = between(0.0, 1.0, 0.25, expectile)
    low, high = sorted([GAMMA * second, 0.5])
    first = between(low, high, 0.5, expectile)
    torch.testing.assert_close(learner.value(ROOMS)[:2], torch.tensor([first, second]), atol=0.02, rtol=0)
    q = learner.q(ROOMS[[0, 0, 1, 1]], torch.stack([LEFT, RIGHT, LEFT, RIGHT]))
    torch.testing.assert_close(q, torch.tensor([GAMMA * second, 0.5, 0.0, 1.0]).expand(2, 4), atol=0.02, rtol=0)
    if expectile == 0.5:
        assert first == pytest.approx((0.9 * 0.25 + 0.5) / 2) and second == 0.25
    if expectile == 0.99:
        assert abs(first - 0.9) < 0.04 and abs(second - 1.0) < 0.04, "nearly those of the best policy"


def test_labels_say_what_beats_the_value():
    """Of the behaviour, going left in the first room is bad; of the best recorded one it is good."""
    data = make_chain()
    rows = [0, 2, 4, 5]  # left and right in the first room, right and left in the second
    found = learn(data, expectile=0.5).rate(data)
    labels, report = label(found.advantages, Threshold(), found.q, found.returns)
    assert labels[rows].tolist() == [0, 1, 1, 0]
    assert report.positive_rate == 3 / 8 and report.flip_rate == 0
    found = learn(data, expectile=0.8).rate(data)
    labels, report = label(found.advantages, Threshold(), found.q, found.returns)
    # V of the second room is 4/7 and of the first one between 0.5 and 0.9 * 4/7
    assert labels[rows].tolist() == [1, 0, 1, 0]
    assert report.auc > 0.9


@pytest.mark.parametrize(("terminated", "value"), [((), 2.0), ((4,), 1 / (1 - 0.5 * 4 / 5))])
def test_a_time_limit_bootstraps_and_a_termination_does_not(terminated, value):
    """Reward 1 for ever is worth ``1 / (1 - gamma)``; the end of a recording does not change that."""
    episode = make_episode([1.0] * 5, terminated)
    for each in (episode.obs["at"], episode.next_obs["at"], episode.actions):
        each.fill(1.0)
    data = cut_transitions(make_data(episode), Reader(), gamma=0.5)
    learner = learn(data, expectile=0.5)
    assert float(learner.value(torch.ones(1, 1))) == pytest.approx(value, abs=0.02)
    expected = [sum(0.5**i for i in range(5 - t)) + (0 if terminated else 0.5 ** (5 - t) * 2) for t in range(5)]
    assert learner.returns(data).tolist() == pytest.approx(expected, abs=0.02)


def test_the_value_of_the_end_of_its_episode_stands_in_for_what_was_not_recorded():
    data = cut_transitions(make_data(make_episode([1.0, 2.0]), make_episode([4.0] * 3, start=7)), Reader(), gamma=0.5)
    learner = ImplicitQ(1, 2, ValuesConfig(hidden_dims=(16,)))
    ends = learner.value(torch.tensor([[2.0], [10.0]])).tolist()
    expected = [2 + 0.25 * ends[0], 2 + 0.5 * ends[0], *(7 + ends[1] / 8, 6 + ends[1] / 4, 4 + ends[1] / 2)]
    assert learner.returns(data).tolist() == pytest.approx(expected)
    assert abs(ends[0] - ends[1]) > 1e-3


def test_chunks_are_discounted_by_the_env_steps_they_took():
    """Chunks of two steps of the same endless reward: ``(1 + gamma) / (1 - gamma^2)`` is the same value."""
    episode = make_episode([1.0] * 6)
    for each in (episode.obs["at"], episode.next_obs["at"], episode.actions):
        each.fill(1.0)
    data = cut_transitions(make_data(episode), Reader(n_action_steps=2), gamma=0.5)
    assert data.discount.tolist() == [0.25] * 5 + [0.5]
    assert float(learn(data, expectile=0.5).value(torch.ones(1, 1))) == pytest.approx(2.0, abs=0.02)


def test_fitting_is_seeded_reports_and_leaves_nothing_to_train():
    data, told = make_chain(), []
    config = ValuesConfig(hidden_dims=(16,), steps=25, batch_size=8)
    first = fit_values(data, config, lambda step, metrics: told.append((step, metrics)), report_every=10)
    again = fit_values(data, config)
    assert torch.equal(first.value(ROOMS), again.value(ROOMS))
    assert not torch.equal(first.value(ROOMS), fit_values(data, replace(config, seed=1)).value(ROOMS))
    assert [step for step, _ in told] == [10, 20, 25]
    assert set(told[0][1]) == {"train/value_loss", "train/critic_loss", "train/q", "train/positive_rate"}
    assert not any(parameter.requires_grad for parameter in first.parameters())


@pytest.mark.parametrize("factor", [2.0**-10, 2.0**8])
def test_the_unit_of_the_rewards_makes_no_difference(factor):
    """Powers of two, which round nothing."""
    data, config = make_chain(), ValuesConfig(hidden_dims=(16,), steps=300, batch_size=8, lr=0.01, tau=0.2)
    found = fit_values(data, config).rate(data)
    scaled = replace(data, reward=factor * data.reward, earned=factor * data.earned)
    for one, other in zip(fit_values(scaled, config).rate(scaled), found, strict=True):
        torch.testing.assert_close(one / factor, other)
    assert float(found.q.std()) > 0.05


def test_rewards_that_never_differ_have_a_value_too():
    data = cut_transitions(make_data(make_episode([2.0], [0])), Reader(), gamma=0.5)
    learner = fit_values(data, ValuesConfig(hidden_dims=(16,), steps=2000, lr=0.01, tau=0.2))
    assert learner.rate(data).q.tolist() == pytest.approx([2.0], abs=0.05)


def test_the_targets_follow_slowly():
    data, learner = make_chain(), ImplicitQ(3, 1, ValuesConfig(hidden_dims=(16,), tau=0.1))
    before = [weight.clone() for weight in learner.critic_target.parameters()]
    learner.update(data)
    for old, target, online in zip(
        before, learner.critic_target.parameters(), learner.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(target, old + 0.1 * (online - old))


def test_a_loss_that_diverges_is_named():
    data = make_chain()
    data.reward[0] = float("inf")
    with pytest.raises(LossNotFinite, match=r"train/\w+ is (inf|nan) after 3 gradient steps"):
        fit_values(data, ValuesConfig(hidden_dims=(16,), steps=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expectile": 1.0}, r"--values\.expectile is 1.0"),
        ({"tau": 0.0}, r"--values\.tau is 0.0"),
        ({"lr": 0.0}, r"--values\.lr is 0.0"),
        ({"batch_size": 0}, r"--values\.batch-size is 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(DsrlError, match=message):
        ValuesConfig(**options)
