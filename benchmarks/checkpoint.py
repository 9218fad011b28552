"""What checkpoints cost a run whose replay buffer holds a million decisions: time and memory.

    python benchmarks/checkpoint.py [--rows 1000000] [--seconds 150]

The buffer is filled with made-up decisions of the toy task. Then the agent plays and learns for a while, with
checkpoints at the default interval, in a process of its own whose memory is watched. At the end another process takes
the run up again, and its memory is watched too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from stable_baselines3.common.callbacks import ConvertCallback

from dsrl.algorithms import ALGORITHMS
from dsrl.callbacks import EnvSteps, SteeringEvaluation, StopWatch, WarmUp
from dsrl.checkpoint import Checkpoints
from dsrl.checkpointing import Checkpointing
from dsrl.config import FinetuneConfig, NAConfig
from dsrl.eval_budget import EvaluationPlan
from dsrl.interruption import Interruption
from dsrl.noise import NoiseSpace
from dsrl.pools import Pool
from dsrl.pretrained.toy import ToyPolicy
from dsrl.run import RunFolder
from dsrl.sb3_logging import run_logger
from dsrl.wrappers import SteeredVecEnv, make_vec_env

_BLOCK = 50


class Memory:
    """Largest resident memory of this process while it is entered, in bytes, sampled every 5 ms."""

    def __enter__(self) -> Memory:
        self.before = self.peak = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, resident())


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def build(folder: Path, rows: int, seconds: float) -> tuple[Any, Checkpointing, list[Any]]:
    """An agent of the toy task, and what watches over its run."""
    run = RunFolder.open(folder) if (folder / "config.yaml").exists() else RunFolder.create(folder, {}, {})
    policy = ToyPolicy()
    config = FinetuneConfig(
        device="cpu", total_env_steps=10**9, na=NAConfig(buffer_size=2 * rows, fit_updates=0, fit_actor_updates=0)
    )
    envs = SteeredVecEnv(make_vec_env(policy.spec.env, policy.spec, 4), policy, NoiseSpace(policy.spec.noise_shape, 10))
    model = ALGORITHMS["na"].build(config, envs, policy.spec.n_action_steps, seed=0, device="cpu")
    envs.seed(0)
    model.set_logger(run_logger(run))
    watch = StopWatch()
    steps = EnvSteps(config.total_env_steps, watch, Console(quiet=True))
    plan = EvaluationPlan(config.total_env_steps, 1, config.total_env_steps)
    evaluation = SteeringEvaluation(steps, run, policy, envs, plan=plan, seed=0, watch=watch)
    evaluation.scored_at = 0
    warm_up = WarmUp(1, steps)
    checkpointing = Checkpointing(
        Checkpoints(run),
        {},
        {"steps": steps, "warm_up": warm_up, "evaluation": evaluation, "watch": watch},
        steps=steps,
        interval=config.checkpoint_interval,
        interruption=Interruption(),
    )
    return model, checkpointing, [steps, warm_up, evaluation, checkpointing]


def fill(model: Any, rows: int) -> int:
    """Make up decisions, ``_BLOCK`` episodes at a time; returns the bytes of the buffer."""
    buffer, generator = model.replay_buffer, torch.Generator().manual_seed(0)
    kinds = buffer.record_shapes()
    pool = buffer.pool_size, buffer.action_dim, buffer.chunk_dim
    # the first one makes room for all of them at once, as a run does by doubling
    while buffer.rows < rows:
        count = min(_BLOCK, rows - buffer.rows)
        columns = {
            name: torch.randn(count, *kinds[name], generator=generator).numpy()
            for name in ("obs", "next_obs", "action", "reward", "chunk")
        }
        pools = tuple(
            Pool(torch.randn(count, *pool[:2], generator=generator), torch.randn(count, pool[0], pool[2]))
            for _ in range(2)
        )
        ended = np.full(count, buffer.rows // _BLOCK % 8 == 7)
        buffer.extend(
            range(count),
            pools,
            ended=ended,
            terminated=ended.astype(np.float32),
            length=np.full(count, 4.0),
            noise_known=np.ones(count),
            **columns,
        )
    return 4 * buffer.rows * sum(int(np.prod(shape)) for shape in kinds.values()) + 12 * buffer.rows


def train(folder: Path, rows: int, seconds: float, out: Connection) -> None:
    """Fill, play, learn and write checkpoints; tells what that took."""
    torch.set_num_threads(1)
    model, checkpointing, callbacks = build(folder, rows, seconds)
    base = resident()
    buffer_bytes = fill(model, rows)
    model.learning_starts = 0
    save, saves = checkpointing.checkpoints.save, []

    def timed(*args: Any) -> None:
        begin, written = time.perf_counter(), checkpointing.checkpoints.log
        save(*args)
        saves.append((time.perf_counter() - begin, args[1].written, written.rows_per_file))

    checkpointing.checkpoints.save = timed  # type: ignore[method-assign]
    begin = time.perf_counter()

    def stop(*_: Any) -> bool:
        return time.perf_counter() - begin < seconds

    with Memory() as memory:
        try:
            model.learn(10**9, callback=[*callbacks, ConvertCallback(stop)], log_interval=10)
        finally:
            callbacks[0].stop()
    wall = time.perf_counter() - begin
    out.send(
        {
            "rows": model.replay_buffer.rows,
            "buffer_bytes": buffer_bytes,
            "wall_seconds": wall,
            "decisions": model.num_timesteps,
            "first_checkpoint_seconds": saves[0][0],
            "later_checkpoint_seconds": [s for s, *_ in saves[1:]],
            "share": sum(s for s, *_ in saves) / wall,
            "share_after_the_first": sum(s for s, *_ in saves[1:]) / wall,
            "peak_over_buffer": (memory.peak - base) / buffer_bytes,
            "disk_bytes": sum(file.stat().st_size for file in (folder / "state").rglob("*") if file.is_file()),
        }
    )


def restore(folder: Path, rows: int, seconds: float, out: Connection) -> None:
    """Take the run up again; tells what that took."""
    torch.set_num_threads(1)
    model, checkpointing, _ = build(folder, rows, seconds)
    begin = time.perf_counter()
    with Memory() as memory:
        found = checkpointing.checkpoints.newest(print)
        assert found is not None
        checkpointing.init_callback(model)
        checkpointing.restore(found, 0)
    out.send(
        {
            "restore_seconds": time.perf_counter() - begin,
            "restored_rows": model.replay_buffer.rows,
            "restore_peak_bytes": memory.peak - memory.before,
        }
    )


def main() -> None:
    """Print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=150.0)
    args = parser.parse_args()
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for work in (train, restore):
            mine, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=work, args=(Path(folder) / "run", args.rows, args.seconds, theirs)
            )
            process.start()
            theirs.close()
            numbers |= mine.recv()
            process.join()
    numbers["restore_peak_over_buffer"] = numbers["restore_peak_bytes"] / numbers["buffer_bytes"]
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
