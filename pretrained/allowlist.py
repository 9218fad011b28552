"""Pickles read as data: a small machine that calls nothing, imports nothing and knows a few names.

Python's unpickler calls what a file names, with arguments from the file; filtering the names leaves the calls. This
one has no calls. A name of the file becomes a :class:`Global`, an object a :class:`Node` with the state that was
written for it, a tensor a :class:`StoredTensor`; all three are inert. Names are allowed as exact pairs of module and
name: a dotted name, which pickle would look up attribute by attribute, is none of them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsrl.errors import DsrlError

DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Global:
    """A name that stands in a file; what it means elsewhere is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Node:
    """An object of a class that is not made: only what the file wants to be in it."""

    cls: Global
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """The numbers of one record of the archive."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that was not read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Broken(ValueError):
    """The file is no pickle that makes sense."""


def read_pickle(data: bytes, path: Path) -> Any:
    """What a pickle describes: plain values, :class:`Node`, :class:`StoredTensor`.

    Args:
        data: the pickle.
        path: of the file that it stands in, for messages.

    Raises:
        DsrlError: when it is broken, or names anything that a Diffusion Policy checkpoint does not need.
    """
    machine = _Machine(path)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.result()
            machine.run(opcode.name, argument)
    except DsrlError:
        raise
    except Exception as error:  # a broken pickle fails in as many ways as there are instructions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DsrlError(f"{path} is damaged: what it holds cannot be read ({reason:.120}); copy it again") from error
    raise DsrlError(f"{path} is damaged: what it holds has no end; copy it again")


_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}


class _Machine:
    """A stack, its marks and a memo, as in pickle; every operand is checked for its type."""

    def __init__(self, path: Path):
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.others: dict[str, Callable[[Any], None]] = {
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "TUPLE": lambda _: self.stack.append(tuple(self.since_mark())),
            "APPEND": lambda _: self.extend([self.pop()]),
            "APPENDS": lambda _: self.extend(self.since_mark()),
            "SETITEM": lambda _: self.update(self.pop_many(2)),
            "SETITEMS": lambda _: self.update(self.since_mark()),
            "MEMOIZE": lambda _: self.memo.update({len(self.memo): self.top()}),
            "GLOBAL": lambda words: self.stack.append(self.named(*words.split(" ", 1))),
            "STACK_GLOBAL": lambda _: self.stack.append(self.named(*self.pop_many(2))),
            "REDUCE": lambda _: self.stack.append(self.called(*self.pop_many(2))),
            "NEWOBJ": lambda _: self.stack.append(self.made(*self.pop_many(2))),
            "BUILD": lambda _: self.build(self.pop()),
            "BINPERSID": lambda _: self.stack.append(self.storage(self.pop())),
        }

    def run(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self.stack.append(tuple(self.pop_many(_TUPLES[name])))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in self.others:
            self.others[name](argument)
        elif name not in _IGNORED:
            raise DsrlError(
                f"{self.path} uses the pickle instruction {name}, which no Diffusion Policy checkpoint needs; that is "
                "refused and nothing was executed"
            )

    # -- the stack ----------------------------------------------------------------------------------------------------

    def top(self) -> Any:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor:
            raise Broken("an instruction lacks its operand")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def result(self) -> Any:
        if self.marks or len(self.stack) != 1:
            raise Broken("it ends in the middle of something")
        return self.stack[0]

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise Broken(f"items are appended to a {type(target).__name__}")
        target.extend(values)

    def update(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(values) % 2:
            raise Broken(f"items are set in a {type(target).__name__}")
        if not all(map(_is_key, values[::2])):
            raise Broken("a key is neither a name nor a number")
        target.update(zip(values[::2], values[1::2], strict=True))

    # -- names and objects --------------------------------------------------------------------------------------------

    def named(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Broken("a name is no text")
        if (module, name) not in _ALLOWED:
            self.refuse(f"{module}.{name}")
        return Global(module, name)

    def refuse(self, what: str) -> None:
        raise DsrlError(
            f"{self.path} wants to run {what[:100]!r} while it is read; that is refused and nothing was executed. "
            "A Diffusion Policy checkpoint holds tensors, plain values and its OmegaConf config only; if you trust "
            "where it comes from, save it again there without that"
        )

    def called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Broken("something is called that is no function")
        pair = (function.module, function.name)
        if pair not in _MEANING:
            self.refuse(str(function))
        return _MEANING[pair](self, arguments)

    def made(self, cls: Any, arguments: Any) -> Node:
        if not isinstance(cls, Global) or (cls.module, cls.name) not in _CLASSES or arguments != ():
            self.refuse(f"{cls}(...)")
        return Node(cls)

    def build(self, state: Any) -> None:
        target = self.top()
        if isinstance(target, Node) and target.state is None:
            target.state = state
        elif not isinstance(target, dict):  # an OrderedDict carries torch's _metadata, which nothing here needs
            raise Broken(f"a {type(target).__name__} is given a state")

    def storage(self, what: Any) -> Storage:
        kind, storage, key, location, numel = what
        if kind != "storage" or not isinstance(storage, Global) or storage.name not in DTYPES:
            raise Broken(f"a tensor stands in '{kind}'")
        if not isinstance(key, str) or not isinstance(location, str) or not _is_count(numel):
            raise Broken("the record of a tensor has no name or size")
        return Storage(DTYPES[storage.name], key, numel)

    def ordered_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        if arguments:
            raise Broken("an OrderedDict is made from something")
        return {}

    def default_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        if len(arguments) > 1:
            raise Broken("a defaultdict is made from something")
        return {}  # without its factory: nothing ever asks for a missing key

    def encoded(self, arguments: tuple[Any, ...]) -> bytes:
        text, encoding = arguments
        if not isinstance(text, str) or encoding != "latin1":
            raise Broken("bytes are spelled in another way than pickle's")
        return text.encode("latin1")

    def tensor(self, arguments: tuple[Any, ...]) -> StoredTensor:
        storage, offset, size, stride = arguments[:4]
        counts = (offset, *size, *stride)
        if not isinstance(storage, Storage) or len(size) != len(stride) or not all(map(_is_count, counts)):
            raise Broken("a tensor has no shape")
        return StoredTensor(storage, offset, tuple(size), tuple(stride))

    def parameter(self, arguments: tuple[Any, ...]) -> StoredTensor:
        if not isinstance(arguments[0], StoredTensor):
            raise Broken("a parameter is no tensor")
        return arguments[0]

    def type_by_name(self, arguments: tuple[Any, ...]) -> Node:
        if arguments not in (("int",), ("dict",), ("list",)):
            self.refuse(f"dill._dill._load_type({', '.join(map(str, arguments))})")
        return Node(Global("builtins", arguments[0]))


def _is_key(value: Any, depth: int = 0) -> bool:
    """OmegaConf remembers what it resolved under tuples; hashing one of many levels would overflow the stack."""
    if isinstance(value, tuple):
        return depth < 3 and all(_is_key(part, depth + 1) for part in value)
    return value is None or isinstance(value, str | int | float)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


_CLASSES = {
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.nodes", "AnyNode"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
}
_MEANING: dict[tuple[str, str], Callable[[_Machine, tuple[Any, ...]], Any]] = {
    ("collections", "OrderedDict"): _Machine.ordered_dict,
    ("collections", "defaultdict"): _Machine.default_dict,
    ("_codecs", "encode"): _Machine.encoded,
    ("torch._utils", "_rebuild_tensor_v2"): _Machine.tensor,
    ("torch._utils", "_rebuild_parameter"): _Machine.parameter,
    ("dill._dill", "_load_type"): _Machine.type_by_name,
}
_ALLOWED = {*_CLASSES, *_MEANING, ("typing", "Any"), *(("torch", name) for name in DTYPES)}
