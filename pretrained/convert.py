"""Any checkpoint -> a folder that diffusers, the hub and :func:`~dsrl.pretrained.load_policy` read."""

from __future__ import annotations

from pathlib import Path

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError
from dsrl.files import replacing_folder
from dsrl.policy import PolicySpec
from dsrl.pretrained import diffusers_folder
from dsrl.pretrained.loading import checkpoint_path, load_policy, read_checkpoint
from dsrl.pretrained.native import build_policy


def convert(
    path: str | Path, out: str | Path, load: LoadConfig | None = None, *, overwrite: bool = False
) -> PolicySpec:
    """Write the policy at ``path`` into the folder ``out``, which appears whole or not at all.

    Args:
        path: a checkpoint of any format.
        out: a folder; the chunks and the hash of what is read from it are those of the policy at ``path``.
        load: how ``path`` is read.
        overwrite: replace a folder that was converted before.

    Raises:
        DsrlError: when it cannot be read, its kind does not fit, or ``out`` is in the way.
    """
    path, out = checkpoint_path(Path(path)), Path(out)
    _check_free(out, overwrite)
    checkpoint = read_checkpoint(path, load or LoadConfig())
    build_policy(checkpoint, path)  # what cannot be built is not written
    with replacing_folder(out) as temporary:
        diffusers_folder.write(checkpoint, temporary)
    return load_policy(out, device="cpu").spec


def _check_free(out: Path, overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not (out / diffusers_folder.POLICY).is_file():
            raise DsrlError(f"{out} holds other files than a converted policy; choose another name")
    elif not out.exists() or out.is_dir():
        return
    else:
        raise DsrlError(f"{out} is a file; a converted policy is a folder, choose another name")
    if not overwrite:
        raise DsrlError(f"{out} exists; choose another name or pass --overwrite")
