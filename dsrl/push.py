"""``dsrl push``: a run as a folder on the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from dsrl.actor_file import save_as_folder
from dsrl.card import model_card
from dsrl.errors import DsrlError, OtherBasePolicy, RunFailed
from dsrl.files import replacing_folder, writing
from dsrl.pretrained import DEFAULT_CHECKPOINT, load_policy
from dsrl.pretrained.agent_folder import PACKAGED
from dsrl.pretrained.hub import explained, is_address
from dsrl.run import RunFolder

COPIED = (
    "config.yaml",
    "environment.json",
    "evaluations.csv",
    "metrics.csv",
    "comparison.json",
    "comparison_episodes.npz",
    "learning_curve.png",
    "report.html",
)
"""as they are, where they are there"""


@dataclass(frozen=True)
class PushConfig:
    """Put a run on the Hugging Face hub: agent, evaluations and a model card; the base policy is only named."""

    run: Path
    """run folder"""
    repo: Path
    """org/name"""
    agent: Literal["best", "final"] = "final"
    """which agent of the run: the last one, or the one of the best evaluation on the way"""
    base_policy: str | None = None
    """hf://org/name@revision of the base policy, which is checked; left out: where the run says that it is"""
    license: str | None = None
    """for the card, as the hub spells it, such as mit"""
    private: bool = False
    """make the repository private, when it is new"""
    dry_run: Path | None = None
    """write the folder here, and send nothing"""

    def __post_init__(self) -> None:
        if len(self.repo.parts) != 2 or self.repo.is_absolute():
            raise DsrlError(f"{self.repo} is no name on the hub; write org/name")
        if self.base_policy is not None and not is_address(self.base_policy):
            raise DsrlError(f"--base-policy is {self.base_policy}; expected an address such as hf://org/name@revision")


def push(config: PushConfig) -> None:
    """``dsrl push``"""
    console = Console(markup=False, highlight=False)
    target = config.dry_run
    if target is not None and target.exists() and not _replaceable(target):
        raise DsrlError(f"--dry-run {target}: there is something that dsrl push did not write; name another folder")
    if target is not None:
        with replacing_folder(target) as folder:
            write_folder(config, folder)
        console.print(f"wrote {target}; nothing was sent. Look at it with: dsrl evaluate {target}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        write_folder(config, Path(temporary))
        console.print(f"pushed to {_upload(config, Path(temporary))}")
    console.print(f"anybody can now: dsrl evaluate hf://{config.repo}")


def write_folder(config: PushConfig, folder: Path) -> None:
    """Everything that is pushed, into an empty folder.

    Raises:
        DsrlError: when the run is not whole, or the base policy is not the one that it steered.
    """
    run = RunFolder.open(config.run)
    facts = run.read_base_policy()
    wanted, other = (run.best, run.final) if config.agent == "best" else (run.final, run.best)
    if other.exists() and not wanted.exists():
        raise DsrlError(f"the run {run.path} ended before it had a {wanted.name}; take --agent {other.stem}")
    facts = {**facts, "path": base_reference(config, facts)}
    with writing(folder):
        steering = save_as_folder(wanted, folder)
        if steering["base_policy_sha256"] != facts["sha256"]:
            raise OtherBasePolicy(wanted, steering["base_policy_sha256"], facts["sha256"])
        (folder / "base_policy.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for name in COPIED:
            if (run.path / name).is_file():
                shutil.copyfile(run.path / name, folder / name)
        card = model_card(run, facts, steering, repo=str(config.repo), agent=config.agent, license=config.license)
        (folder / "README.md").write_text(card, encoding="utf-8")


def base_reference(config: PushConfig, facts: dict[str, Any]) -> str:
    """Where others find the base policy: on the hub, in the package, or else the path of the run.

    Raises:
        DsrlError: when the policy at the given address is another one.
    """
    if config.base_policy is not None:
        found = load_policy(config.base_policy, **facts.get("load", {}), device="cpu").spec.sha256
        if found != facts["sha256"]:
            raise DsrlError(
                f"--base-policy {config.base_policy} hashes to {found[:12]}, the run {config.run} steered "
                f"{facts['sha256'][:12]}; name the policy that was steered"
            )
        return config.base_policy
    packaged = Path(facts["path"]).name == DEFAULT_CHECKPOINT.name
    if packaged and load_policy(DEFAULT_CHECKPOINT, device="cpu").spec.sha256 == facts["sha256"]:
        return PACKAGED + DEFAULT_CHECKPOINT.name
    return facts["path"]


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and (not any(folder.iterdir()) or (folder / "agent.json").is_file())


def _upload(config: PushConfig, folder: Path) -> str:
    from huggingface_hub import HfApi

    api, repo = HfApi(library_name="dsrl"), str(config.repo)
    with explained(f"hf://{repo}", "cannot be pushed to", "Run `hf auth login` with a token that may write"):
        api.create_repo(repo, private=config.private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"dsrl push {config.run.name}")
    if not getattr(done, "commit_url", None):
        raise RunFailed(f"hf://{repo}: the hub did not say that it has taken the files; look at the repository")
    return str(done.commit_url)
