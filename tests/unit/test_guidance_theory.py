"""What guidance promises and what it does not, in closed form: on two Gaussians and in small decision problems."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from test_guidance import LEVELS
from test_sampler import C
from torch import nn

from dsrl.guidance import Branch, Guidance, GuidedSampler, combine, convert
from dsrl.sampler import Sampler, flow_steps

# -- two Gaussians ----------------------------------------------------------------------------------------------------


class Gaussian(nn.Module):
    """The exact velocity of the rectified flow to ``N(mean, std^2)``, in any number of independent dimensions."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, t, cond):
        sigma = t / 1000
        alpha = 1 - sigma
        x0 = self.mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (x - alpha * self.mean)
        return (x - alpha * x0) / sigma - x0


def tilted(reference, conditional, weight):
    """Mean and std of the density proportional to ``reference^(1-w) * conditional^w``; it may not be normalisable."""
    precisions = [(1 - weight) / reference.std**2, weight / conditional.std**2]
    means = [reference.mean, conditional.mean]
    total = sum(precisions)
    mean = sum(p * m for p, m in zip(precisions, means, strict=True)) / total
    return mean, total**-0.5 if total > 0 else math.nan


def sampled(reference, conditional, weight, n_steps=2000):
    """Mean and std of what the guided sampler gives: it is linear in its noise, so two noises tell both."""
    sampler = Sampler(flow_steps(FlowMatchEulerDiscreteScheduler(), n_steps))
    noise, cond = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1), torch.zeros(2, C)
    guided = GuidedSampler(sampler, Guidance(weight), "flow")
    chunk = guided(Branch(reference, cond), Branch(conditional, cond), noise).flatten()
    return float(chunk[0]), float(chunk[1] - chunk[0])


PAIRS = {
    "narrower": (Gaussian(0.0, 1.0), Gaussian(0.5, 0.5)),
    "shifted": (Gaussian(-0.2, 0.7), Gaussian(0.3, 0.7)),
    "wider": (Gaussian(0.0, 0.5), Gaussian(0.2, 0.6)),
}


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_guided_score_is_that_of_a_known_gaussian_at_every_noise_level(pair, weight):
    """Exact: at a fixed noise level, guidance tilts the two noised densities. Its Gaussian is in closed form."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1)
    for alpha, sigma in LEVELS["rectified flow"]:
        noised = [Gaussian(alpha * g.mean, math.hypot(alpha * g.std, sigma)) for g in PAIRS[pair]]
        mean, std = tilted(*noised, weight)
        assert std > 0
        time = torch.tensor(1000 * sigma, dtype=torch.float64)
        velocities = [g(x, time, None) for g in PAIRS[pair]]
        eps = convert(combine(*velocities, weight), x, "flow", "epsilon", alpha, sigma)
        torch.testing.assert_close(-eps / sigma, -(x - mean) / std**2, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_the_sampler_draws_from_the_tilted_density_where_only_the_means_differ(weight):
    """Exact up to the step size: noising keeps the tilted density tilted, as the variances of the two are equal."""
    pair = PAIRS["shifted"]
    assert sampled(*pair, weight) == pytest.approx(tilted(*pair, weight), abs=2e-3)
    assert tilted(*pair, weight) == pytest.approx((-0.2 + 0.5 * weight, 0.7))


@pytest.mark.parametrize("weight", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("std", [0.5, 1.25])
def test_the_sampler_does_not_draw_from_the_tilted_density_where_the_spreads_differ(std, weight):
    """Not exact: the spread becomes ``s0^(1-w) * s1^w`` and not that of the tilted density.

    With sigma / alpha for time, the guided flow is ``d log x = sum_i w_i * sigma / (s_i^2 + sigma^2) d sigma``, so a
    noise shrinks by ``prod_i s_i^w_i``. Guidance to a narrower conditional collapses faster than the tilted density
    (here 0.125 against 0.316 at weight 3). To a wider one there is no tilted density at all (its precision is
    negative from some weight on), and the sampler still answers.
    """
    pair = Gaussian(0.0, 1.0), Gaussian(0.0, std)
    mean, spread = sampled(*pair, weight)
    assert mean == pytest.approx(0.0, abs=1e-9)
    assert spread == pytest.approx(std**weight, rel=5e-3)
    wanted = tilted(*pair, weight)[1]
    assert math.isnan(wanted) or abs(spread - wanted) > 0.01
    assert math.isnan(wanted) == (std > 1 and weight == 3.0)


class AboveHalf(Gaussian):
    """``N(0, 1)`` given that it is above 0.5: what a policy does where only those actions are called good."""

    def __init__(self):
        super().__init__(0.0, 1.0)

    def forward(self, x, t, cond):
        sigma = t / 1000
        alpha = 1 - sigma
        # x0 given x is N(alpha x, sigma^2) / (alpha^2 + sigma^2), cut off at 0.5
        spread = sigma / (alpha**2 + sigma**2) ** 0.5
        centre = alpha * x / (alpha**2 + sigma**2)
        x0 = centre + spread * mills((0.5 - centre) / spread)
        return (x - alpha * x0) / sigma - x0


def mills(z):
    """Density over upper tail of ``N(0, 1)``: the mean of what lies above ``z``."""
    return math.sqrt(2 / math.pi) / torch.special.erfcx(z / math.sqrt(2))


def test_of_a_hard_label_every_weight_means_the_same_density_but_not_the_same_samples():
    """Tilting by ``1[a > 0.5]^w`` is the same for every w > 0; what a larger w adds is the sampler's doing alone."""
    draws = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    noise, cond = torch.special.ndtri(draws).reshape(-1, 1, 1), torch.zeros(1000, C)
    branches = Branch(Gaussian(0.0, 1.0), cond), Branch(AboveHalf(), cond)
    guided = GuidedSampler(Sampler(flow_steps(FlowMatchEulerDiscreteScheduler(), 64)), Guidance(), "flow")
    means = [float(guided(*branches, noise, weight).mean()) for weight in (1.0, 2.0, 3.0, 5.0)]
    exact = float(mills(torch.tensor(0.5, dtype=torch.float64)))
    assert exact == pytest.approx(1.141, abs=1e-3)
    assert means[0] == pytest.approx(exact, abs=0.03)
    assert means == pytest.approx([1.15, 1.63, 2.00, 2.62], abs=0.03)


# -- what a product policy does to the return -------------------------------------------------------------------------


def evaluate(transition, reward, policy, gamma):
    """Exact values: ``(N, S, A, S'), (N, S, A), (N, S, A)`` -> V ``(N, S)``, Q ``(N, S, A)``."""
    moves = torch.einsum("nsa,nsat->nst", policy, transition)
    gains = torch.einsum("nsa,nsa->ns", policy, reward)
    eye = torch.eye(moves.shape[-1], dtype=moves.dtype)
    value = torch.linalg.solve(eye - gamma * moves, gains)
    return value, reward + gamma * torch.einsum("nsat,nt->nsa", transition, value)


def times(policy, factor):
    """The policy proportional to ``policy * factor``."""
    product = policy * factor
    return product / product.sum(-1, keepdim=True)


def random_mdps(n, n_states, n_actions, seed):
    generator = torch.Generator().manual_seed(seed)

    def simplex(*shape):
        # exponents spread the rows from nearly uniform to nearly deterministic
        draws = torch.rand(shape, generator=generator, dtype=torch.float64).log().neg()
        draws = draws ** (4 * torch.rand(n, *(1,) * (len(shape) - 1), generator=generator, dtype=torch.float64))
        return draws / draws.sum(-1, keepdim=True)

    reward = 2 * torch.randn(n, n_states, n_actions, generator=generator, dtype=torch.float64)
    return (
        simplex(n, n_states, n_actions, n_states),
        reward,
        simplex(n, n_states, n_actions),
        generator,
    )


@pytest.mark.parametrize(("n_states", "n_actions"), [(2, 2), (3, 3), (5, 4)])
@pytest.mark.parametrize("gamma", [0.5, 0.95])
def test_a_product_policy_improves_on_its_reference_in_every_state(n_states, n_actions, gamma):
    """CFGRL's theorem 1: ``pi * f(A) / Z`` with ``f`` nondecreasing and not negative is at least as good as ``pi``."""
    transition, reward, policy, generator = random_mdps(2000, n_states, n_actions, seed=n_states)
    value, q = evaluate(transition, reward, policy, gamma)
    advantage = q - value[..., None]
    # a random step function of the advantage: sorted numbers in the order of the advantages, many of them zero
    order = advantage.flatten(1).argsort(1).argsort(1)
    steps = (torch.rand(order.shape, generator=generator, dtype=torch.float64) - 0.3).clamp_min(0).sort(1).values
    stairs = steps.gather(1, order).view_as(advantage)
    best = advantage == advantage.amax(-1, keepdim=True)
    stairs = stairs + 1e-3 * (best & (stairs.sum(-1, keepdim=True) == 0))  # somewhere every state has a weight
    for factor in (
        (advantage >= -1e-12).double(),
        advantage.exp(),
        (8 * advantage - (8 * advantage).amax(-1, keepdim=True)).exp(),
        torch.sigmoid(3 * advantage),
        stairs,
    ):
        improved, _ = evaluate(transition, reward, times(policy, factor), gamma)
        assert (improved >= value - 1e-9).all()
    worse, _ = evaluate(transition, reward, times(policy, (-advantage).exp()), gamma)
    assert (worse <= value + 1e-9).all() and (worse < value - 1e-3).any(), "the test can tell"


def two_rooms():
    """Two states: ``safe`` in the first ends with 1, ``risky`` leads to the second; there ``good`` pays 4, ``bad`` 0.

    The reference errs in the second room four times out of five, so entering it is a mistake *for the reference*.
    """
    transition = torch.zeros(1, 3, 2, 3, dtype=torch.float64)
    transition[0, 0, 0, 2] = transition[0, 0, 1, 1] = 1
    transition[0, 1:, :, 2] = 1  # the third state is the end
    reward = torch.tensor([[[1, 0], [4, 0], [0, 0]]], dtype=torch.float64)
    policy = torch.tensor([[[0.5, 0.5], [0.2, 0.8], [0.5, 0.5]]], dtype=torch.float64)
    return transition, reward, policy


def returns_of(weights, factor):
    transition, reward, policy = two_rooms()
    value, q = evaluate(transition, reward, policy, gamma=0.999_999_999)
    advantage = q - value[..., None]
    curve = [evaluate(transition, reward, times(policy, factor(advantage, w)), 0.999_999_999)[0] for w in weights]
    return [float(value[0, 0]) for value in curve]


def test_a_larger_weight_can_mean_a_smaller_return_even_where_all_is_exact():
    """The counterexample to "the return is monotone in the weight": ``pi_w`` is ``pi * exp(w A)``, A of the reference.

    As w grows, the second room is played better and better, and visited less and less, because its entry is judged by
    how the *reference* would go on. Every w improves on the reference (0.9), as theorem 1 says; the curve rises
    above 2.2 and falls back towards 1, while the best policy has 4. By hand, for the first state,
    ``J(w) = p + (1 - p) * 4 g``, ``p = 1 / (1 + exp(-0.2 w))``, ``g = 1 / (1 + 4 exp(-4 w))``.
    """
    weights = [0, 0.5, 1, 2, 3, 5, 10, 30]
    curve = returns_of(weights, lambda advantage, w: (w * advantage).exp())
    for weight, value in zip(weights, curve, strict=True):
        p, g = 1 / (1 + math.exp(-0.2 * weight)), 1 / (1 + 4 * math.exp(-4 * weight))
        assert value == pytest.approx(p + (1 - p) * 4 * g, abs=1e-6)
    assert curve[0] == pytest.approx(0.9)
    assert all(value >= curve[0] for value in curve)
    peak = curve.index(max(curve))
    assert weights[peak] == 1 and curve[peak] > 2.2
    assert all(later < earlier - 0.01 for earlier, later in zip(curve[peak:-1], curve[peak + 1 :], strict=True))
    assert curve[-1] < 1.01


def test_a_hard_label_makes_the_weight_void():
    """``1[A >= 0]`` to any power is itself: in theory w = 1, 3 and 10 are one policy, and only the sampler differs."""
    curve = returns_of([1, 3, 10], lambda advantage, w: (advantage >= 0).double() ** w)
    assert curve[0] == curve[1] == curve[2] == pytest.approx(1.0)
