"""CFGRL (arXiv 2505.23458): a policy and recorded data in, a guided policy out, or what it must be judged against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from dsrl import __version__
from dsrl.cfgrl import Guided
from dsrl.chunk_policy import ChunkPolicy
from dsrl.config import to_dict
from dsrl.data import Trajectories
from dsrl.demos import read_demos
from dsrl.errors import DsrlError, RunFailed
from dsrl.extract_config import GOAL_MODES, ExtractConfig
from dsrl.extract_modes import Job, Lesson, Teacher, prepare
from dsrl.facts import file_sha256, flags
from dsrl.files import check_out, checkpoint_file
from dsrl.policy import FrozenPolicy
from dsrl.pretrained import load_policy, save_policy, spelled
from dsrl.pretrained.hub import local_data
from dsrl.run import RunFolder
from dsrl.sb3_logging import RunLog
from dsrl.training import Trainer
from dsrl.unfinished import Unfinished

__all__ = ["GOAL_MODES", "ExtractConfig", "extract"]


def extract(config: ExtractConfig, console: Console | None = None) -> Path:
    """Find out what is good, train, save the averaged weights.

    Ctrl-C during the training leaves a policy in ``<out>.partial``. The same call goes on where it was, and after
    ``kill -9`` from what was written last (:class:`~dsrl.unfinished.Unfinished`).

    Returns:
        the checkpoint.

    Raises:
        DsrlError: when policy, data, labels or settings do not fit, before the policy is trained.
        RunFailed: when a loss is no longer finite.
    """
    console = console or Console(markup=False, highlight=False)
    out = checkpoint_file(config.out)
    check_out(out, config.overwrite)
    config = replace(config, dataset=local_data(config.dataset))
    base: Any = load_policy(config.base_policy, **vars(config.load), device=config.device)
    data = read_demos(config.dataset, base, base.spec.env)
    policy, teach = prepare(Job(config, base, *data.split(config.valid_share, config.seed)))
    origin = _origin(config, base, data)
    facts = {**flags(origin["config"], ("device",)), "--agent": config.agent}
    facts |= {"base policy": base.spec.sha256, "data": origin["data sha256"]}
    kept = Unfinished(out, facts, anew=config.overwrite, say=console.print)
    folder = _folder(config, base, data, kept)
    console.print(f"{config.mode} extraction from {spelled(config.base_policy)}, run folder {folder.path}")
    log = RunLog(folder, console)
    try:
        frozen = _train(policy, _taught(teach, kept, log), config, origin, kept, log)
    except RunFailed:
        raise
    except DsrlError:  # there is nothing to go on with: other settings or data are needed
        kept.finish()
        raise
    finally:
        log.close()
    save_policy(frozen, out)
    kept.finish()
    then = f"try it with: dsrl evaluate {out}"
    if isinstance(frozen, Guided):
        then = f"choose its weight with: dsrl evaluate {out} --guidance-weight 0,1,1.5,2,3,5"
    console.print(f"wrote {out}; {then}")
    return out


def _taught(teach: Teacher, kept: Unfinished, log: RunLog) -> Lesson:
    try:
        return teach(log, kept)
    except KeyboardInterrupt:
        log.say(kept.explain("before the policy was trained"))
        raise


def _train(
    policy: Guided | ChunkPolicy,
    lesson: Lesson,
    config: ExtractConfig,
    origin: Mapping[str, Any],
    kept: Unfinished,
    log: RunLog,
) -> Any:
    counts = [len(columns[0]) for columns in (lesson.train, lesson.valid)]
    log.say(f"{config.mode} policy, {counts[0]} chunks for training, {counts[1]} held out")
    if concern := config.guidance.concern(config.guidance_weight):
        log.say(f"warning: {concern}")
    trainer = Trainer(policy, config, log.write, kept, lesson.loss)

    def described() -> Any:
        found = {**lesson.metrics, "train loss": trainer.train_loss, "valid loss": trainer.valid_loss}
        numbers = {name: round(value, 5) for name, value in found.items()}
        trainer.ema.spec = replace(trainer.ema.spec, provenance={**origin, "steps": trainer.step, **numbers})
        return trainer.ema

    try:
        trainer.run(lesson.train, lesson.valid)
    except KeyboardInterrupt:
        log.say(kept.explain(f"after {trainer.step} steps", save_policy(described(), kept.partial)))
        raise
    log.say(f"loss {trainer.train_loss:.4f}, held out {trainer.valid_loss:.4f}")
    return described()


def _folder(config: ExtractConfig, base: FrozenPolicy, data: Trajectories, kept: Unfinished) -> RunFolder:
    """A new run folder, or the one of an extraction that goes on."""
    begun = kept.part("run folder")
    if begun is not None and Path(begun["path"]).is_dir():
        return RunFolder.open(begun["path"])
    folder = _new_folder(config, base, data)
    kept.keep("run folder", lambda: {"path": str(folder.path.absolute())}, now=True)
    return folder


def _new_folder(config: ExtractConfig, base: FrozenPolicy, data: Trajectories) -> RunFolder:
    env = base.spec.env or data.env
    where = env.id.replace("/", "-") if env else "data"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    facts = {"path": spelled(config.base_policy), "sha256": base.spec.sha256, "load": to_dict(config.load)}
    return RunFolder.create(
        config.run_dir or Path("runs") / where / "extract" / f"{stamp}_seed{config.seed}",
        config=to_dict(config),
        base_policy=facts | ({"env": env.to_robomimic()} if env else {}),
        force=config.overwrite,
    )


def _origin(config: ExtractConfig, base: FrozenPolicy, data: Trajectories) -> dict[str, Any]:
    """Where the new policy comes from."""
    # where files lie on this machine is nobody else's business
    private = ("base_policy", "dataset", "out", "run_dir", "agent", "overwrite", "load")
    return {
        "made by": f"dsrl {__version__} extract",
        "base policy": f"{config.base_policy.name}, sha256 {base.spec.sha256}",
        "data": f"{config.dataset.name}, {len(data)} episodes, {sum(e.success for e in data.episodes)} successes",
        "data sha256": file_sha256(config.dataset),
        "config": {key: value for key, value in asdict(config).items() if key not in private},
    }
