"""Checkpoints, agents and data on the Hugging Face hub: ``hf://org/name@revision``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsrl.actor_file import AGENT
from dsrl.errors import DsrlError
from dsrl.pretrained.diffusers_folder import FOLDERS, POLICY

_ADDRESS = re.compile(r"^hf:/{1,2}(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>.+))?$")  # a Path has lost the second slash
PATTERNS = ["*.json", "*.safetensors", "ckpt.pt"]
"""what is fetched: files of the formats that a folder can have, none of which is a pickle but our own"""

_DATA = re.compile(r"^hf:/{1,2}datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?$")
_BESIDE_AGENTS = ["*.json", "*.safetensors", "*.yaml", "*.csv", "*.npz"]


def is_address(path: str | Path) -> bool:
    """Whether it names a repository of the hub instead of a place on the disk."""
    return str(path).startswith("hf:/")


def fetch(path: str | Path) -> Path:
    """The folder of the local cache with the files of ``hf://org/name@revision``; they are downloaded when not there.

    Raises:
        DsrlError: when it is no address of that kind, the repository or revision is unknown or closed, or there is no
            network and the files were never fetched.
    """
    from huggingface_hub import snapshot_download

    match = _ADDRESS.match(str(path))
    if match is None:
        raise DsrlError(f"{path} is no address on the hub; write hf://org/name or hf://org/name@revision")
    repo, revision = match["repo"], match["revision"]
    with explained(_spelled(repo, revision), revision=revision):
        # "*/*": checkpoints of a training and its optimizers lie in folders of the repository
        folder = snapshot_download(repo, revision=revision, allow_patterns=PATTERNS, ignore_patterns=["*/*"])
        if (Path(folder) / POLICY).is_file():  # one of ours, in parts
            wanted = [f"{part}/{pattern}" for part in FOLDERS for pattern in PATTERNS]
            folder = snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*/*"])
        elif (Path(folder) / AGENT).is_file():  # with its settings and evaluations
            folder = snapshot_download(repo, revision=revision, allow_patterns=_BESIDE_AGENTS, ignore_patterns=["*/*"])
    return Path(folder)


def local(path: Path) -> Path:
    """A run, an agent or a checkpoint on the disk: ``path`` itself, or what is fetched from the hub."""
    return fetch(path) if is_address(path) else path


def local_data(path: Path) -> Path:
    """A file of demonstrations on the disk: ``path`` itself, or what is fetched from the hub.

    ``hf://datasets/org/name@revision/file.hdf5``; the file can be left out where the repository has one only.

    Raises:
        DsrlError: as :func:`fetch`, and when the repository has no such file or several.
    """
    if not is_address(path):
        return path
    from huggingface_hub import snapshot_download

    match = _DATA.match(str(path))
    if match is None:
        raise DsrlError(f"{path} is no address of data; write hf://datasets/org/name@revision/file.hdf5")
    repo, revision, file = match["repo"], match["revision"], match["file"]
    address = _spelled(f"datasets/{repo}", revision)
    with explained(address, revision=revision):
        wanted = [file or "*.hdf5"]
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=wanted))
    found = [folder / file] if file else sorted(folder.rglob("*.hdf5"))
    if len(found) != 1 or not found[0].is_file():
        names = ", ".join(str(each.relative_to(folder)) for each in found) if not file else "none"
        raise DsrlError(f"{address} has not exactly one file {wanted[0]} (found: {names or 'none'}); name one of them")
    return found[0]


def _spelled(repo: str, revision: str | None) -> str:
    return f"hf://{repo}" + (f"@{revision}" if revision else "")


@contextmanager
def explained(
    address: str,
    failed: str = "cannot be fetched and is not complete in the local cache",
    advice: str = "Is there a network? Otherwise download it elsewhere with `hf download` and give its folder",
    *,
    revision: str | None = None,
) -> Iterator[None]:
    """Turn what the hub answers into a message.

    Raises:
        DsrlError: for whatever it refuses.
    """
    from huggingface_hub.utils import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise DsrlError(f"{address} is gated: accept its terms on huggingface.co and run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise DsrlError(
            f"{address}: the repository has no revision '{revision}'; name a branch, tag or commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise DsrlError(
            f"there is no model repository {address}, or it is private; check the spelling, or run `hf auth login`"
        ) from error
    except HFValidationError as error:
        raise DsrlError(f"{address} is no valid name of a repository: {error!s:.160}") from error
    except (LocalEntryNotFoundError, LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DsrlError(f"{address} {failed} ({reason:.160}). {advice}") from error
