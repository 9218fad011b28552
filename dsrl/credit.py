"""What a decision is known to have earned, credited as its episode goes on, in columns with one row per decision."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor

COLUMNS = ("earned", "remaining", "last")
"""``earned``: discounted rewards from the decision to the end of its episode, as far as it has been played;
``remaining``: discount of what comes after that; ``last``: row of the last decision of the episode so far. They follow
from the columns ``reward``, ``discount``, ``stream`` (which sequence of decisions) and ``ended``"""

Columns = MutableMapping[str, Tensor]


def fresh(new: Columns) -> dict[str, Tensor]:
    """The credit of decisions that nothing has followed yet."""
    zeros = torch.zeros_like(new["reward"])
    return {"earned": new["reward"], "remaining": new["discount"].clone(), "last": zeros}


def spread(columns: Columns, before: Tensor, after: Tensor) -> None:
    """Credit the decisions in rows ``after`` to those in rows ``before``, earlier ones of the same episodes."""
    columns["earned"][before] += columns["remaining"][before] * columns["reward"][after]
    columns["remaining"][before] *= columns["discount"][after]
    columns["last"][before] = after.to(columns["last"])


def spread_anew(columns: Columns, order: Tensor) -> dict[int, list[int]]:
    """Credit all decisions at once, to the bit as one after the other.

    Args:
        columns: with the credit of fresh decisions.
        order: all rows, oldest first.

    Returns:
        the rows of the open episode of every stream.
    """
    # 1. episodes: rows of one stream, one after the other
    order = order[torch.argsort(columns["stream"][order], stable=True)]
    stream, ended = columns["stream"][order], columns["ended"][order].bool()
    goes_on = (stream[1:] == stream[:-1]) & ~ended[:-1]
    following = torch.full((len(columns["reward"]),), -1, device=order.device)
    following[order[:-1][goes_on]] = order[1:][goes_on]
    # 2. one decision further for all rows at a time, as often as the longest episode takes
    columns["last"][order] = order.to(columns["last"])
    before, after = order, following[order]
    while len(before):
        inside = after >= 0
        before, after = before[inside], after[inside]
        spread(columns, before, after)
        after = following[after]
    # 3. those that are still open
    open_episodes = {}
    for one in stream.unique().tolist():
        rows = order[stream == one]
        ends = columns["ended"][rows].nonzero()
        open_episodes[int(one)] = rows[int(ends[-1]) + 1 if len(ends) else 0 :].tolist()
    return open_episodes
