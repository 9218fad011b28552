"""Shared by all tests: one thread, no display, and a toy problem that needs no simulator."""

import os

# before torch is imported: two test workers on two cores must not fight over them
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import gymnasium
import pytest
import torch

from dsrl.pretrained.toy import ToyPolicy
from dsrl.run import RunFolder
from dsrl.wrappers import toy

torch.set_num_threads(1)
pytest.register_assert_rewrite("contract")


@pytest.fixture
def toy_policy() -> ToyPolicy:
    """The analytic policy that plays ``dsrl/PointReach-v0``."""
    return ToyPolicy()


@pytest.fixture
def toy_env() -> gymnasium.Env:
    """``dsrl/PointReach-v0`` with its time limit."""
    toy.register()
    return gymnasium.make(toy.ENV_ID)


@pytest.fixture
def run_folder(tmp_path) -> RunFolder:
    """A fresh run folder."""
    return RunFolder.create(tmp_path / "run", {"seed": 0}, {"path": "base.pt", "sha256": "0" * 64})
