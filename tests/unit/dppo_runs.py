"""Golden run folders of DPPO, whole or to be damaged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dsrl.errors import DsrlError
from dsrl.pretrained import load_policy

GOLDEN = Path(__file__).parents[1] / "golden" / "dppo"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def checkpoint_in(folder):
    (path,) = (folder / "checkpoint").iterdir()
    return path


def steps_of(case):
    return 5 if case == "plain_mlp" else None  # the YAML of a pre-training run: sampled by DDPM


def load_golden(case, **more):
    return load_policy(checkpoint_in(GOLDEN / case), device="cpu", sampling_steps=steps_of(case), **more)


def expected(case):
    with np.load(GOLDEN / case / "expected.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


class Run:
    """A copy of a golden run folder, to be damaged."""

    def __init__(self, folder, case):
        shutil.copytree(GOLDEN / case, folder)
        self.folder, self.path = folder, checkpoint_in(folder)
        self.yaml, self.npz = folder / ".hydra" / "config.yaml", folder / "normalization.npz"

    def settings(self, change):
        values = yaml.safe_load(self.yaml.read_text())
        change(values)
        self.yaml.write_text(yaml.safe_dump(values))

    def content(self, change):
        content = torch.load(self.path, weights_only=True)
        change(content)
        torch.save(content, self.path)

    def ranges(self, **changes):
        with np.load(self.npz) as archive:
            arrays = {**archive, **changes}
        np.savez(self.npz, **{name: array for name, array in arrays.items() if array is not None})

    def load(self, **more):
        return load_policy(self.path, device="cpu", **more)

    def refused(self, message, **more):
        with pytest.raises(DsrlError, match=message):
            self.load(**more)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", "mlp")


@pytest.fixture
def make_run(tmp_path):
    return lambda case: Run(tmp_path / case, case)
