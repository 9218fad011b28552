"""The stacked ensemble is a loop of small networks, only faster."""

import pytest
import torch
from torch import nn

from dsrl.critics import ACTIVATIONS, CriticEnsemble, reduce_q

CONDS, NOISES = (torch.randn(7, width, generator=torch.Generator().manual_seed(width)) for width in (5, 3))


def make(n_critics: int = 4, activation: str = "silu", hidden_dims: tuple[int, ...] = (16, 12)) -> CriticEnsemble:
    torch.manual_seed(0)
    ensemble = CriticEnsemble(5, 3, hidden_dims, n_critics, activation)
    with torch.no_grad():
        for parameter in ensemble.parameters():  # scales and shifts that say something
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ensemble


def member(ensemble: CriticEnsemble, index: int) -> nn.Sequential:
    """One of its networks, as anybody would write it."""
    layers: list[nn.Module] = []
    for layer, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.load_state_dict({"weight": weight[index].T, "bias": bias[index, 0]})
        layers.append(linear)
        if layer < len(ensemble.scales):
            norm = nn.LayerNorm(weight.shape[2])
            norm.load_state_dict({"weight": ensemble.scales[layer][index, 0], "bias": ensemble.shifts[layer][index, 0]})
            layers += [norm, ACTIVATIONS[ensemble.config["activation"]]()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("hidden_dims", [(16,), (16, 12), (8, 8, 8)])
def test_the_ensemble_is_a_loop_over_its_networks(activation: str, hidden_dims: tuple[int, ...]):
    ensemble = make(activation=activation, hidden_dims=hidden_dims)
    rows = torch.cat([CONDS, NOISES], dim=1)
    loop = torch.stack([member(ensemble, index)(rows).squeeze(1) for index in range(4)])
    torch.testing.assert_close(ensemble(CONDS, NOISES), loop, atol=1e-6, rtol=1e-6)


def test_the_gradients_are_those_of_the_loop():
    ensemble = make()
    networks = [member(ensemble, index) for index in range(4)]
    ensemble(CONDS, NOISES).square().mean(dim=1).sum().backward()
    for index, network in enumerate(networks):
        network(torch.cat([CONDS, NOISES], dim=1)).square().mean().backward()
        torch.testing.assert_close(ensemble.weights[0].grad[index].T, network[0].weight.grad, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ensemble.scales[1].grad[index, 0], network[4].weight.grad, atol=1e-6, rtol=1e-5)


def test_many_actions_per_observation_are_that_many_calls():
    ensemble, actions = make(), torch.randn(7, 6, 3)
    singles = torch.stack([ensemble(CONDS, actions[:, index]) for index in range(6)], dim=-1)
    assert ensemble(CONDS, actions).shape == (4, 7, 6)
    torch.testing.assert_close(ensemble(CONDS, actions), singles, atol=1e-6, rtol=1e-6)


def test_the_members_begin_differently_and_the_config_rebuilds_the_ensemble():
    ensemble = CriticEnsemble(5, 3, (16,), n_critics=3)
    values = ensemble(CONDS, NOISES)
    assert not any(torch.allclose(values[i], values[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    again = CriticEnsemble(**ensemble.config)
    again.load_state_dict(ensemble.state_dict())
    assert torch.equal(again(CONDS, NOISES), values)


def test_dropout_is_for_gradient_steps():
    whole = make()
    sparse = CriticEnsemble(**{**whole.config, "dropout": 0.2})
    sparse.load_state_dict(whole.state_dict())
    assert not torch.equal(sparse(CONDS, NOISES, dropout=True), sparse(CONDS, NOISES, dropout=True))
    assert torch.equal(sparse(CONDS, NOISES), whole(CONDS, NOISES)), "not where something is rated"
    assert torch.equal(whole(CONDS, NOISES, dropout=True), whole(CONDS, NOISES))


def test_an_ensemble_becomes_one_number_in_three_ways():
    q = torch.randn(10, 4, 5)
    assert torch.equal(reduce_q(q, "min"), q.min(dim=0).values)
    torch.testing.assert_close(reduce_q(q, "mean"), q.mean(dim=0))
    draws = [reduce_q(q, "subset") for _ in range(20)]
    pairs = [torch.minimum(q[i], q[j]) for i in range(10) for j in range(i)]
    assert all(any(torch.equal(draw, pair) for pair in pairs) for draw in draws), "the smaller of two of its members"
    assert not all(torch.equal(draw, draws[0]) for draw in draws), "other members every time"
    assert all((draw >= reduce_q(q, "min")).all() for draw in draws)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="reduced by min, mean, subset, not 'median'"):
        reduce_q(torch.zeros(2, 3), "median")
