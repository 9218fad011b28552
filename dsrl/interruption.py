"""Ctrl-C and SIGTERM as a wish: the first is granted where nothing is lost, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While it is entered, a first signal only sets :attr:`requested`; a second one raises ``KeyboardInterrupt``.

    Outside the main thread, where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.insisted = False
        """whether there was a second one"""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self.insisted = True
            raise KeyboardInterrupt
        self.requested = True
        # not through Python's buffers, which the signal may have interrupted
        os.write(2, b"\ndsrl: stopping where it can be resumed; once more leaves at once\n")


def was_interrupted(error: BaseException) -> bool:
    """Whether an error only followed from Ctrl-C or SIGTERM."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause is not None
