"""Which recorded actions are good ones: rules that turn advantages into labels, and what such labels are worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dsrl.errors import DsrlError

Rule = Callable[[Tensor], Tensor]
"""``(N,)`` advantages -> ``(N,)`` in [0, 1]: the probability that an action is called a good one"""


@dataclass(frozen=True)
class Threshold:
    """``A >= at``, the rule of CFGRL (arXiv 2505.23458)."""

    at: float = 0.0
    """in units of the return"""

    def __call__(self, advantage: Tensor) -> Tensor:
        """0 or 1."""
        return (advantage >= self.at).to(advantage)


@dataclass(frozen=True)
class Quantile:
    """The best ``share`` of all, the rule of RECAP (arXiv 2511.14759); ties with the last of them are good too."""

    share: float = 0.3

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise DsrlError(f"the share of good actions is {self.share}; it must be above 0 and below 1")

    def __call__(self, advantage: Tensor) -> Tensor:
        """0 or 1."""
        count = max(1, round(self.share * len(advantage)))
        return (advantage >= advantage.topk(count).values[-1]).to(advantage)


@dataclass(frozen=True)
class Soft:
    """``sigmoid(A / temperature)``: how good an action is still counts, so the guidance weight means something."""

    temperature: float = 1.0
    """in units of the return"""

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise DsrlError(f"the temperature of the labels is {self.temperature}; it must be positive")

    def __call__(self, advantage: Tensor) -> Tensor:
        """Strictly between 0 and 1, as far as rounding allows."""
        return torch.sigmoid(advantage / self.temperature)


RULES: dict[str, Callable[..., Rule]] = {"threshold": Threshold, "quantile": Quantile, "soft": Soft}
"""by name; their arguments are those of the classes"""


@dataclass(frozen=True)
class LabelReport:
    """What is worth knowing about labels before anything is trained on them."""

    positive_rate: float
    """share of the actions that are called good; 20 to 50 % leave something to learn from in both classes"""
    flip_rate: float
    """share whose label two critics do not agree on"""
    auc: float
    """probability that the critic rates a decision with a better return than average above one with a worse; .5 is
    guessing, NaN says that all returns are the same"""

    def metrics(self) -> dict[str, float]:
        """For a logger."""
        return {f"labels/{name}": float(value) for name, value in vars(self).items()}

    def concerns(self) -> list[str]:
        """What speaks against using them, in sentences that name the metric."""
        found = []
        if not 0.1 <= self.positive_rate <= 0.9:
            found.append(
                f"labels/positive_rate is {self.positive_rate:.1%}: one class is nearly empty. A value that has not "
                "converged does that; train it for longer, or use the quantile rule"
            )
        if self.flip_rate > 0.25:
            found.append(f"labels/flip_rate is {self.flip_rate:.0%}: the critics do not agree on what is good")
        if self.auc < 0.6:
            found.append(f"labels/auc is {self.auc:.2f}: the critic hardly tells what led to good returns")
        return found


def label(advantages: Tensor, rule: Rule, q: Tensor, returns: Tensor) -> tuple[Tensor, LabelReport]:
    """Labels by the most pessimistic critic, and how far they can be trusted.

    Args:
        advantages: ``(E, N)``, of each critic.
        rule: one of :data:`RULES`.
        q: ``(N,)``, what the critic says of the recorded chunks.
        returns: ``(N,)``, what followed them.

    Returns:
        ``(N,)`` in [0, 1], and the report.

    Raises:
        DsrlError: when all labels are of one class, or an advantage is not finite.
    """
    if not torch.isfinite(advantages).all():
        raise DsrlError("labels/advantage is not finite: the critic has diverged; train it with a smaller --values.lr")
    labels = rule(advantages.amin(dim=0))
    report = LabelReport(float(labels.mean()), float(flip_rate(advantages, rule)), auc(q, returns > returns.mean()))
    low, high = (float(value) for value in labels.aminmax())
    if low == high:
        raise DsrlError(
            f"labels/positive_rate is {report.positive_rate:.0%}: all {len(labels)} labels are {low:g}, so there is "
            "nothing to tell good actions from; use the quantile rule, train the value for longer, or record worse "
            "(or better) behaviour too"
        )
    return labels, report


def flip_rate(advantages: Tensor, rule: Rule) -> Tensor:
    """``(E, N)`` -> the share of actions whose label is not the same for every critic, a tensor of no dimensions."""
    votes = torch.stack([rule(advantage) >= 0.5 for advantage in advantages])
    return (votes.any(dim=0) != votes.all(dim=0)).float().mean()


def auc(score: Tensor, good: Tensor) -> float:
    """Area under the ROC curve: the chance that a good one scores above a bad one, ties counting half.

    Args:
        score: ``(N,)``.
        good: ``(N,)`` bool.

    Returns:
        NaN when all are good, or none is.
    """
    n_good, n_bad = int(good.sum()), int((~good).sum())
    if not n_good or not n_bad:
        return float("nan")
    # Mann-Whitney: ranks from 1, equal scores share their mean rank
    _, place, count = score.double().unique(return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count - 1) / 2)[place]
    return float((rank[good].sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))
