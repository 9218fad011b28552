"""Steer a frozen policy: the whole run on one page."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gymnasium.spaces import Box
from rich.console import Console
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from dsrl.actor_file import read_steered
from dsrl.algorithms import ALGORITHMS, discount_inside, steering_facts
from dsrl.callbacks import EnvSteps, SteeringEvaluation, StopWatch, WarmUp, check_finite, last_good
from dsrl.checkpoint import Checkpoints
from dsrl.checkpointing import Checkpointing
from dsrl.compare import Comparison, compare, print_probe
from dsrl.config import FinetuneConfig, to_dict
from dsrl.demonstrate import show_demonstrations
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, LossNotFinite, RunFailed
from dsrl.eval_budget import EvaluationPlan, plan_evaluations
from dsrl.evaluate import environment_of, evaluation_envs
from dsrl.files import replacing
from dsrl.interruption import Interruption, was_interrupted
from dsrl.noise import NoiseSpace
from dsrl.noise_aliased import NoiseAliasedSAC
from dsrl.noise_diagnostics import NoiseDiagnostics
from dsrl.plots import learning_curve
from dsrl.policy import FrozenPolicy
from dsrl.pretrained import DEFAULT_CHECKPOINT, load_policy, spelled
from dsrl.probe import probe
from dsrl.resume import run_facts, taken_up
from dsrl.run import RunFolder
from dsrl.run_lock import locked
from dsrl.safety_log import SafetyLog
from dsrl.sb3_logging import run_logger
from dsrl.warm_start import WarmStart
from dsrl.wrappers import SteeredVecEnv, make_vec_env, resolve_env_spec, resolve_reward

# seeds of initial states: training, curve, probe and final comparison never share one, nor do two runs
_TRAIN, _CURVE, _PROBE, _FINAL = 100_000_000, 200_000_000, 300_000_000, 400_000_000
_PER_RUN = 10_000


@dataclass(frozen=True)
class FinetuneResult:
    """What a run came to."""

    run_dir: Path
    comparison: Comparison | None
    """None when the run was interrupted"""


def finetune(config: FinetuneConfig, console: Console | None = None) -> FinetuneResult:
    """Run ``dsrl finetune``.

    Everything is checked before anything is written. Ctrl-C and SIGTERM end the training and save what was learned, so
    that a run can go on from there: :func:`~dsrl.resume.resumed_config`.

    Raises:
        DsrlError: for a checkpoint, an environment or a run folder that does not do, and for a run that is to go on in
            other circumstances than it was begun in.
    """
    console = console or Console()
    path = config.base_policy or DEFAULT_CHECKPOINT
    policy = load_policy(path, **vars(config.loading), device=config.device)
    env = resolve_env_spec(environment_of(policy, config.env, config.max_episode_steps), policy.spec)
    config = replace(config, reward=resolve_reward(env, config.reward))  # type: ignore[arg-type]
    bound = config.bound or ALGORITHMS[config.algo].bound(config)
    noise_space = NoiseSpace.from_config(policy.spec.noise_shape, bound, config.noise)
    folder = _folder(config, env)
    with ExitStack() as stack:
        stack.enter_context(locked(folder.path))
        checkpoints, facts = Checkpoints(folder), run_facts(config, policy, env)
        kept = None if config.resume is None else taken_up(config, checkpoints, facts, console)
        alike: dict[str, Any] = {"reward": config.reward, "safety": config.safety}
        alike["timeout"] = config.simulator_timeout
        eval_envs = stack.enter_context(evaluation_envs(policy, env=env, n_envs=config.n_eval_envs, **alike))
        train_envs = make_vec_env(env, policy.spec, config.n_envs, gamma=discount_inside(config), **alike)
        stack.callback(train_envs.close)
        model = _build(config, SteeredVecEnv(train_envs, policy, noise_space))
        console.print(f"base policy {spelled(path)} on {env.id}, run folder {folder.path}")
        if isinstance(model, NoiseAliasedSAC) and config.demos is not None:
            assert isinstance(train_envs.action_space, Box)
            show_demonstrations(config, model, policy, env, train_envs.action_space, console)
        warm = None
        if isinstance(model, NoiseAliasedSAC) and config.warm_start is not None:
            assert isinstance(train_envs.action_space, Box)
            warm = WarmStart(config, policy, env, train_envs.action_space)
            console.print(
                f"{warm.attach(model)} synthetic decisions for the critics, {config.synthetic_share:.0%} of a batch"
            )
        if config.probe_episodes and kept is None:
            _check_steerability(config, policy, noise_space, eval_envs, console)
        if config.resume is None:
            base = {"path": spelled(path), "sha256": policy.spec.sha256, "env": env.to_robomimic()}
            base["load"] = to_dict(config.loading)
            RunFolder.create(folder.path, config=to_dict(config), base_policy=base, force=config.overwrite)
        plan = plan_evaluations(
            config.total_env_steps, env.max_episode_steps, config.eval_interval, config.eval_episodes
        )
        run = _Run(config, policy, model, eval_envs, checkpoints, facts, console, plan)
        if warm is not None and (again := warm.callback(run.steps, run.evaluation.steered)) is not None:
            run.beside.append(again)
            run.checkpointing.parts["synthesis"] = again
        if kept is not None:
            run.restore(kept)
        if run.learn():
            run.draw()
            console.print(
                f"interrupted; what was learned is saved. Score it with: dsrl evaluate {folder.path}\n"
                f"Go on with: dsrl finetune --resume {folder.path}"
            )
            return FinetuneResult(folder.path, None)
        return FinetuneResult(folder.path, run.conclude())


class _Run:
    """The moving parts of one run, once everything is known to fit."""

    def __init__(
        self,
        config: FinetuneConfig,
        policy: FrozenPolicy,
        model: BaseAlgorithm,
        eval_envs: VecEnv,
        checkpoints: Checkpoints,
        facts: Mapping[str, Any],
        console: Console,
        plan: EvaluationPlan,
    ):
        self.config, self.policy, self.model, self.folder = config, policy, model, checkpoints.run
        self.eval_envs, self.console, self.watch = eval_envs, console, StopWatch()
        self.restored, self.interruption = False, Interruption()
        model.set_logger(run_logger(self.folder))
        self.watched = [SafetyLog()] if config.safety.active else []
        self.steps = EnvSteps(config.total_env_steps, self.watch, console)
        self.warm_up = WarmUp(config.warmup_episodes, self.steps, successes=config.warmup_successes)
        self.evaluation = SteeringEvaluation(
            self.steps,
            self.folder,
            policy,
            eval_envs,
            plan=plan,
            seed=first_seed(_CURVE, config),
            watch=self.watch,
        )
        self.counters = [self.steps, self.warm_up, self.evaluation]
        self.diagnostics = NoiseDiagnostics(
            config.total_env_steps, lambda: self.steps.env_steps, lambda: self.evaluation.steered().actor
        )
        self.beside: list[BaseCallback] = [self.diagnostics, *self.watched]
        self.checkpointing = Checkpointing(
            checkpoints,
            facts,
            {
                "steps": self.steps,
                "warm_up": self.warm_up,
                "evaluation": self.evaluation,
                "watch": self.watch,
                "diagnostics": self.diagnostics,
                **({"safety": self.watched[0]} if self.watched else {}),
            },
            steps=self.steps,
            interval=config.checkpoint_interval,
            interruption=self.interruption,
        )

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            DsrlError: when the agent of the checkpoint was set up in another way.
        """
        self.folder.keep_rows(checkpoint["rows"])
        self.checkpointing.init_callback(self.model)
        fresh = self.checkpointing.restore(checkpoint, first_seed(_TRAIN, self.config))
        if self.steps.env_steps >= self.steps.budget:
            raise DsrlError(
                f"--total-env-steps is {self.steps.budget:,}, and {self.folder.path} has played "
                f"{self.steps.env_steps:,}"
            )
        self.restored = True
        self.model.set_logger(run_logger(self.folder, self.model))
        self.console.print(f"going on at {self.steps.env_steps:,} of {self.steps.budget:,} env steps")
        if fresh:
            self.console.print(
                f"the simulator does not repeat itself: the episodes under way in {len(fresh)} of "
                f"{self.config.n_envs} environments were begun anew, and the run differs from one without a break"
            )

    def learn(self) -> bool:
        """Train until the budget is spent; returns whether it was interrupted."""
        if not self.restored:
            if note := self.evaluation.plan.note():
                self.console.print(note)
            with self.watch:
                base = self.evaluation.record_base()
            self.console.print(f"base policy: {base.describe()}")
        interrupted = False
        try:
            with self.interruption:
                # a timestep of the agent is at least one env step, so the budget in EnvSteps ends first
                self.model.learn(
                    self.config.total_env_steps - self.model.num_timesteps,
                    callback=[self.steps, self.warm_up, self.evaluation, *self.beside, self.checkpointing],
                    log_interval=ALGORITHMS[self.config.algo].log_interval,
                    reset_num_timesteps=not self.restored,
                )
        except KeyboardInterrupt:
            interrupted = True
            if self.interruption.insisted:
                raise
        except LossNotFinite as error:
            raise RunFailed(f"{error}; {last_good(self.folder)}") from error
        except RunFailed as error:
            with suppress(RunFailed):
                self._save()
            raise RunFailed(f"{error}. {self._how_to_go_on()}") from error
        except Exception as error:
            # Ctrl-C inside of torch.save comes out as the complaint of a zip file that was left half written
            if was_interrupted(error):
                raise KeyboardInterrupt from error
            # a simulator that died must not cost what was learned
            self.checkpointing.rescue()
            self._save()
            raise RunFailed(f"training stopped: {error}. {self._how_to_go_on()}") from error
        finally:
            self.steps.stop()
        check_finite(self.model, self.folder)
        self._save()
        return interrupted

    def conclude(self) -> Comparison:
        """Compare the last agent with the base policy and the controls on fresh initial states."""
        with self.watch:
            trained, scored_at, plan = self.steps.env_steps, self.evaluation.scored_at, self.evaluation.plan
            if scored_at < trained and plan.ends(trained, scored_at >= 0):
                self.evaluation.score()
                self.model.logger.dump(self.model.num_timesteps)
            self.draw()
            steered = read_steered(self.folder.final, self.policy)
            comparison = compare(
                self.policy,
                steered,
                self.eval_envs,
                episodes=self.config.final_episodes,
                seed=first_seed(_FINAL, self.config),
                repeats=self.config.final_repeats,
                controls=self.config.final_controls,
                console=self.console,
            )
            comparison = replace(comparison, trained=trained)
            comparison.save(self.folder.comparison)
            comparison.print(self.console)
            self.console.print(
                f"{comparison.verdict()} ({self.steps.env_steps:,} env steps, {self.watch.seconds:.0f} s of training)"
            )
            for log in self.watched:
                self.console.print(log.tally.describe())
            worst = min(r["success_rate"] for r in self.folder.read_evaluations() if r["policy"] == "steered")
            self.console.print(f"lowest evaluation on the way: {worst:.0%}; picture: {self.folder.learning_curve}")
            self.console.print(f"{plan.describe()}, and {comparison.env_steps:,} of this comparison")
        return comparison

    def draw(self) -> None:
        """Draw the learning curve."""
        learning_curve(self.folder.read_evaluations(), self.folder.learning_curve, title=self._title())

    def _save(self) -> None:
        with replacing(self.folder.final) as aside:
            self.model.save(aside)

    def _how_to_go_on(self) -> str:
        path = self.folder.path
        return f"What was learned so far is in {path}; go on with: dsrl finetune --resume {path}"

    def _title(self) -> str:
        return f"{self.folder.path.name}: {self.config.algo} on the noise"


def _check_steerability(
    config: FinetuneConfig, policy: FrozenPolicy, noise_space: NoiseSpace, envs: VecEnv, console: Console
) -> None:
    """Print what the choice of noise changes.

    Raises:
        DsrlError: when the base policy does not survive in the noise space or its box, unless that is accepted.
    """
    check = probe(
        policy,
        envs,
        states=config.probe_episodes,
        noise_space=noise_space,
        seed=first_seed(_PROBE, config),
        console=console,
    )
    print_probe(check, console)
    if objection := check.objection():
        if not config.accept_noise_space:
            raise DsrlError(objection)
        console.print(f"accepted: {objection}")


def _build(config: FinetuneConfig, envs: SteeredVecEnv) -> BaseAlgorithm:
    """The agent, and environments that start where this run's training starts."""
    policy, space = envs.steering.policy, envs.steering.noise_space
    model = ALGORITHMS[config.algo].build(
        config, envs, policy.spec.n_action_steps, seed=config.seed, device=str(policy.device)
    )
    # a plain attribute, which stable-baselines3 saves as readable JSON
    model.steering = steering_facts(config, model, space.bound, policy, space.layout())  # type: ignore[attr-defined]
    # stable-baselines3 has just seeded the environments with the seed of the networks
    envs.seed(first_seed(_TRAIN, config))
    return model


def _folder(config: FinetuneConfig, env: EnvSpec) -> RunFolder:
    """Where the run goes, or is.

    Raises:
        DsrlError: when there is no room, or no run to go on with.
    """
    if config.resume is not None:
        return RunFolder.open(config.resume)
    folder = RunFolder((config.run_dir or _default_dir(config, env)).expanduser())
    folder.check_room(config.overwrite)
    return folder


def _default_dir(config: FinetuneConfig, env: EnvSpec) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / env.id.replace("/", "-") / config.algo / f"{stamp}_seed{config.seed}"


def first_seed(kind: int, config: FinetuneConfig) -> int:
    """First of the initial states of one kind that belong to this run alone."""
    return kind + _PER_RUN * config.seed
