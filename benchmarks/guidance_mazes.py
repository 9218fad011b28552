"""Point mazes of OGBench for ``guidance.py``: one task with rewards, or goals; every policy plays chunks of five steps.

What differs from the paper (arXiv 2505.23458), to fit a CPU core: chunks of 5 actions instead of 1, so that values
travel in a fifth of the backups; policies of 3 x 256 units and 30,000 gradient steps instead of 4 x 512 and a
million, 10 Euler steps instead of 16. Smaller policies are worse: 3 x 128 units without LayerNorm and 20,000 steps
succeeded in 26 % of 50 episodes of pointmaze-large with weight 1 and in none with 1.5, where these succeed in 96 and
84 % (one seed). Values see sines of the position too, or they smooth away what happens at a wall or in a teleporter:
with values that did not, and whose returns were not normalised either, weight 1 succeeded in 2 % of 50 episodes of
pointmaze-teleport, with these in 46 % (one seed).
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from guidance_rows import Row, played
from mazes import dataset, single_task
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dsrl.awr import GaussianConfig, GaussianPolicy, awr_loss, awr_weights
from dsrl.cfgrl import LABEL_DIM, GuidedPolicy
from dsrl.critics import CriticEnsemble, reduce_q
from dsrl.data import Trajectories, read_hdf5
from dsrl.diffusion import FlowConfig, FlowPolicy
from dsrl.goals import GoalPolicy, HierarchicalPolicy, high_spec
from dsrl.guidance import Guidance
from dsrl.hindsight import FutureGoals
from dsrl.labels import Threshold, label
from dsrl.policy import PolicySpec
from dsrl.steered import best_of
from dsrl.training import Loss, Trainer, own_loss, windows
from dsrl.transitions import Transitions, cut_transitions
from dsrl.values import ImplicitQ, ValuesConfig, fit_values
from dsrl.wrappers import make_vec_env

CHUNK = 5
EULER = 10
GAMMA = 0.995
WEIGHTS = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
TEMPERATURES = (1.0, 3.0, 10.0, 30.0)
"""inverse ones, of advantages in env steps: those of the paper"""
BETA = "1/beta "
"""begins their names as settings"""
LAYERS = {"hidden_dims": [256, 256, 256], "activation": "GELU", "layer_norm": True}
NETWORK = {"type": "mlp", **LAYERS}
VALUES = ValuesConfig(steps=20_000, lr=1e-3)
FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""of the sines that values see of a position, in cycles per standard deviation"""
N_ENVS = 25


@dataclass(frozen=True)
class Training:
    """Of one policy."""

    seed: int
    steps: int = 30_000
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    ema_decay: float = 0.995


@dataclass(frozen=True)
class Maze:
    """One task: a maze, with its default goal or with goals in the observation."""

    name: str
    goals: bool
    folder: Path
    """of the data"""
    cache: Path
    """of what several methods share"""
    episodes: int = 50

    @property
    def spec(self) -> PolicySpec:
        """Of everything that plays here, without a goal."""
        return PolicySpec({"state": (2,)}, 2, CHUNK, CHUNK)

    @contextmanager
    def envs(self, spec: PolicySpec) -> Iterator[VecEnv]:
        """To evaluate in: success ends an episode."""
        env = f"ogbench/pointmaze-{self.name}" + ("" if self.goals else "-singletask")
        made = make_vec_env(env, spec, N_ENVS, reward="success", subprocess=False)
        try:
            yield made
        finally:
            made.close()

    def score(self, policies: dict[str, Any], calls: int, noise_scale: float = 1.0) -> list[Row]:
        """A row per setting, each on the same starts, beside as many others to choose one."""
        rows = []
        with self.envs(next(iter(policies.values())).spec) as envs:
            for setting, policy in policies.items():
                row = played(setting, policy, envs, self.episodes, noise_scale)
                rows.append({**row, "network_calls": calls})
                print(f"    {setting}: {row['success_rate']:.0%}, {row['mean_length']:.0f} env steps", flush=True)
        return rows


# -- one task with rewards --------------------------------------------------------------------------------------------


def flow_bc(maze: Maze, seed: int) -> list[Row]:
    """A policy of its own that never heard of rewards."""
    return maze.score({"flow BC": _cloned(maze, seed)}, EULER)


def best_of_n(maze: Maze, seed: int) -> list[Row]:
    """The same policy, and the critic's favourite of 2 samples, which costs what guidance does, or of 16."""
    policy, critic = _cloned(maze, seed), _OfPosition(_values(maze, seed)[0].critic_target)
    chosen = {n: best_of(policy, critic, n, [-1.0] * 2, [1.0] * 2) for n in (2, 16)}
    return [row for n, policy in chosen.items() for row in maze.score({f"best of {n}": policy}, n * EULER)]


def cfgrl(maze: Maze, seed: int) -> list[Row]:
    """One network that is told whether a chunk is good, at every weight."""
    values, cut = _values(maze, seed)
    rating = values.rate(cut)
    labels, report = label(rating.advantages, Threshold(0.0), rating.q, rating.returns)
    print(f"    {report}", flush=True)
    obs, chunk = _windows(maze)
    new = _seeded(seed, lambda: _flow(maze.spec, LABEL_DIM))
    new.fit_normalizers(obs, chunk)
    policy = _trained(GuidedPolicy(new, Guidance()), (obs, chunk, labels), Training(seed))
    return _at_weights(maze, policy, 2 * EULER)


def awr_flow(maze: Maze, seed: int, temperatures: Sequence[float]) -> list[Row]:
    """Advantage-weighted regression of a flow policy."""
    return _awr(maze, seed, temperatures, _flow, EULER, 1.0)


def awr_gauss(maze: Maze, seed: int, temperatures: Sequence[float]) -> list[Row]:
    """Of a Gaussian one with unit deviation, as in the paper: evaluated at its mean."""
    network = {"type": "gaussian", **LAYERS, "learn_std": False}
    return _awr(maze, seed, temperatures, lambda spec: GaussianPolicy(spec, GaussianConfig(network)), 1, 0.0)


def _awr(
    maze: Maze,
    seed: int,
    temperatures: Sequence[float],
    build: Callable[[PolicySpec], Any],
    calls: int,
    noise_scale: float,
) -> list[Row]:
    values, cut = _values(maze, seed)
    # a reward of 1 at the goal is worth 1 / (1 - gamma) env steps
    advantage = reduce_q(values.advantages(cut.cond, cut.chunk), "min") / (1 - GAMMA)
    obs, chunk = _windows(maze)
    rows = []
    for beta in temperatures:
        policy = _seeded(seed, lambda: build(maze.spec))
        policy.fit_normalizers(obs, chunk)
        columns = (obs, chunk, awr_weights(advantage, beta))
        trained = _trained(policy, columns, Training(seed), awr_loss)
        rows += maze.score({f"{BETA}{beta:g}": trained}, calls, noise_scale)
    return rows


def _values(maze: Maze, seed: int) -> tuple[ImplicitQ, Transitions]:
    """Values of the data, fitted once per seed."""
    policy = _flow(maze.spec)
    policy.fit_normalizers(*_windows(maze))
    cut = cut_transitions(_episodes(maze), policy, GAMMA, maze.name)
    cut = replace(cut, cond=_waves(cut.cond), next_cond=_waves(cut.next_cond))
    config, path = replace(VALUES, seed=seed), maze.cache / f"{maze.name}-values-seed{seed}.pt"
    learner = ImplicitQ(cut.cond.shape[1], cut.chunk.shape[1], config)
    if path.exists():
        learner.load_state_dict(torch.load(path, weights_only=True))
        return learner.requires_grad_(False), cut
    learner = fit_values(cut, config, lambda step, found: print(f"    {step} {found}", flush=True), 5_000)
    _keep(path, learner.state_dict())
    return learner, cut


def _waves(position: Tensor) -> Tensor:
    """``(B, 2)`` -> ``(B, 2 + 4 F)``: on the two sides of a wall values differ by much, positions by little."""
    angles = 2 * torch.pi * position[:, :, None] * torch.tensor(FREQUENCIES)
    return torch.cat([position, angles.flatten(1).sin(), angles.flatten(1).cos()], dim=1)


class _OfPosition(torch.nn.Module):
    """A critic of :func:`_waves`, for the observations of a policy."""

    def __init__(self, critic: CriticEnsemble):
        super().__init__()
        self.critic = critic

    def forward(self, cond: Tensor, chunk: Tensor) -> Tensor:
        return self.critic(_waves(cond), chunk)


def _cloned(maze: Maze, seed: int) -> FlowPolicy:
    """Behaviour cloning, once per seed."""
    obs, chunk = _windows(maze)
    policy, path = _seeded(seed, lambda: _flow(maze.spec)), maze.cache / f"{maze.name}-bc-seed{seed}.pt"
    policy.fit_normalizers(obs, chunk)
    if path.exists():
        policy.load_state_dict(torch.load(path, weights_only=True))
        return policy.freeze()
    policy = _trained(policy, (obs, chunk), Training(seed))
    _keep(path, policy.state_dict())
    return policy


# -- goals ------------------------------------------------------------------------------------------------------------


def goal(maze: Maze, seed: int) -> list[Row]:
    """Weight 0 is flow BC, weight 1 goal-conditioned BC."""
    policy = _seeded(seed, lambda: GoalPolicy(_flow(maze.spec, 3), Guidance()))
    return _at_weights(maze, _taught(maze, policy, seed), 2 * EULER)


def hierarchical(maze: Maze, seed: int) -> list[Row]:
    """The same on two levels."""

    def build() -> HierarchicalPolicy:
        high = GoalPolicy(_flow(high_spec(maze.spec, 2), 3), Guidance())
        return HierarchicalPolicy(_flow(maze.spec, 3), Guidance(), high=high)

    return _at_weights(maze, _taught(maze, _seeded(seed, build), seed), 4 * EULER)


def _taught(maze: Maze, policy: Any, seed: int) -> Any:
    data = _episodes(maze)
    obs, chunk = _windows(maze)
    goals = FutureGoals(data, "state", seed=seed)
    policy.fit_normalizers(obs, chunk, goals.reached)
    return _trained(policy, (obs, chunk, goals), Training(seed, steps=40_000))


# -- shared -----------------------------------------------------------------------------------------------------------


def _at_weights(maze: Maze, policy: Any, calls: int) -> list[Row]:
    return maze.score({f"w {weight:g}": policy.at_weight(weight) for weight in WEIGHTS}, calls)


def _flow(spec: PolicySpec, label_dim: int = 0) -> FlowPolicy:
    return FlowPolicy(spec, FlowConfig(NETWORK, sampling_steps=EULER, label_dim=label_dim))


def _seeded(seed: int, build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _trained(policy: Any, columns: Any, training: Training, loss: Loss = own_loss) -> Any:
    trainer = Trainer(policy, training, loss=loss)
    trainer.run(columns, columns)
    return trainer.ema


_loaded: dict[tuple[str, bool], Trajectories] = {}


def _episodes(maze: Maze) -> Trajectories:
    """Of the maze; the last one is kept, in memory and on disk: a thousand groups of HDF5 take a minute to read."""
    key = (maze.name, maze.goals)
    if key not in _loaded:
        _loaded.clear()
        path = maze.cache / f"{maze.name}{'-goals' if maze.goals else ''}.pickle"
        if not path.exists():
            data = read_hdf5(dataset(maze.name, maze.folder)) if maze.goals else single_task(maze.name, maze.folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(replace(data, obs_shapes={"state": (2,)})))
        _loaded[key] = pickle.loads(path.read_bytes())
    return _loaded[key]


def _windows(maze: Maze) -> tuple[Tensor, Tensor]:
    return windows(_episodes(maze), maze.spec, torch.device("cpu"))


def _keep(path: Path, state: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".aside")
    torch.save(state, aside)
    aside.replace(path)
