"""Q-functions: an ensemble evaluated at once, and how its members become one number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reduction = Literal["min", "mean", "subset"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class CriticEnsemble(nn.Module):
    """``E`` independent networks ``Q(cond, action)``: Linear, dropout, LayerNorm, activation for every hidden layer.

    Their weights are stacked, so a forward pass takes the same number of operations for two members and for ten.

    Args:
        cond_dim: length of the encoded observation.
        action_dim: length of what is rated, a noise or a flattened chunk.
        hidden_dims: width of every hidden layer.
        n_critics: members.
        activation: ``relu``, ``silu`` or ``tanh``.
        dropout: share of the hidden numbers that a pass for a gradient step leaves out (DroQ, arXiv 2110.02034).
    """

    def __init__(
        self,
        cond_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (128, 128),
        n_critics: int = 2,
        activation: str = "silu",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.config = {
            "cond_dim": cond_dim,
            "action_dim": action_dim,
            "hidden_dims": list(hidden_dims),
            "n_critics": n_critics,
            "activation": activation,
            "dropout": dropout,
        }
        self.n_critics, self.dropout = n_critics, dropout
        self.activation = ACTIVATIONS[activation]()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.scales, self.shifts = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise((cond_dim + action_dim, *hidden_dims, 1)):
            limit = fan_in**-0.5  # what nn.Linear draws from
            self.weights.append(nn.Parameter(torch.empty(n_critics, fan_in, fan_out).uniform_(-limit, limit)))
            self.biases.append(nn.Parameter(torch.empty(n_critics, 1, fan_out).uniform_(-limit, limit)))
        for width in hidden_dims:
            self.scales.append(nn.Parameter(torch.ones(n_critics, 1, width)))
            self.shifts.append(nn.Parameter(torch.zeros(n_critics, 1, width)))

    def forward(self, cond: Tensor, action: Tensor, *, dropout: bool = False) -> Tensor:
        """``(B, C), (B, A)`` -> ``(E, B)``, or, with ``M`` actions each, ``(B, C), (B, M, A)`` -> ``(E, B, M)``."""
        if action.ndim > cond.ndim:
            per_obs = action.shape[1]
            rows = self(cond.repeat_interleave(per_obs, dim=0), action.flatten(0, 1), dropout=dropout)
            return rows.unflatten(1, (-1, per_obs))
        x = torch.cat([cond, action], dim=-1)
        if x.is_cpu and not torch.is_grad_enabled():
            # one after the other they stay in the cache, and LayerNorm scales and shifts in the same pass
            return torch.stack([self._member(index, x) for index in range(self.n_critics)])
        h = x.expand(self.n_critics, -1, -1)
        for index, (scale, shift) in enumerate(zip(self.scales, self.shifts, strict=True)):
            h = torch.baddbmm(self.biases[index], h, self.weights[index])
            if dropout and self.dropout:
                h = F.dropout(h, self.dropout)
            h = torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), scale)
            h = self.activation(h)
        return torch.baddbmm(self.biases[-1], h, self.weights[-1]).squeeze(-1)

    def _member(self, member: int, h: Tensor) -> Tensor:
        """``(B, C + A)`` -> ``(B,)``: what the stacked pass gives, of one member."""
        weights, biases, scales, shifts = (
            [stacked[member] for stacked in each] for each in (self.weights, self.biases, self.scales, self.shifts)
        )
        for weight, bias, scale, shift in zip(weights, biases, scales, shifts, strict=False):
            h = F.layer_norm(torch.addmm(bias, h, weight), scale.shape[-1:], scale[0], shift[0])
            h = self.activation(h)
        return torch.addmm(biases[-1], h, weights[-1]).squeeze(-1)


def reduce_q(q: Tensor, how: Reduction) -> Tensor:
    """``(E, ...)`` -> ``(...)``: pessimistic minimum, mean, or minimum of two random members (REDQ, arXiv 2101.05982).

    Raises:
        ValueError: for another word.
    """
    if how == "min":
        return q.amin(dim=0)
    if how == "mean":
        return q.mean(dim=0)
    if how == "subset":
        return q[torch.randperm(len(q), device=q.device)[:2]].amin(dim=0)
    raise ValueError(f"critics are reduced by {', '.join(get_args(Reduction))}, not '{how}'")
