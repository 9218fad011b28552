"""Implicit Q-learning: values of recorded decisions, without ever asking for an action that was not recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsrl.averaging import follow
from dsrl.critics import CriticEnsemble, reduce_q
from dsrl.errors import LossNotFinite
from dsrl.interruption import Interruption
from dsrl.limits import within
from dsrl.training import Report, progress
from dsrl.transitions import Transitions
from dsrl.unfinished import NotKept

_ROWS = 16_384
"""that are rated at once"""
_SPREAD = 20.0
"""standard deviation of the returns in what :func:`fit_values` lets the networks put out: far more than a step of Adam
adds, or the noise of its steps, of which an expectile is the upper edge, is bootstrapped into values"""


@dataclass(frozen=True)
class ValuesConfig:
    """How values are learned: as in CFGRL's experiments (arXiv 2505.23458), by smaller networks in fewer steps."""

    expectile: float = 0.9
    """which expectile of Q over the recorded chunks is the value: 0.5 is their mean, which is the value of the
    behaviour; towards 1 it is the best of them"""
    tau: float = 0.03
    """share of the online critics in the target critics, per step; the paper's 0.005 takes more steps"""
    hidden_dims: tuple[int, ...] = (128, 128)
    """of critics and value"""
    n_critics: int = 2
    """the pessimistic minimum of them counts"""
    lr: float = 3e-4
    """of Adam"""
    steps: int = 10_000
    """gradient steps"""
    batch_size: int = 256
    """decisions per gradient step"""
    seed: int = 0
    """of the initial weights and the batches"""

    def __post_init__(self) -> None:
        within(self, "[1, inf)", "n_critics", "steps", "batch_size", prefix="values.")
        within(self, "(0, inf)", "lr", prefix="values.")
        within(self, "(0, 1)", "expectile", prefix="values.")
        within(self, "(0, 1]", "tau", prefix="values.")


class Rating(NamedTuple):
    """Of ``N`` recorded decisions."""

    advantages: Tensor
    """``(E, N)`` of each target critic"""
    q: Tensor
    """``(N,)`` the smallest one"""
    returns: Tensor
    """``(N,)`` what followed"""


class ImplicitQ(nn.Module):
    """Implicit Q-learning (arXiv 2110.06169) over chunks.

    Args:
        cond_dim: length of an encoded observation.
        chunk_dim: length of a flattened chunk.
        config: sizes and rates.
        zero, unit: of the networks, which put out ``(return - zero) / unit``.
    """

    zero: Tensor
    unit: Tensor

    def __init__(
        self,
        cond_dim: int,
        chunk_dim: int,
        config: ValuesConfig,
        zero: float | Tensor = 0.0,
        unit: float | Tensor = 1.0,
    ):
        super().__init__()
        self.config = config
        self.register_buffer("zero", torch.as_tensor(zero))
        self.register_buffer("unit", torch.as_tensor(unit))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.critic = CriticEnsemble(cond_dim, chunk_dim, config.hidden_dims, config.n_critics)
            self.state_value = CriticEnsemble(cond_dim, 0, config.hidden_dims, 1)
        self.critic_target = deepcopy(self.critic).requires_grad_(False)
        trained = [*self.critic.parameters(), *self.state_value.parameters()]
        self.optimizer = torch.optim.Adam(trained, lr=config.lr, fused=True)

    def value(self, cond: Tensor) -> Tensor:
        """``(B, C)`` -> V, ``(B,)``."""
        return self._counted(self.state_value(cond, cond[:, :0])[0])

    @torch.no_grad()
    def q(self, cond: Tensor, chunk: Tensor) -> Tensor:
        """``(B, C), (B, Ta * Da)`` -> Q of each target critic, ``(E, B)``."""
        parts = zip(cond.split(_ROWS), chunk.split(_ROWS), strict=True)
        return self._counted(torch.cat([self.critic_target(*part) for part in parts], dim=1))

    @torch.no_grad()
    def advantages(self, cond: Tensor, chunk: Tensor) -> Tensor:
        """``Q - V`` of each target critic, ``(E, B)``; the smallest one is the advantage."""
        return self.q(cond, chunk) - self._values(cond)

    @torch.no_grad()
    def returns(self, data: Transitions, rows: Tensor | slice = slice(None)) -> Tensor:
        """What followed these decisions, ``(N,)``; the value stands in for what was not recorded to its end."""
        after = self._values(data.next_cond[data.last[rows]])
        return data.earned[rows] + data.remaining[rows] * after

    @torch.no_grad()
    def rate(self, data: Transitions, rows: Tensor | slice = slice(None)) -> Rating:
        """All that the labels of these decisions depend on; those that it has learned from are rated too kindly."""
        cond, chunk = data.cond[rows], data.chunk[rows]
        q = self.q(cond, chunk)
        return Rating(q - self._values(cond), reduce_q(q, "min"), self.returns(data, rows))

    def _counted(self, output: Tensor) -> Tensor:
        """What a network puts out, as a return."""
        return self.zero + self.unit * output

    def _values(self, cond: Tensor) -> Tensor:
        """V of many at once, ``(B,)``."""
        return torch.cat([self.value(part) for part in cond.split(_ROWS)])

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One gradient step on everything; what it returns stays on the device."""
        value_loss, advantage = self._value_loss(batch)
        critic_loss, q = self._critic_loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        (value_loss + critic_loss).backward()
        self.optimizer.step()
        follow(self.critic_target.parameters(), self.critic.parameters(), 1 - self.config.tau)
        return {
            "train/value_loss": value_loss.detach(),
            "train/critic_loss": critic_loss.detach(),
            "train/q": q,
            "train/positive_rate": (advantage >= 0).float().mean(),
        }

    def _value_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """V towards an expectile of Q (eq. 5); beside it the advantages ``(B,)``."""
        error = reduce_q(self.q(batch.cond, batch.chunk), "min") - self.value(batch.cond)
        weight = torch.where(error > 0, self.config.expectile, 1 - self.config.expectile)
        return (weight * (error / self.unit).square()).mean(), error.detach()

    def _critic_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """Q towards ``r + gamma^k V(s')`` (eq. 6), nothing after a termination; beside it the mean of Q."""
        with torch.no_grad():
            target = batch.reward + torch.where(batch.terminated, 0.0, batch.discount) * self.value(batch.next_cond)
        q = self._counted(self.critic(batch.cond, batch.chunk))
        return 0.5 * ((q - target) / self.unit).square().mean(dim=1).sum(), q.detach().mean()


def fit_values(
    data: Transitions,
    config: ValuesConfig,
    report: Report | None = None,
    report_every: int = 1000,
    kept: NotKept | None = None,
    name: str = "values",
) -> ImplicitQ:
    """Learn the values of a data set, on its device; the unit of its rewards makes no difference.

    Args:
        data: all of it is drawn from, with replacement.
        config: sizes, rates, number of steps.
        report: is told the step and the metrics now and then.
        report_every: gradient steps in between.
        kept: where to go on from, and what is written now and then.
        name: of what is kept.

    Raises:
        LossNotFinite: when a loss has diverged.
    """
    fit, kept = _Fit(data, config), kept or NotKept()
    if (state := kept.part(name)) is not None:
        fit.go_on(state)
    with Interruption() as interruption, progress() as bar:
        task = bar.add_task(name, total=config.steps, completed=fit.step, words="")
        while fit.step < config.steps:
            kept.keep(name, fit.state, now=interruption.requested)
            if interruption.requested:
                raise KeyboardInterrupt
            metrics = fit.update()
            bar.update(task, completed=fit.step)
            if fit.step % report_every and fit.step < config.steps:
                continue
            # reading waits for the device, so it is done now and then only
            read = {metric: float(value) for metric, value in metrics.items()}
            for metric, value in read.items():
                if not math.isfinite(value):
                    kept.finish()
                    raise LossNotFinite(
                        f"{metric} is {value} after {fit.step} gradient steps; try a smaller --values.lr"
                    )
            bar.update(task, words=f"critic loss {read['train/critic_loss']:.2g}")
            if report is not None:
                report(fit.step, read)
    kept.keep(name, fit.state, now=True)
    return fit.learner.requires_grad_(False)


class _Fit:
    """Implicit Q-learning under way."""

    def __init__(self, data: Transitions, config: ValuesConfig):
        self.data, self.batch_size, self.step = data, config.batch_size, 0
        spread, mean = torch.std_mean(data.earned, correction=0)
        unit = torch.where(spread > 0, spread / _SPREAD, 1.0)
        self.learner = ImplicitQ(data.cond.shape[1], data.chunk.shape[1], config, mean, unit).to(data.cond.device)
        self.generator = torch.Generator(device=data.cond.device).manual_seed(config.seed)

    def update(self) -> dict[str, Tensor]:
        """One gradient step on a random batch."""
        size, generator = (self.batch_size,), self.generator
        rows = torch.randint(len(self.data), size, generator=generator, device=generator.device)
        self.step += 1
        return self.learner.update(self.data.at(rows))

    def state(self) -> dict[str, Any]:
        """To go on from."""
        return {
            "step": self.step,
            "learner": self.learner.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def go_on(self, state: Mapping[str, Any]) -> None:
        """From there."""
        self.step = state["step"]
        self.learner.load_state_dict(state["learner"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
