"""The sizes of robosuite's observations, for files that list the keys and say only how long all are together."""

from __future__ import annotations

from typing import Any

_SIZES = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
"""of a robot; those of the objects depend on the task"""


def obs_shapes(keys: Any, total: int, whole: str) -> dict[str, tuple[int, ...]]:
    """Shape by key, in the order of ``keys``; all in one under the name ``whole``, where the sizes do not follow.

    Args:
        keys: what a file gives as the list of keys; at most one may be no sensor of a robot.
        total: length of all of them together.
        whole: the name when they are not told apart.
    """
    if isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys):
        sizes = [_SIZES.get(key.partition("_")[2]) if key.startswith("robot") else None for key in keys]
        rest = total - sum(size for size in sizes if size is not None)
        if len(set(keys)) == len(keys) and sizes.count(None) == (rest > 0) and rest >= 0:
            return {key: (rest if size is None else size,) for key, size in zip(keys, sizes, strict=True)}
    return {whole: (total,)}
