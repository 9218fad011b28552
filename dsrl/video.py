"""Film a policy: one mp4 per episode, every env step a frame."""

from __future__ import annotations

from pathlib import Path

from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.vec_env import DummyVecEnv

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.evaluate import Evaluation, evaluate
from dsrl.policy import FrozenPolicy
from dsrl.wrappers import make_chunk_env, make_env


def film(
    policy: FrozenPolicy,
    env: EnvSpec | str,
    folder: Path,
    *,
    name: str,
    episodes: int,
    seed: int,
    noise_scale: float = 1.0,
    reward: str = "auto",
) -> Evaluation:
    """Play the initial states ``seed, seed + 1, ...`` and write ``<name>/<name>-episode-<i>.mp4``.

    Raises:
        DsrlError: when the [video] extra or a GL back-end is missing, saying which.
    """
    try:
        import moviepy  # noqa: F401 - gymnasium's RecordVideo needs it
    except ImportError as missing:
        raise DsrlError("videos need the extra: pip install 'dsrl-steering[video]'") from missing
    try:
        # below the chunks, so that every env step is a frame
        filmed = RecordVideo(
            make_env(env, reward=reward, render_mode="rgb_array"),
            str(folder / name),
            episode_trigger=lambda index: index < episodes,
            name_prefix=name,
            disable_logger=True,
        )
        envs = DummyVecEnv([lambda: make_chunk_env(lambda: filmed, policy.spec)])
    except (ImportError, AttributeError, RuntimeError) as error:
        raise DsrlError(
            f"the simulator cannot render here ({error}); install libegl1 or libosmesa6 and set MUJOCO_GL=egl or osmesa"
        ) from error
    try:
        return evaluate(policy, envs, episodes=episodes, seed=seed, name=name, noise_scale=noise_scale)
    finally:
        envs.close()
