"""A few frames of one episode out of an evaluation, for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.noise import episode_generators
from dsrl.policy import FrozenPolicy
from dsrl.safety import SafetyConfig
from dsrl.wrappers import make_chunk_env, make_env
from dsrl.wrappers.rendering import advice, choose_backend

_RENDERS = 24
"""of an episode, of which some are kept"""


@dataclass
class Strip:
    """Frames of one episode, evenly spread, the first and the last among them."""

    success: bool
    steps: list[int] = field(default_factory=list)
    """env steps of the frames"""
    frames: list[np.ndarray] = field(default_factory=list)
    """``(H, W, 3)`` uint8"""


class _Frames(gymnasium.Wrapper):
    """Renders now and then."""

    def __init__(self, env: gymnasium.Env, every: int):
        super().__init__(env)
        self.every, self.step_count = every, 0
        self.seen: dict[int, np.ndarray] = {}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self.step_count, self.seen = 0, {}
        self._look()
        return obs, info

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self.step_count += 1
        if self.step_count % self.every == 0 or result[2] or result[3]:
            self._look()
        return result

    def _look(self) -> None:
        frame: Any = self.env.render()
        if frame is None:
            raise DsrlError("this environment has no picture to show (render() gives None)")
        self.seen[self.step_count] = np.asarray(frame, np.uint8)


class Filmer:
    """One environment that is rendered; close it.

    Args:
        env: where the episodes are played, or what makes it.
        policy: whose chunks and histories it has.
        reward: convention.
        safety: limits that stand before the simulator.

    Raises:
        DsrlError: when it cannot be rendered here, saying why.
    """

    def __init__(
        self,
        env: EnvSpec | Callable[[], gymnasium.Env],
        policy: FrozenPolicy,
        reward: str = "auto",
        safety: SafetyConfig | None = None,
    ):
        if not callable(env):
            choose_backend()
        try:
            single = env() if callable(env) else make_env(env, reward=reward, render_mode="rgb_array")
            limit = None if callable(env) else env.max_episode_steps
            self.frames = _Frames(single, max(1, (limit or 200) // _RENDERS))
            self.env = make_chunk_env(lambda: self.frames, policy.spec, safety=safety)
            self.env.reset(seed=0)
        except DsrlError:
            raise
        except Exception as error:  # back-ends of OpenGL fail in their own ways
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DsrlError(f"the environment cannot be drawn here: {reason:.200}. {advice()}") from error

    @torch.no_grad()
    def play(
        self, policy: FrozenPolicy, first_seed: int, state: int, *, repeats: int = 1, noise_scale: float, count: int = 6
    ) -> Strip:
        """Initial state number ``state`` of an evaluation from ``first_seed`` on, with the noise that it had there.

        Args:
            policy: base or steered.
            first_seed: of the evaluation.
            state: counted from 0.
            repeats: noises per state in that evaluation; its first is played.
            noise_scale: 1 is the policy itself.
            count: frames that are kept.
        """
        (generator,) = episode_generators(first_seed, [state * repeats])
        obs, _ = self.env.reset(seed=first_seed + state)
        done, info = False, {}
        while not done:
            cond = policy.encode(torch.as_tensor(obs[None], dtype=torch.float32, device=policy.device))
            noise = torch.zeros(1, *policy.spec.noise_shape)
            if noise_scale:
                noise = torch.randn(policy.spec.noise_shape, generator=generator)[None] * noise_scale
            chunk = policy.decode(cond, noise.to(policy.device))[0].cpu().numpy()
            obs, _, terminated, truncated, info = self.env.step(chunk)
            done = terminated or truncated
        seen = self.frames.seen
        steps = sorted(seen)
        kept = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, count).round().astype(int))]
        return Strip(bool(info.get("is_success", False)), kept, [seen[step] for step in kept])

    def close(self) -> None:
        """Close the simulator."""
        self.env.close()


def data_uri(frame: np.ndarray, width: int = 160) -> str:
    """A frame as a JPEG that stands in the page itself."""
    from PIL import Image  # matplotlib brings it

    image = Image.fromarray(frame)
    image = image.resize((width, max(1, round(width * image.height / image.width))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
