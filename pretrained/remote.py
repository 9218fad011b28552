"""A frozen policy in another process, Python environment or machine, reached at ``ws://host:port``."""

from __future__ import annotations

import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError
from dsrl.policy import Obs, concat_obs
from dsrl.pretrained.link import Link
from dsrl.pretrained.live import Live
from dsrl.pretrained.wire import MAX_MESSAGE_BYTES, Malformed, array_in, array_out

_ADDRESS = re.compile(r"^(?P<scheme>wss?):/{1,2}(?P<rest>[^/].*)$")  # a Path has lost the second slash


def is_address(path: str | Path) -> bool:
    """Whether it names a server instead of a place on the disk."""
    return re.match(r"^wss?:(/|$)", str(path)) is not None


def connect(path: str | Path, load: LoadConfig) -> RemotePolicy:
    """The policy that a server at ``ws://host:port`` offers.

    Raises:
        DsrlError: when there is none, or it is asked for what only the server can decide.
    """
    match = _ADDRESS.match(str(path))
    if match is None:
        raise DsrlError(f"{path} is no address of a policy server; write ws://host:port")
    address = f"{match['scheme']}://{match['rest']}"
    if load != LoadConfig():
        raise DsrlError(
            f"{address}: how its policy is read and sampled is decided where it is served; leave out --load.* here"
        )
    return RemotePolicy(address)


class RemotePolicy(nn.Module):
    """Answers as the policy behind ``address`` does; tensors go out from any device and come back to this one's.

    Encoding and denoising are separate requests. Where the server only knows ``sample``, the encoding is the flat
    observation itself, and is sent with every noise.

    Args:
        address: ``ws://host:port``.
        limits: timeouts in seconds, see :class:`~dsrl.pretrained.link.Link`.
    """

    kind = "remote"
    here: Tensor

    def __init__(self, address: str, **limits: float):
        super().__init__()
        self.link = Link(address, **limits)
        self.hello = self.link.hello
        self.spec = replace(self.hello.spec, provenance={"address": address})
        # a buffer: it moves with .to(device), and says where
        self.register_buffer("here", torch.empty(0), persistent=False)
        self._finalizer = weakref.finalize(self, self.link.close)

    @property
    def address(self) -> str:
        """``ws://host:port``."""
        return self.link.address

    @property
    def device(self) -> torch.device:
        """Where the answers are put; the server computes where it likes."""
        return self.here.device

    @property
    def cond_dim(self) -> int:
        """Length of the server's encoding, or of the flat observation."""
        return self.hello.cond_dim

    def config_dict(self) -> dict[str, Any]:
        """There is nothing to save here.

        Raises:
            DsrlError: always.
        """
        raise DsrlError(
            f"{self.address}: the weights of this policy are in another process and cannot be written from here; the "
            "run folder keeps its address, so score it with `dsrl evaluate RUN` while it is served"
        )

    @torch.no_grad()
    def encode(self, obs: Obs) -> Tensor:
        """``(B, To, Do)`` in environment units -> ``(B, cond_dim)`` float32."""
        obs = concat_obs(obs, self.spec)
        if not self.hello.caches:
            return obs.flatten(1).to(self.device, torch.float32)
        return self._ask("encode", {"obs": obs}, (self.cond_dim,))

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, cond_dim), (B, *noise_shape)`` -> the executed chunk ``(B, Ta, Da)`` in environment units, float32.

        Raises:
            ValueError: when conditioning or noise have another shape.
            DsrlError: when the server does not answer, or not with a chunk.
        """
        if cond.ndim != 2 or cond.shape[1] != self.cond_dim:
            raise ValueError(f"conditioning has shape {tuple(cond.shape)}, this policy reads (B, {self.cond_dim})")
        self._check_noise(len(cond), noise)
        if self.hello.caches:
            return self._ask("decode", {"cond": cond, "noise": noise}, self._chunk)
        obs = rearrange(cond, "b (t d) -> b t d", t=self.spec.n_obs_steps)
        return self._ask("sample", {"obs": obs, "noise": noise}, self._chunk)

    @torch.no_grad()
    def sample(self, obs: Obs, noise: Tensor) -> Tensor:
        """``decode(encode(obs), noise)``, in one request where the server can."""
        if "sample" not in self.hello.ops:
            return self.decode(self.encode(obs), noise)
        obs = concat_obs(obs, self.spec)
        self._check_noise(len(obs), noise)
        return self._ask("sample", {"obs": obs, "noise": noise}, self._chunk)

    def close(self) -> None:
        """End the connection; the next call opens a new one."""
        self.link.close()

    @property
    def _chunk(self) -> tuple[int, ...]:
        return (self.spec.n_action_steps, self.spec.action_dim)

    def _check_noise(self, batch: int, noise: Tensor) -> None:
        expected = (batch, *self.spec.noise_shape)
        if noise.shape != expected:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, this policy denoises {expected}")

    def _ask(self, op: str, inputs: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """``{name: (B, ...)}`` -> ``(B, *shape)``, in as many requests as the batch needs."""
        row_bytes = 4 * sum(value[:1].numel() for value in inputs.values())
        rows = max(1, min(self.hello.max_batch, MAX_MESSAGE_BYTES // (2 * max(1, row_bytes))))
        pieces = zip(*(value.split(rows) for value in inputs.values()), strict=True)
        answers = [self._ask_piece(op, dict(zip(inputs, piece, strict=True)), shape) for piece in pieces]
        return torch.cat(answers).to(self.device)

    def _ask_piece(self, op: str, inputs: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        arrays = {name: array_out(value) for name, value in inputs.items()}
        answer = self.link.ask({"op": op, "arrays": arrays})
        batch = len(next(iter(inputs.values())))
        try:
            return array_in(answer.get("array"), f"answer to {op}", (batch, *shape))
        except Malformed as error:
            raise DsrlError(f"{self.address}: the policy server sent a wrong answer: {error}") from error


def describe(policy: RemotePolicy) -> list[tuple[str, str]]:
    """How it is reached, as rows of name and value."""
    hello = policy.hello
    encoding = f"{hello.cond_dim} numbers" + ("" if hello.caches else ", the flat observation")
    return [
        ("address", policy.address),
        ("kind", f"{hello.kind}, in another process"),
        ("requests", f"{', '.join(sorted(hello.ops))}, at most {hello.max_batch} rows at once"),
        ("encoding", encoding),
    ]


LIVE = Live(is_address, connect, describe)
