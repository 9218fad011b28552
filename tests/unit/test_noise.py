"""Which noise the agent may choose: the full one, some of its rows, or a few cosines over the horizon."""

import pytest
import torch

from dsrl.config import NoiseSpaceConfig
from dsrl.errors import DsrlError
from dsrl.noise import NoiseSpace, cosines, reduced_spaces

SHAPE = (8, 3)
ROWS = [NoiseSpace(SHAPE, rows=3, rest=rest) for rest in ("prior", "zero", "repeat")]
SPACES = [NoiseSpace(SHAPE), *ROWS, NoiseSpace(SHAPE, basis=2), NoiseSpace(SHAPE, rows=8), NoiseSpace(SHAPE, basis=8)]

each_space = pytest.mark.parametrize("space", SPACES, ids=NoiseSpace.describe)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def covariance(noise: torch.Tensor) -> torch.Tensor:
    """Over time, ``(Tp, Tp)``, of every action dimension alike."""
    samples = noise.movedim(1, -1).flatten(0, 1)
    return samples.T @ samples / len(samples)


@each_space
def test_an_action_becomes_the_whole_noise(space: NoiseSpace):
    noise = space.to_noise(draw(5, space.size), draw(5, space.rest_size))
    assert noise.shape == (5, *SHAPE) and noise.dtype == torch.float32


@pytest.mark.parametrize(
    ("layout", "size", "rest"),
    [
        ({}, 24, 0),
        ({"rows": 3, "rest": "prior"}, 9, 15),
        ({"rows": 3, "rest": "zero"}, 9, 0),
        ({"rows": 3, "rest": "repeat"}, 9, 0),
        ({"rows": 8, "rest": "prior"}, 24, 0),
        ({"basis": 2}, 6, 0),
    ],
)
def test_the_agent_has_as_many_numbers_as_it_chooses(layout: dict, size: int, rest: int):
    space = NoiseSpace(SHAPE, **layout)
    assert (space.size, space.rest_size) == (size, rest)
    assert space.action_space().shape == (size,) and space.action_space(4).shape == (4, size)
    assert space.layout() == layout


def test_the_full_space_is_the_prior():
    action = draw(5, 24)
    assert torch.equal(NoiseSpace(SHAPE).to_noise(action), action.reshape(5, *SHAPE))


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)])
def test_the_full_space_takes_noise_of_any_shape(shape: tuple[int, ...]):
    noise = draw(5, *shape)
    assert torch.equal(NoiseSpace(shape).project(noise), noise)


def test_rows_are_repeated_in_turn():
    action = draw(5, 9)
    noise = NoiseSpace(SHAPE, rows=3, rest="repeat").to_noise(action)
    rows = action.reshape(5, 3, 3)
    for step in range(8):
        assert torch.equal(noise[:, step], rows[:, step % 3])


def test_the_rest_is_zero():
    noise = NoiseSpace(SHAPE, rows=3, rest="zero").to_noise(draw(5, 9))
    assert torch.equal(noise[:, :3], draw(5, 9).reshape(5, 3, 3)) and not noise[:, 3:].any()


def test_the_rest_is_what_was_drawn():
    rest = draw(5, 15, seed=1)
    noise = NoiseSpace(SHAPE, rows=3, rest="prior").to_noise(draw(5, 9), rest)
    assert torch.equal(noise[:, :3], draw(5, 9).reshape(5, 3, 3))
    assert torch.equal(noise[:, 3:], rest.reshape(5, 5, 3))


def test_rows_leave_the_rest_to_the_prior_unless_told_otherwise():
    assert NoiseSpace(SHAPE, rows=1).rest == NoiseSpaceConfig(rows=1).rest == "prior"


@pytest.mark.parametrize("horizon", [1, 2, 7, 16])
def test_the_cosines_are_orthonormal(horizon: int):
    basis = cosines(horizon, horizon)
    torch.testing.assert_close(basis.T @ basis, torch.eye(horizon, dtype=basis.dtype))


def test_the_first_cosine_is_constant_and_later_ones_are_faster():
    basis = cosines(8, 8)
    assert torch.allclose(basis[:, 0], basis[0, 0])
    changes = [int((column[1:] * column[:-1] < 0).sum()) for column in basis.T]
    assert changes == list(range(8)), "the k-th cosine changes its sign k times"


def test_a_basis_gives_the_projection_of_the_prior():
    space = NoiseSpace(SHAPE, basis=2)
    noise = space.to_noise(draw(20_000, space.size))
    basis = cosines(8, 2).float()
    torch.testing.assert_close(covariance(noise), basis @ basis.T, atol=0.02, rtol=0)


def test_a_full_basis_is_the_prior_rotated():
    space = NoiseSpace(SHAPE, basis=8)
    action = draw(20_000, space.size)
    noise = space.to_noise(action)
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), action.norm(dim=1))
    torch.testing.assert_close(covariance(noise), torch.eye(8), atol=0.02, rtol=0)


@each_space
def test_what_lies_in_a_space_is_left_alone(space: NoiseSpace):
    noise = space.to_noise(draw(5, space.size), draw(5, space.rest_size, seed=1))
    torch.testing.assert_close(space.project(noise), noise)


@each_space
def test_a_space_keeps_the_prior_when_every_draw_stays_what_it_is(space: NoiseSpace):
    noise = draw(5, *SHAPE)
    assert space.keeps_prior == torch.allclose(space.project(noise), noise, atol=1e-5)


def test_only_what_the_agent_chooses_is_clipped():
    noise = 3 * draw(5, *SHAPE)
    clipped = NoiseSpace(SHAPE, rows=3, rest="prior").project(noise, clip=True)
    assert torch.equal(clipped[:, :3], noise[:, :3].clamp(-1.5, 1.5)) and torch.equal(clipped[:, 3:], noise[:, 3:])


@each_space
def test_a_space_is_rebuilt_from_plain_values(space: NoiseSpace):
    assert NoiseSpace(SHAPE, space.bound, **space.layout()) == space


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((24,), {"rows": 1}, r"shape \(24,\).*no rows to choose from; use the full noise"),
        ((24,), {"basis": 1}, r"shape \(24,\).*no basis to choose from"),
        (SHAPE, {"rows": 9}, "rows is 9; it must lie between 1 and 8"),
        (SHAPE, {"basis": 0}, "basis is 0; it must lie between 1 and 8"),
        (SHAPE, {"rows": 1, "basis": 1}, "not both"),
        (SHAPE, {"rows": 1, "rest": "mean"}, "'mean'; it is one of prior, zero, repeat"),
    ],
)
def test_an_impossible_space_is_refused(shape: tuple[int, ...], layout: dict, message: str):
    with pytest.raises(ValueError, match=message):
        NoiseSpace(shape, **layout)


def test_a_space_that_a_policy_does_not_have_is_bad_input():
    with pytest.raises(DsrlError, match="--noise: rows is 9"):
        NoiseSpace.from_config(SHAPE, 1.5, NoiseSpaceConfig(rows=9))


def test_a_rest_that_is_missing_or_not_wanted_is_refused():
    with pytest.raises(ValueError, match=r"0 numbers of the rest .* has 15"):
        NoiseSpace(SHAPE, rows=3, rest="prior").to_noise(draw(5, 9))
    with pytest.raises(ValueError, match=r"15 numbers of the rest .* has 0"):
        NoiseSpace(SHAPE, rows=3, rest="zero").to_noise(draw(5, 9), draw(5, 15))


@pytest.mark.parametrize(("shape", "count"), [((8, 3), 6), ((4, 2), 6), ((2, 2), 4), ((1, 2), 0), ((9,), 0)])
def test_spaces_to_compare_fit_the_horizon(shape: tuple[int, ...], count: int):
    spaces = reduced_spaces(shape, 1.5)
    assert len(spaces) == len({space.describe() for space in spaces}) == count
