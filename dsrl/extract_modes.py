"""The ways of extraction: which policy is trained, and what it learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dsrl.actor_file import read_critic
from dsrl.anchored import AnchoredPolicy
from dsrl.awr import awr_loss, effective_share, few_count
from dsrl.cfgrl import LABEL_DIM, Guided, GuidedPolicy
from dsrl.chunk_policy import ChunkPolicy
from dsrl.data import Trajectories
from dsrl.diffusion import DiffusionPolicy, FlowConfig, FlowPolicy
from dsrl.errors import DsrlError, nearest
from dsrl.evaluate import evaluation_envs
from dsrl.extract_config import ExtractConfig
from dsrl.goals import GoalPolicy, HierarchicalPolicy, high_spec
from dsrl.guidance import Guidance
from dsrl.hindsight import FutureGoals
from dsrl.labelled import ChunkCritic, Labelled, label_recorded, label_samples, support
from dsrl.labels import Quantile, Rule, Soft, Threshold
from dsrl.policy import FrozenPolicy, PolicySpec
from dsrl.pretrained import spelled
from dsrl.pretrained.agent_folder import is_agent_folder
from dsrl.pretrained.hub import local
from dsrl.run import RunFolder
from dsrl.sb3_logging import RunLog
from dsrl.training import Column, Loss, own_loss, windows
from dsrl.unfinished import NotKept
from dsrl.wrappers.observations import MissingObservation


@dataclass(frozen=True)
class Job:
    """One extraction, its files read."""

    config: ExtractConfig
    base: Any
    train: Trajectories
    valid: Trajectories


@dataclass(frozen=True)
class Lesson:
    """What a policy is trained on."""

    train: Sequence[Column]
    valid: Sequence[Column]
    """of other episodes"""
    metrics: Mapping[str, float]
    """of the labels, for the provenance of the policy"""
    loss: Loss = own_loss


Teacher = Callable[[RunLog, NotKept], Lesson]
"""Called once a run folder is there, with what an interrupted extraction has kept; what speaks against going on, it
prints."""


def prepare(job: Job) -> tuple[Guided | ChunkPolicy, Teacher]:
    """The untrained policy, and what will teach it.

    Raises:
        DsrlError: when base policy, data or settings do not fit.
    """
    build, teacher = _MODES[job.config.mode]
    policy = build(job)
    return policy, teacher(job, policy)


def rule_of(config: ExtractConfig) -> Rule:
    """From advantages to labels.

    Raises:
        DsrlError: for a share or a temperature that cannot be.
    """
    rules: dict[str, Any] = {
        "threshold": lambda: Threshold(config.threshold),
        "quantile": lambda: Quantile(config.share),
        "soft": lambda: Soft(config.temperature),
    }
    return rules[config.rule]()


# -- policies ---------------------------------------------------------------------------------------------------------


def _anchored(job: Job) -> AnchoredPolicy:
    base = job.base
    if not isinstance(base, DiffusionPolicy | FlowPolicy):
        raise DsrlError(
            f"{spelled(job.config.base_policy)} holds a policy of kind '{_kind(base)}', whose network cannot be "
            "copied; anchored extraction takes a diffusion or a flow policy. --mode fresh trains a network of its own"
        )
    policy = AnchoredPolicy(base, job.config.guidance)
    policy.spec = replace(policy.spec, env=base.spec.env or job.train.env)
    return policy


def _fresh(job: Job) -> GuidedPolicy:
    return GuidedPolicy(_new(job, LABEL_DIM), job.config.guidance).to(job.base.device)


def _awr(job: Job) -> ChunkPolicy:
    if job.config.guidance != Guidance():
        raise DsrlError(
            "--mode awr trains a policy without guidance: leave out --guidance-weight, --guidance-interval, "
            "--max-guidance-weight and --no-clip-inside"
        )
    return _new(job, 0).to(job.base.device)


def _new(job: Job, label_dim: int) -> Any:
    """An untrained network; the normalisers of the base policy, or of the data where it has none."""
    new = _network_like(job, _new_spec(job), label_dim)
    if isinstance(job.base, DiffusionPolicy | FlowPolicy):
        for name in ("obs_normalizer", "action_normalizer"):
            getattr(new, name).load_state_dict(getattr(job.base, name).state_dict())
    else:
        new.fit_normalizers(*windows(job.train, new.spec, torch.device("cpu")))
    return new


def _goal(job: Job) -> GoalPolicy:
    base = _network_like(job, _spec_without_goal(job), _goal_dim(job) + 1)
    return _fitted(GoalPolicy(base, job.config.guidance, job.config.goal_key), job)


def _hierarchical(job: Job) -> HierarchicalPolicy:
    spec, goal_dim, config = _spec_without_goal(job), _goal_dim(job), job.config
    low = _network_like(job, spec, goal_dim + 1)
    high = GoalPolicy(_network_like(job, high_spec(spec, goal_dim), goal_dim + 1), config.guidance, config.goal_key)
    return _fitted(HierarchicalPolicy(low, config.guidance, config.goal_key, high=high), job)


def _network_like(job: Job, spec: PolicySpec, label_dim: int) -> Any:
    """A new network of the kind and size of the base policy's, or of those of `dsrl pretrain` where it has none."""
    base = job.base
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.config.seed)
        if not isinstance(base, DiffusionPolicy | FlowPolicy):
            return FlowPolicy(spec, FlowConfig(label_dim=label_dim))
        # sizes that the spec fixes are filled in again
        network = {k: v for k, v in base.config.network.items() if k not in ("action_dim", "horizon", "cond_dim")}
        return type(base)(spec, replace(base.config, network=network, label_dim=label_dim))


def _new_spec(job: Job) -> PolicySpec:
    return replace(job.base.spec, env=job.base.spec.env or job.train.env, sha256="", provenance={}, noise_shape=())


def _fitted(policy: Any, job: Job) -> Any:
    """Normalisers of the data, which has all that the goal policies see; and a look at the environment."""
    obs, chunk = windows(_seen(job.train, policy), policy.base.spec, torch.device("cpu"))
    policy.fit_normalizers(obs, chunk, FutureGoals(job.train, _reached_key(job)).reached)
    _check_environment(policy)
    return policy.to(job.base.device)


# -- goals ------------------------------------------------------------------------------------------------------------


def _spec_without_goal(job: Job) -> PolicySpec:
    spec = _new_spec(job)
    shapes = {key: shape for key, shape in spec.obs_shapes.items() if key != job.config.goal_key}
    return replace(spec, obs_shapes=shapes)


def _reached_key(job: Job) -> str:
    config, known = job.config, [key for key in job.train.obs_shapes if key != job.config.goal_key]
    if config.reached_key is None and len(known) == 1:
        return known[0]
    if config.reached_key not in known:
        wanted = "left out" if config.reached_key is None else f"'{config.reached_key}'"
        raise DsrlError(
            f"--reached-key is {wanted}; it must name the observation in {config.dataset} that says what was reached."
            f"{nearest(config.reached_key or '', known)} There are {', '.join(known)}"
        )
    return config.reached_key


def _goal_dim(job: Job) -> int:
    """Numbers of a goal: those of what was reached, which the recorded goals must have too, where there are any."""
    key, shapes = _reached_key(job), job.train.obs_shapes
    sizes = {name: int(torch.Size(shapes[name]).numel()) for name in (key, job.config.goal_key) if name in shapes}
    if len(set(sizes.values())) > 1:
        raise DsrlError(
            f"{job.config.dataset}: what was reached, '{key}', has {sizes[key]} numbers, the goal "
            f"'{job.config.goal_key}' {sizes[job.config.goal_key]}; name another observation with --reached-key"
        )
    return sizes[key]


def _check_environment(policy: GoalPolicy) -> None:
    """A goal that the environment does not give is noticed before anything is learned."""
    if policy.spec.env is None:
        return
    try:
        with evaluation_envs(policy, n_envs=1):
            return
    except MissingObservation as error:
        raise DsrlError(f"--goal-key is '{policy.goal_key}', but {error}") from error
    except (DsrlError, ImportError):
        return  # a simulator that is not installed here; `dsrl evaluate` will say so


def _seen(data: Trajectories, policy: Guided) -> Trajectories:
    """The episodes with the observations that the base reads alone."""
    return replace(data, obs_shapes=policy.base.spec.obs_shapes)


# -- lessons ----------------------------------------------------------------------------------------------------------


def _hindsight(job: Job, policy: Guided) -> Teacher:
    config = job.config

    def columns(part: Trajectories, seed: int) -> Sequence[Column]:
        device = policy.device
        goals = FutureGoals(part, _reached_key(job), ahead=config.subgoal_steps, device=device, seed=seed)
        return *windows(_seen(part, policy), policy.base.spec, device), goals

    return lambda log, kept: Lesson(columns(job.train, config.seed), columns(job.valid, config.seed), {})


def _labels(job: Job, policy: Guided) -> Teacher:
    """Which chunks are good."""
    rate = _rated(job)

    def teach(log: RunLog, kept: NotKept) -> Lesson:
        labelled = rate(log, kept)
        rows = labelled.train, labelled.valid
        train, valid = rows if policy.learns_from_bad else (part.good() for part in rows)
        if not len(train.label):
            raise DsrlError("labels/positive_rate is 0% of the episodes for training: use the quantile rule, or --seed")
        return Lesson(train.columns(), valid.columns(), labelled.metrics())

    return teach


def _weights(job: Job, policy: ChunkPolicy) -> Teacher:
    """How much each chunk counts."""
    rate = _rated(job)

    def teach(log: RunLog, kept: NotKept) -> Lesson:
        labelled = rate(log, kept)
        temperature = job.config.awr_temperature * float(labelled.train.advantage.std())
        train, valid = (rows.weighted(temperature) for rows in (labelled.train, labelled.valid))
        share = effective_share(train[2])
        found = {"labels/effective_share": share}
        log.show(found, [few_count(share)])
        return Lesson(train, valid, {**labelled.metrics(), **found}, awr_loss)

    return teach


def _rated(job: Job) -> Callable[[RunLog, NotKept], Labelled]:
    """Good and bad chunks, recorded or sampled."""
    config, base, rule, critic = job.config, job.base, rule_of(job.config), _critic(job)

    def rate(log: RunLog, kept: NotKept) -> Labelled:
        near = support(base, *_executed(windows(job.train, base.spec, base.device), base), seed=config.seed)
        log.show(near.metrics(), [near.concern() if critic is None else None])
        parts = (job.train, job.valid, base, rule)
        settings: dict[str, Any]
        if critic is None:
            values = replace(config.values, seed=config.values.seed + config.seed)
            settings = {"gamma": config.gamma, "reward": config.reward, "folds": config.folds}
            settings |= {"source": str(config.dataset), "report": log.write, "kept": kept}
            labelled = label_recorded(*parts, values, **settings)
        else:
            settings = {"candidates": config.candidates, "states": config.states, "seed": config.seed}
            labelled = label_samples(*parts, critic, **settings)
        log.show(labelled.metrics(), labelled.concerns())
        return labelled

    return rate


def _critic(job: Job) -> ChunkCritic | None:
    """What rates samples of the base policy, where that is asked for."""
    if job.config.agent is None:
        return None
    if not isinstance(job.base, DiffusionPolicy | FlowPolicy):
        raise DsrlError(
            f"{spelled(job.config.base_policy)} holds a policy of kind '{_kind(job.base)}', which does not show whole "
            "chunks; --labels critic takes a diffusion or a flow policy"
        )
    folder = local(job.config.agent)
    agent = folder if is_agent_folder(folder) else RunFolder.open(folder).final
    return ChunkCritic(*read_critic(agent, job.base))


def _kind(policy: FrozenPolicy) -> str:
    return getattr(policy, "kind", type(policy).__name__)


def _executed(columns: tuple[torch.Tensor, torch.Tensor], base: FrozenPolicy) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations, and what is executed of whole chunks in environment units."""
    obs, chunk = columns
    start = base.spec.action_start
    return obs, chunk[:, start : start + base.spec.n_action_steps]


_MODES: dict[str, tuple[Callable[[Job], Any], Callable[[Job, Any], Teacher]]] = {
    "anchored": (_anchored, _labels),
    "fresh": (_fresh, _labels),
    "goal": (_goal, _hindsight),
    "hierarchical": (_hierarchical, _hindsight),
    "awr": (_awr, _weights),
}
