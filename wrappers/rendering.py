"""Rendering without a window: which GL back-end works, chosen before a simulator is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

PACKAGES = {
    "egl": "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri",
    "osmesa": "apt-get install libosmesa6",
    "glfw": "a desktop session, with DISPLAY set",
}
"""what each of MuJoCo's back-ends on Linux needs, the preferred one first"""
_VARIABLE = "MUJOCO_GL"
_TIMEOUT = 60.0

_DRAW_A_BOX = """
import mujoco
scene = '<mujoco><worldbody><light pos="0 0 3"/><geom type="box" size=".1 .1 .1"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data)
assert renderer.render().any(), "the picture is black"
print("drawn", flush=True)
import os
os._exit(0)  # tearing the context down complains on some drivers
"""


@dataclass(frozen=True)
class Backend:
    """One back-end, tried out."""

    name: str
    works: bool
    reason: str = ""
    """why it does not"""


@cache
def try_backend(name: str, timeout: float = _TIMEOUT) -> Backend:
    """Draw a box with it, in a process of its own: a broken driver crashes or hangs instead of raising."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DRAW_A_BOX],
            env={**os.environ, _VARIABLE: name},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Backend(name, False, f"no picture within {timeout:g} s")
    if "drawn" in done.stdout:
        return Backend(name, True)
    last = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(" ")]
    return Backend(name, False, f"{last[-1]:.160}" if last else f"the process died with code {done.returncode}")


def candidates() -> tuple[str, ...]:
    """What may work here: what the user has chosen, else without a window first."""
    chosen = os.environ.get(_VARIABLE)
    if chosen:
        return (chosen,)
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return ("egl", "osmesa", *(("glfw",) if display else ()))


def choose_backend() -> str | None:
    """Set ``MUJOCO_GL`` to the first back-end that draws; to be called before a simulator is imported.

    A choice of the user's is kept. Elsewhere than on Linux there is one back-end, which needs no choice.

    Returns:
        its name; None where none draws, or there is nothing to choose.
    """
    if os.environ.get(_VARIABLE) or not sys.platform.startswith("linux") or find_spec("mujoco") is None:
        return os.environ.get(_VARIABLE)
    for name in candidates():
        if try_backend(name).works:
            os.environ[_VARIABLE] = name
            return name
    return None


def advice() -> str:
    """Why nothing is drawn here, and what to install."""
    if not sys.platform.startswith("linux") or find_spec("mujoco") is None:
        return "does this environment offer render_mode='rgb_array'?"
    tried = [try_backend(name) for name in candidates()]
    working = [backend.name for backend in tried if backend.works]
    if working:
        return f"{_VARIABLE}={working[0]} does draw here; set it before Python starts, and see `dsrl doctor`"
    reasons = "; ".join(f"{backend.name}: {backend.reason}" for backend in tried)
    return f"no GL back-end draws here ({reasons}). Install one: {PACKAGES['egl']}, or {PACKAGES['osmesa']}"
