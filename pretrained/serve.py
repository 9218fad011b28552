"""Offer a frozen policy at ``ws://host:port``, for :mod:`~dsrl.pretrained.remote`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from dsrl.errors import DsrlError
from dsrl.pretrained.wire import (
    DEFAULT_PORT,
    MAX_BATCH,
    MAX_MESSAGE_BYTES,
    Hello,
    Malformed,
    array_in,
    array_out,
    hello_out,
    pack,
    require_extra,
    unpack,
)

_OPS = ("encode", "decode", "sample")
_log = logging.getLogger(__name__)


class PolicyServer:
    """Serves a policy from threads of its own between :meth:`start` and :meth:`close`, or inside a ``with``.

    It answers every request, a wrong one with what is wrong about it. One request is computed at a time. There is no
    password: whoever reaches the port can ask.

    Args:
        policy: a :class:`~dsrl.policy.FrozenPolicy`, or anything with its ``spec`` and ``sample``.
        host: ``localhost`` is reached from this machine only, ``0.0.0.0`` from everywhere.
        port: 0 takes a free one.
        max_batch: most rows of one request, what the machine has memory for.

    Raises:
        DsrlError: when the port is taken, or the policy has no ``sha256`` by which it is known again.
    """

    def __init__(self, policy: Any, host: str = "localhost", port: int = DEFAULT_PORT, *, max_batch: int = MAX_BATCH):
        require_extra()
        from websockets.sync.server import serve as listen

        self.policy, self.host = policy, host
        self.hello = _hello_of(policy, max_batch)
        self._busy = threading.Lock()
        self._connections: set[Any] = set()
        limits: dict[str, Any] = {"max_size": MAX_MESSAGE_BYTES, "ping_interval": None, "close_timeout": 1.0}
        try:
            # no origins: a page in a browser of this machine must not use the policy
            self._server = listen(self._talk, host, port, compression=None, origins=[None], **limits)
        except OSError as error:
            raise DsrlError(
                f"cannot serve on {host}:{port}: {error}; choose another --port, or 0 for a free one"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """``ws://host:port``, with the port that was taken."""
        return f"ws://{self.host}:{self._server.socket.getsockname()[1]}"

    def start(self) -> PolicyServer:
        """Begin to serve; returns at once."""
        self._thread.start()
        return self

    def wait(self) -> None:
        """Until :meth:`close`, or Ctrl-C."""
        self._thread.join()

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._server.shutdown()
        for connection in list(self._connections):
            connection.close(1001)
        self._thread.join()

    def __enter__(self) -> PolicyServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _talk(self, connection: Any) -> None:
        """One client, until it leaves."""
        from websockets.exceptions import ConnectionClosed

        self._connections.add(connection)
        try:
            connection.send(pack(hello_out(self.hello)))
            for message in connection:
                connection.send(pack(self._answer(message)))
        except ConnectionClosed:
            pass  # it left without a word
        finally:
            self._connections.discard(connection)

    def _answer(self, message: bytes | str) -> dict[str, Any]:
        try:
            op, inputs = self._read(unpack(message))
        except Malformed as error:
            return {"error": f"it was sent {error}"}
        try:
            with self._busy, torch.no_grad():
                return {"array": array_out(self._compute(op, inputs))}
        except Exception as error:  # the policy is anybody's: what it raises belongs to its client
            _log.exception("the policy could not %s", op)
            return {"error": f"{type(error).__name__}: {error!s:.400}"}

    def _read(self, request: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
        spec, op, arrays = self.hello.spec, request.get("op"), request.get("arrays")
        rows: dict[str, tuple[int, ...]] = {
            "obs": (spec.n_obs_steps, spec.obs_dim),
            "cond": (self.hello.cond_dim,),
            "noise": spec.noise_shape,
        }
        wanted = {"encode": ("obs",), "decode": ("cond", "noise"), "sample": ("obs", "noise")}
        if not isinstance(op, str) or op not in self.hello.ops:
            raise Malformed(f"the op {op!r:.40}, this policy knows {sorted(self.hello.ops)}")
        if not isinstance(arrays, dict) or set(arrays) != set(wanted[op]):
            raise Malformed(f"no arrays {list(wanted[op])} for '{op}'")
        inputs = {name: array_in(arrays[name], name, (None, *rows[name])) for name in wanted[op]}
        batches = [len(value) for value in inputs.values()]
        if len(set(batches)) != 1 or not 0 < batches[0] <= self.hello.max_batch:
            raise Malformed(f"batches of {batches} rows, expected one size of 1 to {self.hello.max_batch}")
        return op, inputs

    def _compute(self, op: str, inputs: dict[str, Tensor]) -> Tensor:
        function: Callable[..., Any] = getattr(self.policy, op)
        device = getattr(self.policy, "device", torch.device("cpu"))
        return torch.as_tensor(function(*(value.to(device) for value in inputs.values())))


def serve(
    policy: Any,
    host: str = "localhost",
    port: int = DEFAULT_PORT,
    *,
    max_batch: int = MAX_BATCH,
    ready: Callable[[str], object] = lambda address: None,
) -> None:
    """Serve a policy until Ctrl-C; see :class:`PolicyServer`. ``ready`` is called with the address."""
    with PolicyServer(policy, host, port, max_batch=max_batch) as server:
        ready(server.address)
        with suppress(KeyboardInterrupt):
            server.wait()


def _hello_of(policy: Any, max_batch: int) -> Hello:
    spec, ops = policy.spec, frozenset(op for op in _OPS if callable(getattr(policy, op, None)))
    if not spec.sha256:
        raise DsrlError(
            "this policy has no spec.sha256, by which an agent knows it again; set it to the hash of its weights"
        )
    kind = getattr(policy, "kind", type(policy).__name__)
    cond_dim = policy.cond_dim if {"encode", "decode"} <= ops else spec.n_obs_steps * spec.obs_dim
    return Hello(kind, spec, ops, cond_dim, max_batch)
