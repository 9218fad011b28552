"""Checkpoints on the Hugging Face hub: ``hf://org/name@revision``."""

from __future__ import annotations

import re
from pathlib import Path

from dsrl.errors import DsrlError
from dsrl.pretrained.diffusers_folder import FOLDERS, POLICY

_ADDRESS = re.compile(r"^hf:/{1,2}(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>.+))?$")  # a Path has lost the second slash
PATTERNS = ["*.json", "*.safetensors", "ckpt.pt"]
"""what is fetched: files of the formats that a folder can have, none of which is a pickle but our own"""


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
    from huggingface_hub.utils import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = _ADDRESS.match(str(path))
    if match is None:
        raise DsrlError(f"{path} is no address on the hub; write hf://org/name or hf://org/name@revision")
    repo, revision = match["repo"], match["revision"]
    address = f"hf://{repo}" + (f"@{revision}" if revision else "")
    try:
        # "*/*": checkpoints of a training and its optimizers lie in folders of the repository
        folder = snapshot_download(repo, revision=revision, allow_patterns=PATTERNS, ignore_patterns=["*/*"])
        if (Path(folder) / POLICY).is_file():  # one of ours, in parts
            wanted = [f"{part}/{pattern}" for part in FOLDERS for pattern in PATTERNS]
            folder = snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*/*"])
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
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DsrlError(
            f"{address} cannot be fetched and is not complete in the local cache ({reason:.160}). Is there a network? "
            "Otherwise download it elsewhere with `hf download` and give its folder"
        ) from error
    return Path(folder)
