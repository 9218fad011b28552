"""Gradient steps on a policy's own loss, and the moving average of its weights that is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dsrl.averaging import follow
from dsrl.data import Trajectories, bc_windows
from dsrl.errors import RunFailed
from dsrl.interruption import Interruption
from dsrl.policy import PolicySpec
from dsrl.unfinished import NotKept

Report = Callable[[int, Mapping[str, float]], None]
Loss = Callable[..., Tensor]
"""``(policy, *columns, generator)`` -> a tensor of no dimensions"""


class Column(Protocol):
    """Rows of training data: a tensor, or what can be read like one."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


def windows(data: Trajectories, spec: PolicySpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """``(N, To, Do), (N, Tp, Da)``, one row per env step."""
    obs, chunk = bc_windows(data, spec.n_obs_steps, spec.horizon, spec.action_start)
    return torch.from_numpy(obs).to(device), torch.from_numpy(chunk).to(device)


def own_loss(policy: Any, *columns_and_generator: Any) -> Tensor:
    """What a policy has to say itself about columns of training data."""
    return policy.loss(*columns_and_generator)


class _Settings(Protocol):
    """What the recipes that train a policy have in common: frozen dataclasses, so these are read only."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def ema_decay(self) -> float: ...
    @property
    def seed(self) -> int: ...


class Trainer:
    """The optimisation; ``ema`` holds the averaged policy at any time.

    Args:
        policy: what requires no gradient stays as it is.
        config: steps, batch_size, lr, weight_decay, ema_decay and seed.
        report: is told the step and the losses now and then.
        kept: where to go on from, and what is written now and then.
        loss: goes down; left out: the policy's own.
    """

    def __init__(
        self,
        policy: Any,
        config: _Settings,
        report: Report | None = None,
        kept: NotKept | None = None,
        loss: Loss = own_loss,
    ):
        self.policy, self.config, self.report, self.kept, self.loss = policy, config, report, kept or NotKept(), loss
        self.ema = copy.deepcopy(policy)
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        # before the average is frozen: which of its weights are those that move
        self._averages = [parameter for parameter in self.ema.parameters() if parameter.requires_grad]
        self._trained = trained
        self.ema.freeze()
        self.optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, config.steps)
        self.generator = torch.Generator(device=policy.device).manual_seed(config.seed)
        self.step = 0
        self.train_loss = self.valid_loss = float("nan")

    def run(self, train: Sequence[Column], valid: Sequence[Column]) -> None:
        """``config.steps`` gradient steps on columns of equal length, such as ``(obs, chunks)``.

        Ctrl-C and SIGTERM end it between two steps, after what was learned is kept.

        Raises:
            RunFailed: when the loss is no longer finite.
        """
        report_every = max(1, min(100, self.config.steps // 10))
        self._go_on(train)
        self.policy.train()
        with Interruption() as interruption, progress() as bar:
            task = bar.add_task("training", total=self.config.steps, completed=self.step, words="")
            while self.step < self.config.steps:
                self.kept.keep("policy", lambda: self._state(train), now=interruption.requested)
                if interruption.requested:
                    raise KeyboardInterrupt
                loss = self.update(*train)
                if self.step % report_every and self.step < self.config.steps:
                    continue
                # reading the loss waits for the device, so it is done now and then only
                self.train_loss = float(loss)
                if self.train_loss != self.train_loss or self.train_loss == float("inf"):
                    self.kept.finish()
                    raise RunFailed(f"the loss is {self.train_loss} at step {self.step}; try a smaller --lr")
                if self.step % (10 * report_every) == 0 or self.step >= self.config.steps:
                    self.valid_loss = self.validate(*valid)
                words = self._words(bar.tasks[task].speed)
                bar.update(task, completed=self.step, words=words)
                if self.report is not None:
                    self.report(self.step, {"train/loss": self.train_loss, "valid/loss": self.valid_loss})
        self.kept.keep("policy", lambda: self._state(train), now=True)

    def _words(self, steps_per_second: float | None) -> str:
        words = {"loss": self.train_loss, "held out": self.valid_loss}
        shown = [f"{name} {loss:.4f}" for name, loss in words.items() if loss == loss]  # NaN until it is measured
        return "  ".join(shown if steps_per_second is None else [*shown, f"{steps_per_second:.0f} steps/s"])

    def _state(self, train: Sequence[Column]) -> dict[str, Any]:
        return {
            "step": self.step,
            "policy": self.policy.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generators": [generator.get_state() for generator in self._generators(train)],
            "losses": [self.train_loss, self.valid_loss],
        }

    def _go_on(self, train: Sequence[Column]) -> None:
        state = self.kept.part("policy")
        if state is None:
            return
        for name in ("policy", "ema", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        for generator, kept in zip(self._generators(train), state["generators"], strict=True):
            generator.set_state(kept)
        self.step, (self.train_loss, self.valid_loss) = state["step"], state["losses"]

    def _generators(self, train: Sequence[Column]) -> list[torch.Generator]:
        """This one's, and those of columns whose rows are drawn anew whenever they are read."""
        return [self.generator, *(column.generator for column in train if hasattr(column, "generator"))]

    def update(self, *columns: Column) -> Tensor:
        """One gradient step on a random batch."""
        size = (self.config.batch_size,)
        rows = torch.randint(len(columns[0]), size, generator=self.generator, device=self.generator.device)
        loss = self.loss(self.policy, *(column[rows] for column in columns), self.generator)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        # the average of few steps must not remember the random initial weights
        decay = min(self.config.ema_decay, self.step / (self.step + 10))
        follow(self._averages, self._trained, decay)
        return loss.detach()

    def validate(self, *columns: Column, limit: int = 4096) -> float:
        """Loss of the averaged weights, with the same noise every time; NaN without rows."""
        if len(columns[0]) == 0:
            return float("nan")
        generator = torch.Generator(device=self.policy.device).manual_seed(0)
        with torch.no_grad():
            return float(self.loss(self.ema, *(column[:limit] for column in columns), generator))


def progress() -> Progress:
    """A bar for gradient steps; its tasks have ``words`` beside them."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
    )
