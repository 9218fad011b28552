"""The verbs of the command line that look at policies: each resolves its files, calls one function, prints."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dsrl import finetune as _finetune
from dsrl.actor_file import read_steered
from dsrl.cfgrl import Guided
from dsrl.compare import compare, print_probe
from dsrl.compare_runs import Contender, compare_runs
from dsrl.config import (
    ConvertConfig,
    ExportConfig,
    FinetuneConfig,
    InspectConfig,
    PluginsConfig,
    safety_config,
)
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.evaluate import environment_of, evaluation_envs
from dsrl.evaluate_config import EvaluateConfig, ProbeConfig
from dsrl.files import check_out
from dsrl.guidance_curve import guidance_curve
from dsrl.noise import NoiseSpace, reduced_spaces
from dsrl.plugins import ENVS, POLICIES, load_plugins
from dsrl.policy import FrozenPolicy
from dsrl.pretrained import convert as _convert
from dsrl.pretrained import describe, is_checkpoint, load_policy, save_policy, spelled
from dsrl.pretrained.agent_folder import is_agent_folder
from dsrl.pretrained.formats import Format
from dsrl.pretrained.hub import local
from dsrl.pretrained.verify import verify
from dsrl.probe import probe as run_probe
from dsrl.run import RunFolder
from dsrl.safety import SafetyConfig
from dsrl.safety_log import TalliedEnvs
from dsrl.steered import SteeredPolicy
from dsrl.video import Camera, check_target, save_films
from dsrl.wrappers import resolve_env_spec
from dsrl.wrappers.families import Family


def finetune(config: FinetuneConfig) -> int:
    """``dsrl finetune``"""
    return 130 if _finetune.finetune(config).comparison is None else 0


def probe(config: ProbeConfig) -> None:
    """``dsrl probe``"""
    policy = load_policy(config.checkpoint, **vars(config.load), device=config.device)
    shape = policy.spec.noise_shape
    spaces = reduced_spaces(shape, config.bound) if config.noise_spaces else []
    if config.noise_spaces and not spaces:
        raise DsrlError(f"the noise of this policy has the shape {shape} and no rows in time; leave out --noise-spaces")
    noise_space = NoiseSpace.from_config(shape, config.bound, config.noise)
    env = environment_of(policy, config.env, config.max_episode_steps)
    with evaluation_envs(policy, env=env, n_envs=config.n_envs, reward=config.reward) as envs:
        check = run_probe(
            policy,
            envs,
            states=config.states,
            repeats=config.repeats,
            noise_space=noise_space,
            compare=spaces,
            seed=config.seed,
            console=Console(),
        )
    print_probe(check, Console())
    if objection := check.objection():
        Console().print(f"dsrl finetune would refuse: {objection}")


def inspect(config: InspectConfig) -> None:
    """``dsrl inspect``"""
    table = Table("", "", show_header=False, title=spelled(config.checkpoint))
    table.columns[1].overflow = "fold"  # a hash that is cut off is of no use
    rows = describe(config.checkpoint, config.load)
    if config.verify:
        rows += verify(load_policy(config.checkpoint, **vars(config.load), device=config.device))
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def export(config: ExportConfig) -> None:
    """``dsrl export``"""
    check_out(config.out, config.overwrite)
    policy, env = load_run(config.run, config.agent, "cpu")
    policy.spec = replace(policy.spec, env=env)  # the base policy may have been made for another one, or for none
    save_policy(policy, config.out)
    Console().print(f"wrote {config.out}: {policy.spec.describe()}, made for {env.id}")


def convert(config: ConvertConfig) -> None:
    """``dsrl convert``"""
    spec = _convert(config.checkpoint, config.out, config.load, overwrite=config.overwrite)
    Console().print(f"wrote {config.out}: {spec.describe()}, sha256 {spec.sha256[:12]}")


def plugins(config: PluginsConfig) -> None:
    """``dsrl plugins``"""
    table = Table("entry points", "name", "package", "what it adds")
    kinds: dict[str, Any] = {POLICIES: Format, ENVS: Family}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table says what is broken
        for group, kind in kinds.items():
            for plugin in load_plugins(group, kind):
                added = plugin.loaded.title if plugin.loaded else f"broken: {plugin.error}"
                table.add_row(group, plugin.name, plugin.package, added)
    Console().print(
        table if table.rows else f"no installed package adds a format or a simulator (entry points {POLICIES}, {ENVS})"
    )


def evaluate(config: EvaluateConfig) -> None:
    """``dsrl evaluate``"""
    console = Console()
    if config.weights:
        return _evaluate_weights(config, console)
    if config.compare is not None:
        return _evaluate_two(config, config.compare, console)
    config = replace(config, target=local(config.target))
    with ExitStack() as stack:
        base, steered, env = _resolve(config)
        safety = _safety(config)
        camera = None
        if config.video is not None:  # before the simulator is imported, and before anything is played
            check_target(config.video)
            camera = stack.enter_context(Camera(env, base, reward=config.reward, safety=safety))
        n_envs = min(config.n_envs, config.episodes)
        envs = stack.enter_context(evaluation_envs(base, env=env, n_envs=n_envs, reward=config.reward, safety=safety))
        envs = tallied = TalliedEnvs(envs)
        comparison = compare(
            base, steered, envs, episodes=config.episodes, seed=config.seed, repeats=config.repeats, console=console
        )
        comparison.print(console)
        console.print(comparison.verdict())
        if safety.active:
            console.print(tallied.tally.describe())
        if config.json is not None:
            comparison.save(config.json)
        if camera is not None:
            _film(config, camera, base, steered, console)


def _safety(config: EvaluateConfig) -> SafetyConfig:
    """As asked for; otherwise a run is scored under the limits that it was trained under."""
    settings = config.target / "config.yaml"
    if config.safety.active or not settings.is_file():
        return config.safety
    return safety_config(RunFolder(config.target).read_config())


def _film(
    config: EvaluateConfig, camera: Camera, base: FrozenPolicy, steered: SteeredPolicy | None, console: Console
) -> None:
    """The first of the episodes again, filmed."""
    assert config.video is not None
    settings: dict[str, Any] = {"episodes": min(config.video_episodes, config.episodes), "seed": config.seed}
    films = {"base": camera.film(base, "base", **settings)}
    if steered is not None:
        films["steered"] = camera.film(steered, "steered", noise_scale=steered.acting_scale, **settings)
    for path in save_films(config.video, films):
        console.print(f"film: {path}")


def _evaluate_two(config: EvaluateConfig, other: Path, console: Console) -> None:
    """``--compare``: the target against another run or checkpoint."""
    comparison = compare_runs(
        _contender(config, other),
        _contender(config, config.target),
        episodes=config.episodes,
        seed=config.seed,
        n_envs=config.n_envs,
        reward=config.reward,
        console=console,
    )
    comparison.print(console)
    console.print(comparison.verdict())
    if config.json is not None:
        comparison.save(config.json)


def _contender(config: EvaluateConfig, target: Path) -> Contender:
    config = replace(config, target=local(target), compare=None)
    base, steered, env = _resolve(config)
    policy, scale = (base, 1.0) if steered is None else (steered, steered.acting_scale)
    return Contender(str(target), policy, base.spec.sha256, scale, resolve_env_spec(env, base.spec), _safety(config))


def _evaluate_weights(config: EvaluateConfig, console: Console) -> None:
    """All guidance weights of one checkpoint."""
    folder = config.target.is_dir() and not is_checkpoint(config.target)
    policy = None if folder else load_policy(config.target, **vars(config.load), device=config.device)
    if not isinstance(policy, Guided):
        what = "a run folder" if folder else f"a policy of kind '{getattr(policy, 'kind', type(policy).__name__)}'"
        raise DsrlError(
            f"--guidance-weight is {config.guidance_weight}, but {config.target} is {what}, which is not guided; "
            "`dsrl extract` writes a policy that is"
        )
    env = environment_of(policy, config.env, config.max_episode_steps)
    with evaluation_envs(policy, env=env, n_envs=config.n_envs, reward=config.reward) as envs:
        seeds = {"seed": config.seed, "choice_seed": config.choice_seed}
        curve = guidance_curve(policy, envs, config.weights, episodes=config.episodes, **seeds, console=console)
    curve.print(console)
    console.print(curve.verdict())
    for concern in filter(None, [policy.guidance.concern(config.weights[-1])]):
        console.print(f"warning: {concern}")
    if config.json is not None:
        curve.save(config.json)
    if config.plot is not None:
        curve.draw(config.plot, f"{config.target.name}: what the guidance weight does")


def _resolve(config: EvaluateConfig) -> tuple[FrozenPolicy, SteeredPolicy | None, EnvSpec | str]:
    """Base policy, steered policy and environment of a run folder or a checkpoint."""
    if config.target.is_dir() and not is_checkpoint(config.target) and not is_agent_folder(config.target):
        steered, known = load_run(config.target, config.agent, config.device, config.load.base)
        return steered.base, steered, environment_of(steered.base, config.env or known, config.max_episode_steps)
    policy = load_policy(config.target, **vars(config.load), device=config.device)
    env = environment_of(policy, config.env, config.max_episode_steps)
    return (policy.base, policy, env) if isinstance(policy, SteeredPolicy) else (policy, None, env)


def load_run(path: Path, agent: str, device: str, base_path: Path | None = None) -> tuple[SteeredPolicy, EnvSpec]:
    """The steered policy of a run folder, or of what `dsrl push` made of it, and the environment of its training.

    Args:
        path: of the folder, or its address on the hub.
        agent: ``best`` or ``final``; a pushed folder has one only.
        device: to compute on.
        base_path: of the base policy, when it has moved.

    Raises:
        DsrlError: when the folder is not a run, the base policy has moved or changed, or nothing was learned yet.
    """
    path = local(path)
    if is_agent_folder(path):
        pushed: Any = load_policy(path, base=base_path, device=device)
        return pushed, pushed.spec.env
    folder = RunFolder.open(path)
    facts = folder.read_base_policy()
    where = base_path or facts["path"]
    base = load_policy(where, **facts.get("load", {}), device=device)
    if base.spec.sha256 != facts["sha256"]:
        raise DsrlError(
            f"{where} is no longer the base policy of this run: it hashes to {base.spec.sha256[:12]}, "
            f"the run steered {facts['sha256'][:12]}"
        )
    wanted, other = (folder.best, folder.final) if agent == "best" else (folder.final, folder.best)
    if other.exists() and not wanted.exists():
        raise DsrlError(f"the run {path} ended before it had a {wanted.name}; take --agent {other.stem}")
    return read_steered(wanted, base), EnvSpec.from_robomimic(facts["env"])
