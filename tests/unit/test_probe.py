"""What a noise space costs the base policy, and when that is too much to start from."""

import numpy as np
import pytest
import torch

from dsrl.evaluate import Evaluation, evaluation_envs
from dsrl.noise import NoiseSpace, reduced_spaces
from dsrl.pretrained.toy import ToyPolicy
from dsrl.probe import Probe, probe

POLICY = ToyPolicy()
SHAPE = POLICY.spec.noise_shape


def check(noise_space: NoiseSpace | None = None, **settings) -> Probe:
    with evaluation_envs(POLICY, n_envs=4) as envs:
        return probe(POLICY, envs, states=16, noise_space=noise_space, **settings)


def scored(wins: int, episodes: int, name: str = "base") -> Evaluation:
    success, numbers = np.arange(episodes) < wins, np.zeros(episodes)
    return Evaluation(name, False, success, success, numbers, numbers.astype(int), seed=0)


def found(base: Evaluation, clipped: Evaluation, chosen: Evaluation | None = None) -> Probe:
    return Probe(base, clipped, base, base, repeats=1, spread=np.zeros(2), chosen=chosen)


def test_the_toy_policy_survives_in_the_full_noise():
    full = check()
    assert full.chosen is None and full.spaces == () and full.objection() is None


def test_a_space_that_breaks_the_base_policy_is_found():
    broken = check(NoiseSpace(SHAPE, rows=1, rest="zero"))  # the toy policy needs as much noise as it is used to
    assert broken.chosen.success_rate < broken.base.success_rate - 0.2
    assert broken.chosen.success.size == broken.base.success.size
    assert "in the noise space 'first row, the rest zero'" in broken.objection()


def test_a_bound_that_breaks_the_base_policy_is_found():
    broken = check(NoiseSpace(SHAPE, bound=0.05))
    assert broken.clipped.success_rate == 0 and "Take a larger --bound" in broken.objection()


def test_rows_beside_the_prior_are_the_base_policy():
    kept = check(NoiseSpace(SHAPE, rows=1, rest="prior"))
    np.testing.assert_array_equal(kept.chosen.success, kept.base.success)
    assert kept.objection() is None


def test_every_space_is_played_from_the_same_states():
    table = dict(check(compare=reduced_spaces(SHAPE, 1.5)).rows())
    names = [name for name in table if name.startswith("noise space: ")]
    assert len(names) == 6 and "noise space: first row repeated" in names


def test_the_space_of_the_agent_is_played_once():
    agent = NoiseSpace(SHAPE, rows=1, rest="repeat")
    both = check(agent, compare=reduced_spaces(SHAPE, 1.5))
    assert both.chosen.policy == agent.describe() and agent.describe() not in {e.policy for e in both.spaces}


@pytest.mark.parametrize(
    ("base", "other", "refused"),
    [
        ((90, 100), (10, 100), True),
        ((90, 100), (75, 100), False),  # 15 points: less than what steering should win back
        ((9, 10), (5, 10), False),  # 40 points, but ten episodes say too little
        ((40, 100), (90, 100), False),
    ],
)
def test_a_loss_counts_when_it_is_large_and_no_chance(base, other, refused: bool):
    base, other = scored(*base), scored(*other, "a space")
    assert (found(base, other).objection() is not None) is refused
    assert (found(base, base, other).objection() is not None) is refused


def test_an_objection_says_what_was_found_and_what_to_do():
    objection = found(scored(90, 100), scored(90, 100), scored(10, 100, "first row repeated")).objection()
    for word in ("90% [83, 94]", "first row repeated", "10% [6, 17]", "--noise.rows", "--accept-noise-space"):
        assert word in objection


def test_clipping_happens_where_the_agent_chooses():
    space = NoiseSpace(SHAPE, bound=0.5, basis=1)
    noise = 4 * torch.ones(1, *SHAPE)
    torch.testing.assert_close(space.project(noise, clip=True), torch.full((1, *SHAPE), 0.25))
