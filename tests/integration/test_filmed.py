"""An episode of a simulator, drawn without a display by the installed command."""

import os

import numpy as np
import pytest
from PIL import Image

from dsrl.pretrained import DEFAULT_CHECKPOINT
from dsrl.wrappers.rendering import advice, choose_backend

pytestmark = [pytest.mark.integration, pytest.mark.robosuite]


def test_lift_is_filmed_without_a_display(dsrl, tmp_path, monkeypatch):
    pytest.importorskip("robosuite", reason="needs the [robosuite] extra")
    monkeypatch.setenv("MUJOCO_GL", "")
    if choose_backend() is None:
        pytest.skip(advice())
    monkeypatch.setenv("MUJOCO_GL", "")  # the command has to find it out by itself
    strip = tmp_path / "strip.png"
    flags = ("--episodes", 1, "--n-envs", 1, "--video", strip)
    done = dsrl("evaluate", DEFAULT_CHECKPOINT, *flags, env={**os.environ, "COLUMNS": "400"})
    assert done.returncode == 0 and f"film: {strip}" in done.stdout, done.stderr
    picture = np.asarray(Image.open(strip)).astype(int)
    first, last = picture[24:, :128], picture[24:, -128:]
    assert first.std() > 20 and abs(first - last).mean() > 2  # a scene, in which something has moved
