"""The golden LeRobot policies with images: their weights are drawn."""

import json
import os
import shutil
from pathlib import Path

from drawn import draw, image
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden" / "lerobot"
ONE, SEPARATE, OLD = "v044_image", "v044_images", "v033_images"


def write(name, folder):
    """The folder as LeRobot wrote it."""
    shutil.copytree(GOLDEN / name, folder)
    tensors = {name: draw(name, shape) for name, shape in json.loads((folder / "drawn.json").read_text()).items()}
    save_file({**tensors, **load_file(folder / "kept.safetensors")}, folder / "model.safetensors")
    for extra in ("drawn.json", "kept.safetensors"):
        (folder / extra).unlink()
    return folder


def copy(folder, to):
    """The same folder again, without 45 MB more: the weights are linked, so replace them before writing to them."""
    return Path(shutil.copytree(folder, to, copy_function=lambda a, b: _copy(Path(a), Path(b))))


def _copy(source, target):
    os.link(source, target) if source.name == "model.safetensors" else shutil.copy(source, target)


def golden(name):
    """Observations by key, noise, and what LeRobot conditions on and executes."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    obs = {key.removeprefix("obs."): value for key, value in tensors.items() if key.startswith("obs.")}
    shapes = json.loads((GOLDEN / name / "config.json").read_text())["input_features"]
    for key, blocks in tensors.items():
        if key.startswith("blocks."):
            key = key.removeprefix("blocks.")
            _, height, width = shapes[key]["shape"]
            obs[key] = image(blocks, height, width)
    return obs, tensors["noise"], tensors["cond"], tensors["chunk"]
