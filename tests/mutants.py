"""Damage to checkpoints: what a disk, a broken copy, a careless editor or a bad intention could do to them."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from traps import Evil

Bytes = Callable[[bytes, random.Random], bytes]


def mutate(root: Path, rng: random.Random, trap: Path) -> str:
    """Change one file of a checkpoint; what was done.

    Args:
        root: the file or folder.
        rng: decides which and how.
        trap: the file that some of the changes try to create.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    path = rng.choice(files)
    kinds: dict[str, list[Bytes]] = {
        ".json": [*IN_JSON, lambda data, rng: plant_in_json(data, rng, trap)],
        ".yaml": [swap_lines, drop_line, nudge_line, lambda data, rng: plant_in_yaml(data, rng, trap)],
        ".npz": [swap_records, drop_record, flip_inside, lambda data, rng: plant_in_npz(data, rng, trap)],
        ".safetensors": [swap_in_header, change_header],
    }
    for suffix in (".pt", ".pth", ".ckpt"):
        kinds[suffix] = [swap_instructions, other_number, nudge_number, change_text, flip_in_pickle, swap_records]
        kinds[suffix] += [drop_record, flip_inside, lambda data, rng: plant_in_pickle(data, rng, trap)]
    change = rng.choice([flip_bit, flip_bit, truncate, wipe, *kinds[path.suffix]])
    path.write_bytes(change(path.read_bytes(), rng))
    return f"{change.__name__} in {path.name}"


# -- any file ---------------------------------------------------------------------------------------------------------


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def wipe(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(1, 4096))
    return data[:start] + bytes(end - start) + data[end:]


# -- zip files: those of torch and NumPy, with new checksums ----------------------------------------------------------


def _repacked(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def swap_records(data: bytes, rng: random.Random) -> bytes:
    """Most of all tensors of one size."""

    def change(records: dict[str, bytes]) -> None:
        first = rng.choice(sorted(records))
        alike = [name for name in sorted(records) if name != first and len(records[name]) == len(records[first])]
        second = rng.choice(alike or sorted(records))
        records[first], records[second] = records[second], records[first]

    return _repacked(data, change)


def drop_record(data: bytes, rng: random.Random) -> bytes:
    return _repacked(data, lambda records: records.pop(rng.choice(sorted(records))) and None)


def flip_inside(data: bytes, rng: random.Random) -> bytes:
    def change(records: dict[str, bytes]) -> None:
        name = rng.choice(sorted(name for name in records if records[name]))
        records[name] = flip_bit(records[name], rng)

    return _repacked(data, change)


def plant_in_npz(data: bytes, rng: random.Random, trap: Path) -> bytes:
    def change(records: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.array([Evil(trap)], dtype=object), allow_pickle=True)
        records[rng.choice(sorted(records))] = buffer.getvalue()

    return _repacked(data, change)


# -- the pickle in a torch file ---------------------------------------------------------------------------------------

_PUSHES = ("INT", "LONG", "FLOAT", "STRING", "UNICODE", "BYTES", "NONE", "NEWTRUE", "NEWFALSE", "GET")


def _pickle_changed(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    def change_record(records: dict[str, bytes]) -> None:
        name = next(name for name in records if name.endswith("/data.pkl"))
        records[name] = change(records[name])

    return _repacked(data, change_record)


def _pushes(content: bytes) -> list[tuple[int, int]]:
    """Where the instructions that give a value begin and end."""
    instructions = list(pickletools.genops(content))
    places = [place for _, _, place in instructions] + [len(content)]
    return [
        (int(places[i]), int(places[i + 1]))
        for i, (opcode, _, _) in enumerate(instructions)
        if any(word in opcode.name for word in _PUSHES) and "PUT" not in opcode.name
    ]


def swap_instructions(data: bytes, rng: random.Random) -> bytes:
    """Two keys, two values, the names of two records, a size and a stride, ..."""

    def change(content: bytes) -> bytes:
        (a, b), (c, d) = sorted(rng.sample(_pushes(content), 2))
        return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]

    return _pickle_changed(data, change)


def other_number(data: bytes, rng: random.Random) -> bytes:
    def change(content: bytes) -> bytes:
        a, b = rng.choice([(a, b) for a, b in _pushes(content) if content[a : a + 1] in (b"K", b"M", b"J", b"G")])
        value = rng.choice([0, 1, 2, 3, 7, 100, -1, 2**31 - 1])
        return content[:a] + b"J" + struct.pack("<i", value) + content[b:]

    return _pickle_changed(data, change)


def nudge_number(data: bytes, rng: random.Random) -> bytes:
    """By one, what passes most checks; a truth value becomes the other one."""

    def change(content: bytes) -> bytes:
        a, b = rng.choice([(a, b) for a, b in _pushes(content) if content[a : a + 1] in (b"K", b"\x88", b"\x89")])
        if content[a : a + 1] == b"K":
            value = content[a + 1] + (rng.choice([-1, 1]) if 0 < content[a + 1] < 255 else 1 - content[a + 1] // 128)
            return content[: a + 1] + bytes([value % 256]) + content[b:]
        return content[:a] + bytes([0x88 + 0x89 - content[a]]) + content[b:]

    return _pickle_changed(data, change)


def change_text(data: bytes, rng: random.Random) -> bytes:
    """A JSON text among the values, as robomimic has it; else one letter of a text."""

    def change(content: bytes) -> bytes:
        texts = [(a, b) for a, b in _pushes(content) if content[a : a + 1] == b"X"]
        jsons = [(a, b) for a, b in texts if content[a + 5 : a + 6] == b"{"]
        a, b = rng.choice(jsons or texts)
        text = content[a + 5 : b]
        text = rng.choice(IN_JSON)(text, rng) if jsons else flip_bit(text, rng) if text else b"x"
        return content[:a] + b"X" + struct.pack("<I", len(text)) + text + content[b:]

    return _pickle_changed(data, change)


def flip_in_pickle(data: bytes, rng: random.Random) -> bytes:
    return _pickle_changed(data, lambda content: flip_bit(content, rng))


def plant_in_pickle(data: bytes, rng: random.Random, trap: Path) -> bytes:
    def change(content: bytes) -> bytes:
        a, b = rng.choice(_pushes(content))
        evil = pickle.dumps(Evil(trap), protocol=2)[2:-1]  # without its head and its end
        return content[:a] + evil + content[b:]

    return _pickle_changed(data, change)


# -- JSON, and the JSON at the head of a safetensors file -------------------------------------------------------------


def _json_changed(data: bytes, change: Callable[[Any], None]) -> bytes:
    content = json.loads(data)
    change(content)
    return json.dumps(content).encode()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container and key, or index, in it."""
    found = []
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        found += [(tree, key), *_places(value)]
    return found


def _mappings(tree: Any) -> list[dict[str, Any]]:
    below = [value for holder, key in _places(tree) if isinstance(value := holder[key], dict)]
    return [each for each in (tree, *below) if len(each) > 1]


def swap_values(data: bytes, rng: random.Random) -> bytes:
    def change(content: Any) -> None:
        places = [(holder, key) for holder, key in _places(content) if not isinstance(holder[key], dict | list)]
        (first, a), (second, b) = rng.sample(places, 2)
        first[a], second[b] = second[b], first[a]

    return _json_changed(data, change)


def swap_keys(data: bytes, rng: random.Random) -> bytes:
    def change(content: Any) -> None:
        mapping = rng.choice(_mappings(content))
        first, second = rng.sample(sorted(mapping), 2)
        mapping[first], mapping[second] = mapping[second], mapping[first]

    return _json_changed(data, change)


def drop_key(data: bytes, rng: random.Random) -> bytes:
    def change(content: Any) -> None:
        holder, key = rng.choice(_places(content))
        del holder[key]

    return _json_changed(data, change)


def other_value(data: bytes, rng: random.Random) -> bytes:
    def change(content: Any) -> None:
        holder, key = rng.choice(_places(content))
        holder[key] = rng.choice([None, True, False, 0, 1, 2, 3, -1, 1e300, 10**12, "", "x", [], {}, [1], {"a": 1}])

    return _json_changed(data, change)


def nudge(data: bytes, rng: random.Random) -> bytes:
    """A number by one, what passes most checks; a truth value becomes the other one."""

    def change(content: Any) -> None:
        places = [(holder, key) for holder, key in _places(content) if isinstance(holder[key], int | float)]
        if places:
            holder, key = rng.choice(places)
            value = holder[key]
            holder[key] = not value if isinstance(value, bool) else value + rng.choice([-1, 1])

    return _json_changed(data, change)


IN_JSON: list[Bytes] = [swap_values, swap_keys, drop_key, other_value, nudge, nudge]


def plant_in_json(data: bytes, rng: random.Random, trap: Path) -> bytes:
    def change(content: Any) -> None:
        holder, key = rng.choice(_places(content))
        holder[key] = {"_target_": "os.system", "py/reduce": ["os.system"], "command": f"touch {trap}"}

    return _json_changed(data, change)


def _header_changed(data: bytes, change: Bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = change(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def swap_in_header(data: bytes, rng: random.Random) -> bytes:
    """Among them: two tensors of one shape."""
    return _header_changed(data, swap_keys, rng)


def change_header(data: bytes, rng: random.Random) -> bytes:
    return _header_changed(data, rng.choice(IN_JSON), rng)


# -- YAML -------------------------------------------------------------------------------------------------------------


def swap_lines(data: bytes, rng: random.Random) -> bytes:
    """The values of two lines, or the lines themselves."""
    lines = data.decode().splitlines()
    a, b = rng.sample(range(len(lines)), 2)
    (first, _, x), (second, _, y) = (lines[index].partition(": ") for index in (a, b))
    if x and y and rng.random() < 0.8:
        lines[a], lines[b] = f"{first}: {y}", f"{second}: {x}"
    else:
        lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines).encode()


def drop_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.decode().splitlines()
    del lines[rng.randrange(len(lines))]
    return "\n".join(lines).encode()


def nudge_line(data: bytes, rng: random.Random) -> bytes:
    """A whole number by one; a truth value becomes the other one."""
    other = {"true": "false", "false": "true", "True": "False", "False": "True"}
    lines = data.decode().splitlines()
    ends = [(index, line.rpartition(": ")) for index, line in enumerate(lines)]
    ends = [(index, parts) for index, parts in ends if parts[2].isdigit() or parts[2] in other]
    index, (name, _, value) = rng.choice(ends)
    lines[index] = f"{name}: {other.get(value) or int(value) + rng.choice([-1, 1])}"
    return "\n".join(lines).encode()


def plant_in_yaml(data: bytes, rng: random.Random, trap: Path) -> bytes:
    lines = data.decode().splitlines()
    index = rng.choice([index for index, line in enumerate(lines) if ": " in line])
    command = json.dumps(f"touch {trap}")
    lines[index] = f"{lines[index].partition(': ')[0]}: !!python/object/apply:os.system [{command}]"
    return "\n".join(lines).encode()
