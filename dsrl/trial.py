"""Simulators and GL back-ends tried out, each in a process of its own: what is broken there crashes or hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from dsrl.checks import OK, PROBLEM, WARNING, Check
from dsrl.wrappers.rendering import PACKAGES, try_backend

SIMULATORS = {
    "dsrl/PointReach-v0": ("gymnasium", "pip install dsrl-steering"),
    "Hopper-v5": ("mujoco", "pip install mujoco"),
    "robosuite/Lift": ("robosuite", "pip install 'dsrl-steering[robosuite]'"),
    "metaworld/reach-v3": ("metaworld", "pip install 'dsrl-steering[metaworld]'"),
}
"""one environment of each kind: the module that it needs, and what installs it"""

_PLAY = """
import sys, time
import numpy as np
from dsrl.wrappers import make_env
env = make_env(sys.argv[1])
env.action_space.seed(0)
obs, _ = env.reset(seed=0)
env.step(env.action_space.sample())
start = time.perf_counter()
for _ in range(20):
    obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
    if terminated or truncated:
        env.reset()
assert np.isfinite(obs).all(), "the observation is not finite"
print(f"played {20 / (time.perf_counter() - start):.0f} env steps/s", flush=True)
"""


def check_simulators(timeout: float) -> Iterator[Check]:
    """Make, reset and step one environment of each kind that is installed."""
    for env, (module, install) in SIMULATORS.items():
        if find_spec(module) is None:
            yield Check("simulators", env, WARNING, f"{module} is not installed", install)
            continue
        failure, speed = _play(env, timeout)
        if failure:
            fix = (
                install.replace("pip install", "pip install --force-reinstall")
                or "pip install --force-reinstall dsrl-steering"
            )
            yield Check("simulators", env, PROBLEM, failure, fix)
        else:
            yield Check("simulators", env, OK, speed)


def check_backends(timeout: float) -> Iterator[Check]:
    """Draw with every GL back-end of MuJoCo; one that works is enough."""
    if find_spec("mujoco") is None or not sys.platform.startswith("linux"):
        return
    chosen = os.environ.get("MUJOCO_GL", "")
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    names = ["egl", "osmesa", *(["glfw"] if display else [])]
    tried = {name: try_backend(name, timeout) for name in dict.fromkeys([*([chosen] if chosen else []), *names])}
    works = [name for name, backend in tried.items() if backend.works]
    for name, backend in tried.items():
        if backend.works:
            yield Check("rendering", name, OK, "draws" + (", chosen by MUJOCO_GL" if name == chosen else ""))
        elif name == chosen:
            fix = "unset MUJOCO_GL" if works else f"unset MUJOCO_GL and {PACKAGES['egl']}"
            yield Check("rendering", name, PROBLEM, f"MUJOCO_GL={chosen} draws nothing: {backend.reason}", fix)
        elif works:  # one is enough
            yield Check("rendering", name, OK, f"does not draw, which {works[0]} does: {backend.reason}")
        else:
            yield Check("rendering", name, WARNING, f"no videos: {backend.reason}", PACKAGES[name])


def _play(env: str, timeout: float) -> tuple[str, str]:
    """``(failure, "")`` or ``("", speed)``."""
    try:
        command = [sys.executable, "-c", _PLAY, env]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"nothing within {timeout:g} s", ""
    said = [line for line in done.stdout.splitlines() if line.startswith("played ")]
    if said:
        return "", said[-1].removeprefix("played ")
    last = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(" ")]
    return f"{last[-1]:.200}" if last else f"the process died with code {done.returncode}", ""
