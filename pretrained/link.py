"""The client's end of a connection to a policy server: opened, asked, opened again when the server was restarted."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

from dsrl.errors import DsrlError
from dsrl.pretrained.wire import MAX_MESSAGE_BYTES, Hello, Malformed, hello_in, pack, require_extra, unpack

OPEN_TIMEOUT_S = 10.0
"""for the connection, and again for the server's first message"""
ANSWER_TIMEOUT_S = 300.0
"""for one answer; a server that has died is noticed at once"""
RECONNECT_S = 30.0
"""how long a server that went away may take to come back"""
_RETRY_S = 0.5
_CLOSE_TIMEOUT_S = 1.0


class _Lost(Exception):
    """The connection ended before the answer came."""


class _Unreachable(DsrlError):
    """Nobody answers at the address: it may be too early."""


class Link:
    """A connection to ``address``; :attr:`hello` is what the server said about its policy.

    Raises:
        DsrlError: when nobody listens there, or what listens is no policy server of this protocol.
    """

    def __init__(
        self,
        address: str,
        *,
        open_timeout: float = OPEN_TIMEOUT_S,
        answer_timeout: float = ANSWER_TIMEOUT_S,
        reconnect: float = RECONNECT_S,
    ):
        require_extra()
        self.address = address
        self.open_timeout, self.answer_timeout, self.reconnect = open_timeout, answer_timeout, reconnect
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._connection: Any = None
        self.hello = self._open()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request, wait for its answer. A server that went away is waited for, and asked once more.

        Raises:
            DsrlError: when it stays away, is another one when it comes back, does not answer in time, or answers with
                an error or with what is no message.
        """
        message = pack(request)
        with self._lock:
            try:
                answer = self._exchange(message)
            except _Lost as lost:
                self._reopen(lost)
                try:
                    answer = self._exchange(message)
                except _Lost as again:
                    raise DsrlError(
                        f"{self.address}: the policy server went away twice over the same request '{request['op']}' "
                        f"({again}); see what it printed"
                    ) from again
        if "error" in answer:
            raise DsrlError(f"{self.address}: the policy server could not {request['op']}: {answer['error']!s:.400}")
        return answer

    def close(self) -> None:
        """End the connection; the next :meth:`ask` opens a new one."""
        self._connection = None
        self._stack.close()

    def _exchange(self, message: bytes) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        if self._connection is None:
            raise _Lost("the connection was closed before")
        try:
            self._connection.send(message)
            return unpack(self._connection.recv(self.answer_timeout))
        except TimeoutError as error:
            self.close()
            raise DsrlError(
                f"{self.address}: the policy server did not answer within {self.answer_timeout:g} s; does it hang, or "
                "is its max_batch too large for its machine?"
            ) from error
        except Malformed as error:
            self.close()
            raise DsrlError(f"{self.address}: the policy server sent {error}; is it one of dsrl's?") from error
        except (ConnectionClosed, OSError, EOFError) as error:
            self.close()
            raise _Lost(str(error) or type(error).__name__) from error
        except BaseException:  # Ctrl-C: an answer that is still on its way would be taken for the next one
            self.close()
            raise

    def _reopen(self, lost: _Lost) -> None:
        deadline = time.monotonic() + self.reconnect
        while True:
            try:
                hello = self._open()
                break
            except _Unreachable as error:
                if time.monotonic() + _RETRY_S > deadline:
                    raise DsrlError(
                        f"{self.address}: the policy server went away in the middle ({lost}) and did not come back "
                        f"within {self.reconnect:g} s; start it again with the same checkpoint"
                    ) from error
                time.sleep(_RETRY_S)
        if hello != self.hello:
            self.close()
            raise DsrlError(
                f"{self.address}: the server that came back serves another policy: {hello.kind} "
                f"{hello.spec.sha256[:12]} ({hello.spec.describe()}), before it was {self.hello.kind} "
                f"{self.hello.spec.sha256[:12]} ({self.hello.spec.describe()}); start it with the same checkpoint"
            )

    def _open(self) -> Hello:
        try:
            return self._greet()
        except BaseException:
            self.close()
            raise

    def _greet(self) -> Hello:
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
        from websockets.sync.client import connect

        where = self.address
        limits: dict[str, Any] = {"open_timeout": self.open_timeout, "close_timeout": _CLOSE_TIMEOUT_S}
        try:
            # no pings: a server that is busy denoising may not answer them; no proxy: the server is a neighbour
            connecting = connect(
                where, compression=None, ping_interval=None, proxy=None, max_size=MAX_MESSAGE_BYTES, **limits
            )
            self._connection = self._stack.enter_context(connecting)
            return hello_in(unpack(self._connection.recv(self.open_timeout)))
        except Malformed as error:
            raise DsrlError(f"{where}: what listens there is no policy server to use: {error}") from error
        except InvalidHandshake as error:
            raise DsrlError(f"{where}: what listens there is no policy server ({error!s:.120})") from error
        except (InvalidURI, ValueError) as error:
            raise DsrlError(f"{where} is no address of a policy server; write ws://host:port") from error
        except TimeoutError as error:
            raise _Unreachable(
                f"{where}: no policy server answered within {self.open_timeout:g} s; check host and port"
            ) from error
        except (ConnectionClosed, OSError, EOFError) as error:
            raise _Unreachable(
                f"{where}: no policy server listens there ({error!s:.120}); start it first, or check host and port"
            ) from error
