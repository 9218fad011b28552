"""Film a policy while it is played on given initial states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.evaluate import evaluate
from dsrl.frames import Film, film_strip, find_encoder, write_mp4
from dsrl.policy import FrozenPolicy
from dsrl.safety import SafetyConfig
from dsrl.wrappers import make_chunk_env, make_env, resolve_env_spec
from dsrl.wrappers.rendering import advice, choose_backend

MOST_FPS = 30.0
"""of a simulator that is faster, every second or third env step is drawn: drawing takes longer than stepping"""


class Camera:
    """Films episodes of one environment; it is tried out before anything is played.

    Used with ``with``. ``MUJOCO_GL`` is chosen here, where it is not set, so this comes before any simulator.

    Raises:
        DsrlError: when the environment cannot be drawn, naming the package that is missing.
    """

    def __init__(
        self,
        env: EnvSpec | str,
        policy: FrozenPolicy,
        *,
        reward: str = "auto",
        safety: SafetyConfig | None = None,
    ):
        choose_backend()
        self.policy = policy
        spec = resolve_env_spec(env, policy.spec)
        with _explained(spec.id):
            self._recorder = _Recorder(make_env(spec, reward=reward, render_mode="rgb_array"))
            self._envs = DummyVecEnv([lambda: make_chunk_env(lambda: self._recorder, policy.spec, safety=safety)])
            self._envs.reset()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self._envs.close()

    def film(
        self, policy: FrozenPolicy, name: str, *, episodes: int, seed: int, noise_scale: float = 1.0
    ) -> list[Film]:
        """Play the initial states ``seed, seed + 1, ...``, with the noise of :func:`~dsrl.evaluate.evaluate`.

        Args:
            policy: the one that the camera was made for, or it steered.
            name: shown above the pictures.
            episodes: number of initial states.
            seed: of the first one.
            noise_scale: as in ``evaluate``.
        """
        self._recorder.episodes.clear()
        settings: dict[str, Any] = {"episodes": episodes, "seed": seed, "name": name, "noise_scale": noise_scale}
        result = evaluate(policy, self._envs, **settings)
        # the environment idles after the last seed, so nothing else was begun
        played = [episode for episode in self._recorder.episodes if len(episode) > 1][:episodes]
        fps = self._recorder.fps
        return [
            Film(name, seed + i, tuple(f for f, _ in episode), tuple(s for _, s in episode), bool(won), fps)
            for i, (episode, won) in enumerate(zip(played, result.success, strict=True))
        ]


def save_films(target: Path, films: dict[str, list[Film]]) -> list[Path]:
    """Write films of the same initial states: into one file side by side, or into a folder, each on its own.

    Args:
        target: ``NAME.mp4``, ``NAME.png`` (a film strip), or a folder.
        films: by policy, those of the same initial state at the same place.

    Returns:
        the files.
    """
    episodes = list(zip(*films.values(), strict=True))
    if target.suffix == ".mp4":
        write_mp4(target, episodes)
        return [target]
    if target.suffix == ".png":
        film_strip(target, episodes)
        return [target]
    written = [target / "strip.png"]
    film_strip(written[0], episodes)
    for film in (film for episode in episodes for film in episode):
        written.append(target / f"{film.policy}-{film.seed}.mp4")
        write_mp4(written[-1], [[film]])
    return written


def check_target(target: Path) -> None:
    """Whether films can be written there; nothing is.

    Raises:
        DsrlError: for a file of another kind, or without what encodes it.
    """
    if target.suffix not in ("", ".mp4", ".png") and not target.is_dir():
        raise DsrlError(f"--video {target}: expected a name that ends in .mp4 or .png (a film strip), or a folder")
    taken = target.is_dir() if target.suffix in (".mp4", ".png") else target.is_file()
    if taken:
        raise DsrlError(f"--video {target}: there is a {'folder' if target.is_dir() else 'file'} of that name")
    if target.suffix != ".png":
        find_encoder()


class _Recorder(gymnasium.Wrapper):
    """Keeps what is seen at the start of every episode, after every n-th env step, and at its end."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        own = float(env.metadata.get("render_fps") or MOST_FPS)
        self.every = max(1, round(own / MOST_FPS))
        self.fps = own / self.every
        self.episodes: list[list[tuple[np.ndarray, int]]] = []
        self._steps = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin another film."""
        result = self.env.reset(**kwargs)
        self._steps = 0
        self.episodes.append([(self._frame(), 0)])
        return result

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step and draw."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        if terminated or truncated or self._steps % self.every == 0:
            self.episodes[-1].append((self._frame(), self._steps))
        return obs, reward, terminated, truncated, info

    def _frame(self) -> np.ndarray:
        frame: Any = self.env.render()
        if frame is None or np.ndim(frame) != 3:
            raise RuntimeError(f"render() gives {type(frame).__name__}, expected pixels of the shape (H, W, 3)")
        return np.array(frame)  # some simulators draw into the same memory


@contextmanager
def _explained(env: str) -> Iterator[None]:
    try:
        yield
    except DsrlError:
        raise
    except Exception as error:  # every simulator and driver fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DsrlError(f"--video: {env} cannot be drawn here: {reason:.200}. {advice()}") from error
