"""Minutes of learning, kept beside the file that they will end in: the same command goes on where it broke off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dsrl.errors import DsrlError
from dsrl.facts import differences
from dsrl.files import replacing

State = Mapping[str, Any]


class NotKept:
    """Nothing is written down: whoever is interrupted begins again."""

    def part(self, name: str) -> State | None:
        """None: it begins."""
        return None

    def keep(self, name: str, state: Callable[[], State], *, now: bool = False) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""


class Unfinished(NotKept):
    """``OUT.unfinished``: what a command that writes ``OUT`` has learned so far.

    Every part that learns goes on from :meth:`part`, asks :meth:`keep` after every gradient step, which writes now and
    then, and the command ends with :meth:`finish`. So Ctrl-C, SIGTERM and ``kill -9`` cost ``interval`` seconds at
    most, and on a CPU the result is the one of a command that was never broken off, to the bit.

    Args:
        out: the file that will be written in the end.
        facts: what the result depends on.
        anew: begin again where something else was begun.
        interval: seconds between two writes.
        say: is told when there is something to go on with.

    Raises:
        DsrlError: when something else was begun there and is not to be dropped.
    """

    def __init__(
        self,
        out: Path,
        facts: Mapping[str, Any],
        *,
        anew: bool = False,
        interval: float = 30.0,
        say: Callable[[str], None] = lambda _: None,
    ):
        self.out, self.interval = out, interval
        self.path = out.with_name(f"{out.name}.unfinished")
        self._facts: dict[str, Any] = json.loads(json.dumps(facts, default=str))
        self._parts: dict[str, State] = {}
        self._due = time.monotonic() + interval
        if self.path.exists():
            self._read(anew)
            if self._parts:
                say(f"going on with {self.path}")

    def _read(self, anew: bool) -> None:
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            before = json.loads(found["facts"])
        except Exception as error:
            if anew:
                return
            raise DsrlError(
                f"{self.path} cannot be read ({error}); remove it, or begin again with --overwrite"
            ) from error
        changes = differences(before, self._facts)
        if not changes:
            self._parts = found["parts"]
        elif not anew:
            raise DsrlError(
                f"{self.path} was begun with other settings: {'; '.join(changes)}. Put that back to go on, or begin "
                "again with --overwrite"
            )

    def part(self, name: str) -> State | None:
        """What that part has kept; None when it begins."""
        return self._parts.get(name)

    def keep(self, name: str, state: Callable[[], State], *, now: bool = False) -> None:
        """Write down a part: tensors, numbers and words in dicts and lists. Without ``now``, only when it is time to.

        Raises:
            RunFailed: when it cannot be written.
        """
        if not now and time.monotonic() < self._due:
            return
        self._parts[name] = state()
        with replacing(self.path) as aside:
            torch.save({"facts": json.dumps(self._facts), "parts": self._parts}, aside)
        self._due = time.monotonic() + self.interval

    @property
    def partial(self) -> Path:
        """Where the result of an interrupted command goes, as far as it came."""
        return self.out.with_name(f"{self.out.name}.partial")

    def explain(self, when: str, partial: Path | None = None) -> str:
        """What to say after an interruption; ``partial`` is a checkpoint that can be used as it is."""
        usable = "" if partial is None else f"a policy that can be used is in {partial}; "
        return f"interrupted {when}; {usable}the same command goes on from there"

    def finish(self) -> None:
        """The file is written, or what was learned is worth nothing: nothing is left to go on from."""
        self.path.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)
