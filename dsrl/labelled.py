"""Chunks to learn from, each with the probability of being a good one: recorded ones, or samples of the base policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dsrl.awr import awr_weights
from dsrl.critics import CriticEnsemble, reduce_q
from dsrl.data import Trajectories
from dsrl.demos import under_convention
from dsrl.diffusion import DiffusionPolicy, FlowPolicy
from dsrl.errors import DsrlError
from dsrl.folds import rate_in_folds
from dsrl.labels import LabelReport, Rule, auc, label
from dsrl.policy import FrozenPolicy
from dsrl.training import Report, windows
from dsrl.transitions import cut_transitions
from dsrl.unfinished import NotKept
from dsrl.values import ValuesConfig, fit_values


@dataclass(frozen=True)
class Rows:
    """Columns of equal length."""

    obs: Tensor
    """``(N, To, Do)`` in environment units"""
    chunk: Tensor
    """``(N, Tp, Da)`` in environment units, the whole horizon"""
    label: Tensor
    """``(N,)`` in [0, 1]"""
    advantage: Tensor
    """``(N,)`` in units of the return, by the most pessimistic critic"""

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the loss of a guided policy takes."""
        return self.obs, self.chunk, self.label

    def weighted(self, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """What the loss of advantage-weighted regression takes."""
        return self.obs, self.chunk, awr_weights(self.advantage, 1 / temperature)

    def good(self) -> Rows:
        """Without those that are bad for certain."""
        return self.at(self.label > 0)

    def at(self, rows: Tensor | slice) -> Rows:
        """Some of them."""
        return Rows(self.obs[rows], self.chunk[rows], self.label[rows], self.advantage[rows])


@dataclass(frozen=True)
class Labelled:
    """What a guided policy is trained on."""

    train: Rows
    valid: Rows
    """of other episodes"""
    report: LabelReport
    held_out_auc: float = float("nan")
    """of the episodes that the critic has not learned from, where it has learned from the others that are labelled"""
    in_successes: float = float("nan")
    """share of good chunks in the episodes that succeeded, where some did and some did not"""
    in_failures: float = float("nan")
    """in the others"""

    def metrics(self) -> dict[str, float]:
        """For a logger; those that say nothing are left out."""
        own = {"auc_held_out": self.held_out_auc, "in_successes": self.in_successes, "in_failures": self.in_failures}
        found = {**self.report.metrics(), **{f"labels/{name}": value for name, value in own.items()}}
        return {name: value for name, value in found.items() if value == value}

    def concerns(self) -> list[str]:
        """What speaks against using them, in sentences that name the metric."""
        found = self.report.concerns()
        if self.in_successes - self.in_failures < 0.05:
            found.append(
                f"labels/in_successes is {self.in_successes:.0%} and labels/in_failures {self.in_failures:.0%}: what "
                "is called good has little to do with how an episode ends. Values that remember single episodes do "
                "that; more --folds, fewer --values.steps or more data help"
            )
        return found


def label_recorded(
    train: Trajectories,
    valid: Trajectories,
    policy: FrozenPolicy,
    rule: Rule,
    values: ValuesConfig,
    *,
    gamma: float,
    reward: str,
    source: str,
    folds: int = 2,
    report: Report | None = None,
    kept: NotKept | None = None,
) -> Labelled:
    """Label what was recorded by the values of implicit Q-learning (:mod:`~dsrl.folds`).

    Args:
        train, valid: episodes, as :func:`~dsrl.demos.read_demos` returns them.
        policy: whose history, chunk and normaliser count.
        rule: from advantages to labels; over both parts at once.
        values: how values are learned.
        gamma: discount per env step.
        reward: convention, as in training.
        source: of the data, for messages.
        folds: parts of the episodes, with as many successes each as can be; 1 learns once, from ``train``, and rates
            all, which is enough where the data are too many to be remembered.
        report: is told the step and the losses of the values.
        kept: where the values go on from.

    Raises:
        DsrlError: without rewards, with fewer episodes than folds, or with labels of one class; the message names the
            metric.
        LossNotFinite: when the values have diverged.
    """
    both = Trajectories((*train.episodes, *valid.episodes), train.obs_shapes, train.env)
    if not any(episode.success or np.any(episode.rewards) for episode in both.episodes):
        raise DsrlError(
            f"{source} has no rewards: all {both.n_steps} of them are 0 and no episode is marked as a success, so "
            "there is no advantage to label actions by; record rewards, or let an agent rate samples of the base "
            "policy (--labels critic --agent RUN)"
        )
    if len(both) < folds:
        raise DsrlError(
            f"{source} has {len(both)} episodes, fewer than --folds {folds}; --folds 1 rates them all at once"
        )
    played = under_convention(both, reward)
    cut = cut_transitions(played, policy, gamma, source)
    n_train = sum(len(episode) for episode in played.episodes[: len(train)])
    held_out = float("nan")
    if folds > 1:
        rating = rate_in_folds(played, cut, values, folds, report, kept)
    else:
        rating = fit_values(cut.at(slice(n_train)), values, report, kept=kept).rate(cut)
        if len(valid):
            returns = rating.returns[n_train:]
            held_out = auc(rating.q[n_train:], returns > returns.mean())
    labels, quality = label(rating.advantages, rule, rating.q, rating.returns)
    # what comes after the end has no label
    steps = zip(both.episodes, played.episodes, strict=True)
    labelled = np.concatenate([np.arange(len(recorded)) < len(episode) for recorded, episode in steps])
    obs, chunk = (column[torch.from_numpy(labelled)] for column in windows(both, policy.spec, policy.device))
    rows = Rows(obs, chunk, labels, reduce_q(rating.advantages, "min"))
    parts = rows.at(slice(n_train)), rows.at(slice(n_train, None))
    return Labelled(*parts, quality, held_out, *_shares(labels, played))


def _shares(labels: Tensor, data: Trajectories) -> tuple[float, float]:
    """Of good chunks in the episodes that succeeded, and in the others; NaN where there is only one kind."""
    succeeded = np.concatenate([np.full(len(episode), episode.success) for episode in data.episodes])
    if succeeded.all() or not succeeded.any():
        return float("nan"), float("nan")
    rows = torch.from_numpy(succeeded).to(labels.device)
    return float(labels[rows].mean()), float(labels[~rows].mean())


@dataclass(frozen=True)
class ChunkCritic:
    """What rates the executed chunks of a policy; see :func:`~dsrl.actor_file.read_critic`."""

    q: CriticEnsemble
    low: Tensor
    high: Tensor


def label_samples(
    train: Trajectories,
    valid: Trajectories,
    base: DiffusionPolicy | FlowPolicy,
    rule: Rule,
    critic: ChunkCritic,
    *,
    candidates: int,
    states: int,
    seed: int,
) -> Labelled:
    """Label samples of the base policy at recorded observations, by a critic and against each other.

    No action of the data is used, and no env step is taken: all chunks are what the base policy does anyway, and the
    mean over its samples is the value that an advantage is counted from.

    Args:
        train, valid: episodes, of which the observations count.
        base: makes the chunks.
        rule: from advantages to labels, at every observation for itself.
        critic: rates them, the most pessimistic of its members.
        candidates: samples per observation.
        states: observations at most; of the held-out ones a quarter of that.
        seed: of the choice of observations and of the samples.

    Raises:
        DsrlError: with labels of one class; the message names the metric.
    """
    generator = torch.Generator(device=base.device).manual_seed(seed)

    def at_each(advantages: Tensor) -> Tensor:
        return torch.cat([rule(one) for one in advantages.split(candidates)])

    def sampled(data: Trajectories, most: int) -> tuple[Rows, LabelReport | None]:
        obs = windows(data, base.spec, base.device)[0] if len(data) else torch.empty(0)
        if not len(obs):
            nothing = torch.zeros(0, device=base.device)
            return Rows(nothing, nothing, nothing, nothing), None
        obs = obs[torch.randperm(len(obs), generator=generator, device=base.device)[:most]]
        chunk, q = _rated_samples(base, obs, critic, candidates, generator)
        # one value for all critics, as in implicit Q-learning
        advantages = (q - q.amin(0).mean(dim=-1, keepdim=True)).flatten(1)
        # there is no return to compare with
        labels, report = label(advantages, at_each, q.amin(0).flatten(), torch.zeros_like(advantages[0]))
        rows = Rows(obs.repeat_interleave(candidates, dim=0), chunk, labels, reduce_q(advantages, "min"))
        return rows, report

    rows, report = sampled(train, states)
    assert report is not None, "a split leaves at least one episode for training"
    return Labelled(rows, sampled(valid, max(1, states // 4))[0], report)


@torch.no_grad()
def _rated_samples(
    base: DiffusionPolicy | FlowPolicy, obs: Tensor, critic: ChunkCritic, candidates: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Whole chunks ``(B * N, Tp, Da)`` in environment units, and Q of each critic ``(E, B, N)``."""
    chunks, ratings = [], []
    for part in obs.split(max(1, 4096 // candidates)):
        cond = base.encode(part)
        told = base.tell(cond).repeat_interleave(candidates, dim=0)
        noise = torch.randn(len(told), *base.spec.noise_shape, generator=generator, device=base.device)
        whole = base.sampler(base.denoiser, told, noise)
        played = base.executed(whole).clamp(critic.low, critic.high)
        ratings.append(critic.q(cond, rearrange(played, "(b n) t d -> b n (t d)", n=candidates)))
        chunks.append(base.action_normalizer.unnormalize(whole))
    return torch.cat(chunks), torch.cat(ratings, dim=1)


# -- could the base policy have done that? ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Support:
    """How far recorded chunks lie from what a policy does at the same observations."""

    distance: float
    """median over the observations, to the nearest sample, in standard deviations of the recorded actions"""
    foreign_share: float
    """of the recorded chunks, those farther off than 95 % of the policy's own samples; .05 is a perfect match"""
    samples: int

    def metrics(self) -> dict[str, float]:
        """For a logger."""
        return {"data/distance": self.distance, "data/foreign_share": self.foreign_share}

    def concern(self) -> str | None:
        """What speaks against extracting from these data, naming the metrics."""
        if self.foreign_share <= 0.5 or self.distance < 0.05:
            return None
        return (
            f"data/foreign_share is {self.foreign_share:.0%} and data/distance {self.distance:.2f}: so many of the "
            f"recorded chunks lie farther from the nearest of {self.samples} samples of the base policy than 95 % of "
            "its own samples do, half of them by more than that many standard deviations. It could hardly have "
            "produced them; how the two behaviours differ will be learned as if it were good, and a weight above 1 "
            "exaggerates it"
        )


@torch.no_grad()
def support(
    base: FrozenPolicy, obs: Tensor, chunk: Tensor, *, samples: int = 16, states: int = 512, seed: int = 0
) -> Support:
    """Compare recorded chunks with samples of a policy.

    Args:
        base: the policy.
        obs: ``(N, To, Do)``, recorded.
        chunk: ``(N, Ta, Da)``, what was executed there.
        samples: of the policy per observation.
        states: observations at most, drawn at random.
        seed: of the draw and of the samples.
    """
    generator = torch.Generator(device=obs.device).manual_seed(seed)
    scale = chunk.flatten(0, 1).std(dim=0)
    scale = scale.clamp_min(0.01 * float(scale.max())).clamp_min(1e-6)
    rows = torch.randperm(len(obs), generator=generator, device=obs.device)[:states]
    cond, recorded = base.encode(obs[rows]), chunk[rows]
    noise: Any = torch.randn(samples + 1, len(rows), *base.spec.noise_shape, generator=generator, device=obs.device)
    made = torch.stack([base.decode(cond, each) for each in noise])

    def nearest(one: Tensor) -> Tensor:
        return ((made[:-1] - one) / scale).square().flatten(2).mean(dim=2).sqrt().amin(dim=0)

    theirs, own = nearest(recorded), nearest(made[-1])
    return Support(float(theirs.median()), float((theirs > own.quantile(0.95)).float().mean()), samples)
