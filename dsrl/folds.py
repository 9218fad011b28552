"""Cross-fitting: every recorded decision is rated by values that were learned without its episode.

A value that has seen an episode remembers how it went on: ``V(s)`` comes to what ``Q(s, a)`` says of the one action
that was recorded there, and the advantage to noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dsrl.data import Trajectories
from dsrl.training import Report
from dsrl.transitions import Transitions
from dsrl.unfinished import NotKept
from dsrl.values import Rating, ValuesConfig, fit_values


def rate_in_folds(
    data: Trajectories,
    cut: Transitions,
    values: ValuesConfig,
    folds: int,
    report: Report | None = None,
    kept: NotKept | None = None,
) -> Rating:
    """Learn the values of all episodes but one fold's, rate that fold, and so on.

    Args:
        data: episodes, at least as many as folds.
        cut: their decisions.
        values: how values are learned.
        folds: 2 or more.
        report: is told the step, counted over all folds, and the losses.
        kept: where the values go on from.

    Raises:
        LossNotFinite: when the values have diverged.
    """
    lengths = torch.tensor([len(episode) for episode in data.episodes])
    fold_of = deal(data, folds).repeat_interleave(lengths).to(cut.cond.device)
    rated, rows = [], []
    for fold in range(folds):

        def tell(step: int, metrics: Mapping[str, float], before: int = fold * values.steps) -> None:
            if report is not None:
                report(before + step, metrics)

        others, own = (torch.nonzero(belongs)[:, 0] for belongs in (fold_of != fold, fold_of == fold))
        name = f"values {fold + 1} of {folds}"
        rated.append(fit_values(cut.at(others), values, tell, kept=kept, name=name).rate(cut, own))
        rows.append(own)
    back = torch.cat(rows).argsort()
    return Rating(*(torch.cat(parts, dim=-1)[..., back] for parts in zip(*rated, strict=True)))


def deal(data: Trajectories, folds: int) -> Tensor:
    """``(episodes,)``, the fold that each belongs to: from the worst to the best they are dealt in turn."""
    earned = torch.tensor([float(np.sum(episode.rewards)) for episode in data.episodes])
    order = earned.argsort(stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) % folds)
