"""What a policy server and its client say to each other: msgpack maps over a websocket, arrays as raw bytes.

::

    hello     {"protocol": 1, "kind": str, "sha256": str, "spec": {...}, "env": {...} or nil,
               "ops": ["encode", "decode", "sample"] or ["sample"], "cond_dim": int, "max_batch": int}
    request   {"op": "encode", "arrays": {"obs": A}}
              {"op": "decode", "arrays": {"cond": A, "noise": A}}
              {"op": "sample", "arrays": {"obs": A, "noise": A}}
    response  {"array": A}   or   {"error": what is wrong}
    A         {"dtype": "<f4", "shape": [B, ...], "data": the numbers, little-endian, C order}

The server speaks first, and once. ``spec`` and ``env`` are those of our checkpoints, ``obs`` is ``(B, To, Do)`` with
the keys concatenated in the order of ``spec["obs_shapes"]``, everything is in environment units. A server that knows
only ``sample`` leaves out ``cond_dim``. Nothing that is received is ever executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.pretrained.native import plain, spec_from_dict, spec_to_dict

PROTOCOL = 1
DEFAULT_PORT = 8765
MAX_MESSAGE_BYTES = 2**28
"""of one message, in both directions; larger batches are sent in pieces"""
MAX_BATCH = 1024
"""rows of one request, unless the server says otherwise"""
_MOST_ENTRIES = 4096
_LARGEST = 10**8
_DTYPE = "<f4"


class Malformed(ValueError):
    """A message that does not follow the protocol; the text says what is wrong with it."""


@dataclass(frozen=True)
class Hello:
    """What a server says about its policy. Two are equal when an agent of the one can steer the other."""

    kind: str
    spec: PolicySpec
    """with ``env`` and ``sha256``"""
    ops: frozenset[str]
    cond_dim: int
    max_batch: int = field(default=MAX_BATCH, compare=False)

    @property
    def caches(self) -> bool:
        """Whether observations are encoded apart from denoising."""
        return {"encode", "decode"} <= self.ops


def require_extra() -> None:
    """Check that the packages of the extra are there.

    Raises:
        DsrlError: when they are not.
    """
    try:
        import msgpack  # noqa: F401
        import websockets.sync.client  # noqa: F401
    except ImportError as error:
        raise DsrlError(
            f"a policy in another process needs the extra: pip install 'dsrl-steering[remote]' ({error})"
        ) from error


def pack(message: Mapping[str, Any]) -> bytes:
    """A message of plain values, with arrays as :func:`array_out` gives them."""
    import msgpack

    return msgpack.packb(message)


def unpack(message: bytes | str) -> dict[str, Any]:
    """The inverse of :func:`pack`.

    Raises:
        Malformed: when it is no msgpack map.
    """
    import msgpack

    if isinstance(message, str):
        raise Malformed(f"a text message ({message[:40]!r}) where msgpack was expected")
    try:
        content = msgpack.unpackb(message, max_array_len=_MOST_ENTRIES, max_map_len=_MOST_ENTRIES)
    except (ValueError, TypeError) as error:  # msgpack's own are ValueErrors
        raise Malformed(f"a message that is no msgpack ({type(error).__name__}: {error!s:.80})") from error
    if not isinstance(content, dict):
        raise Malformed(f"a {type(content).__name__} where a map was expected")
    return content


def array_out(values: Tensor) -> dict[str, Any]:
    """A float32 tensor of any device as plain values."""
    numbers = values.detach().to("cpu", torch.float32).contiguous().numpy().astype(_DTYPE, copy=False)
    return {"dtype": _DTYPE, "shape": list(numbers.shape), "data": numbers.tobytes()}


def array_in(array: Any, name: str, shape: Sequence[int | None]) -> Tensor:
    """A float32 tensor on the CPU.

    Args:
        array: as received.
        name: of the array, for messages.
        shape: what is expected; None where any length will do.

    Raises:
        Malformed: when dtype or shape are others, bytes are missing, or a number is not finite.
    """
    if not isinstance(array, dict) or not {"dtype", "shape", "data"} <= array.keys():
        raise Malformed(f"'{name}' is no array: a map of dtype, shape and data was expected")
    found, data = array["shape"], array["data"]
    if array["dtype"] != _DTYPE:
        raise Malformed(f"'{name}' has the dtype {array['dtype']!r:.20}, expected '{_DTYPE}' (float32)")
    if not isinstance(found, list) or not all(_is_count(size, least=0) for size in found):
        raise Malformed(f"'{name}' has the shape {found!r:.60}, expected a list of sizes")
    if len(found) != len(shape) or any(size not in (None, got) for size, got in zip(shape, found, strict=True)):
        expected = ", ".join("B" if size is None else str(size) for size in shape)
        raise Malformed(f"'{name}' has the shape ({', '.join(map(str, found))}), expected ({expected})")
    needed = 4 * int(np.prod(found, dtype=np.float64))
    if not isinstance(data, bytes) or len(data) != needed:
        got = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
        raise Malformed(f"'{name}' of shape {found} holds {got}, expected {needed} bytes")
    numbers = np.frombuffer(data, _DTYPE).reshape(found).astype(np.float32)
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        place = tuple(map(int, bad[0]))
        raise Malformed(f"'{name}' is {numbers[place]} at {list(place)}; it must be finite")
    return torch.from_numpy(numbers)


def hello_out(hello: Hello) -> dict[str, Any]:
    """What the server sends first."""
    spec = hello.spec
    return {
        "protocol": PROTOCOL,
        "kind": hello.kind,
        "sha256": spec.sha256,
        "spec": spec_to_dict(spec),
        "env": plain(spec.env.to_robomimic()) if spec.env else None,
        "ops": sorted(hello.ops),
        "cond_dim": hello.cond_dim,
        "max_batch": hello.max_batch,
    }


def hello_in(content: Mapping[str, Any]) -> Hello:
    """The inverse of :func:`hello_out`.

    Raises:
        Malformed: for another protocol version, or when it does not describe a policy.
    """
    version: Any = content.get("protocol")
    if version != PROTOCOL:
        where = "there" if _is_count(version, least=0) and version < PROTOCOL else "here"
        raise Malformed(f"it speaks version {version!r:.20} of the protocol, this dsrl {PROTOCOL}; update dsrl {where}")
    kind, digest, ops = content.get("kind"), content.get("sha256"), content.get("ops")
    if not isinstance(kind, str) or not isinstance(digest, str) or not digest:
        raise Malformed("its hello must name 'kind' and 'sha256', by which an agent knows the policy again")
    if not isinstance(ops, list) or not all(isinstance(op, str) for op in ops):
        raise Malformed(f"its hello has the ops {ops!r:.60}, expected a list such as ['sample']")
    if not {"encode", "decode"} <= set(ops) and "sample" not in ops:
        raise Malformed(f"its policy knows {ops}; either 'sample' or both 'encode' and 'decode' are needed")
    spec, caches = _spec_in(content, digest), {"encode", "decode"} <= set(ops)
    # where nothing can be encoded apart, the observation itself stands for its encoding
    cond_dim = content.get("cond_dim") if caches else spec.n_obs_steps * spec.obs_dim
    max_batch = content.get("max_batch", MAX_BATCH)
    for name, value in (("cond_dim", cond_dim), ("max_batch", max_batch)):
        if not _is_count(value):
            raise Malformed(f"its hello has {name} = {value!r:.20}, expected a whole number above 0")
    return Hello(kind, spec, frozenset(ops), cond_dim, max_batch)  # type: ignore[arg-type]


def _spec_in(content: Mapping[str, Any], digest: str) -> PolicySpec:
    try:
        spec = replace(spec_from_dict({"spec": content["spec"], "env": content.get("env")}), sha256=digest)
    except (DsrlError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"its spec is not that of a policy ({type(error).__name__}: {error})") from error
    sizes = {
        "obs_shapes": [size for shape in spec.obs_shapes.values() for size in shape],
        "noise_shape": list(spec.noise_shape),
        **{name: [getattr(spec, name)] for name in ("action_dim", "horizon", "n_action_steps", "n_obs_steps")},
    }
    for name, values in sizes.items():
        if np.prod(values, dtype=np.float64) > _LARGEST:
            raise Malformed(f"its spec has {name} = {values!r:.60}, which is too large")
    return spec


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LARGEST
