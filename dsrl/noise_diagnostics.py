"""What the agent does with the noise, and how far its critics can be trusted, logged beside its losses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from dsrl.actor import NoiseActor

_STATES, _NOISES = 32, 8
_AT_THE_BOUND = 0.98
_QUANTILES = 33


class NoiseDiagnostics(BaseCallback):
    """Looks at the last observations some fifty times in a run, when an episode ends.

    ====================  ============================================================================================
    ``noise/rms``         root mean square of the noise that the actor draws; 1 for ``N(0, I)``
    ``noise/saturated``   share of its numbers within 2 % of the bound
    ``noise/kl``          ``KL(pi(w|s) || N(0, I))`` in nats, of the Gaussian with the actor's moments, mean over states
    ``critic/std``        standard deviation over the critics of the value of an executed chunk (SAC: of a noise)
    ``critic/gap``        mean ``|Q_W(s, w) - Q_A(s, pi_dp(s, w))|`` over prior noises (NA)
    ``critic/agreement``  correlation of the two over eight noises of one state, mean over states (NA)
    ====================  ============================================================================================

    It leaves the generators alone, so that a run is the same with and without it.

    Args:
        budget: env steps of the run.
        env_steps: how many have been taken.
        actor: gives the actor as it is now, where the agent's own is none of ours (stock SAC and PPO).
    """

    def __init__(self, budget: int, env_steps: Callable[[], int], actor: Callable[[], NoiseActor]):
        super().__init__()
        self.env_steps, self.actor = env_steps, actor
        self.interval, self._next = max(1, budget // 50), 0
        self._seen: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=_STATES)

    def state(self) -> dict[str, Any]:
        """What was seen last, and when it looks again."""
        seen = [np.stack(column) for column in zip(*self._seen, strict=True)]
        return {"next": self._next, "seen": seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._next = state["next"]
        self._seen.extend(zip(*state["seen"], strict=True))

    def _on_step(self) -> bool:
        model: Any = self.model
        infos = self.locals["infos"]
        if "chunk" in infos[0]:
            self._seen.extend((obs, info["chunk"]) for obs, info in zip(model._last_obs.copy(), infos, strict=True))
        learned = getattr(model, "_n_updates", 0)
        if learned and self._seen and np.any(self.locals["dones"]) and self.env_steps() >= self._next:
            self._next = self.env_steps() + self.interval
            with torch.random.fork_rng(devices=[]):  # building an actor draws its first weights
                found = self.measure()
            for name, value in found.items():
                self.logger.record(name, value)
        return True

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """All that this agent has."""
        model: Any = self.model
        observed, played = (np.stack(column) for column in zip(*self._seen, strict=True))
        cond = torch.as_tensor(observed, dtype=torch.float32, device=model.device)
        chunks = torch.as_tensor(played, dtype=torch.float32, device=model.device).flatten(1)
        learning = getattr(model.policy, "actor", None)  # PPO has none
        actor = learning if isinstance(learning, NoiseActor) else self.actor().to(model.device)
        found = _of_noise(actor, cond)
        if hasattr(model.policy, "noise_critic"):
            found["critic/std"] = model.policy.critic(cond, chunks).std(dim=0).mean()
            found |= self._distilled(cond)
        elif hasattr(model, "critic"):
            noise = actor(cond, torch.zeros(len(cond), actor.config["action_dim"], device=cond.device))
            found["critic/std"] = torch.stack(model.critic(cond, noise / actor.config["bound"])).std(dim=0).mean()
        return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))

    def _distilled(self, cond: Tensor) -> dict[str, Tensor]:
        """The critic on noise against the critic on chunks that it was distilled from."""
        model: Any = self.model
        steering = model._steering()
        space, generator = steering.noise_space, torch.Generator().manual_seed(self.env_steps())
        rows = len(cond) * _NOISES
        noise = torch.randn(rows, space.size, generator=generator).clamp(-space.bound, space.bound).to(cond)
        rest = torch.randn(rows, space.rest_size, generator=generator).to(cond)
        chunks = steering.policy.decode(cond.repeat_interleave(_NOISES, dim=0), space.to_noise(noise, rest))
        chunks = chunks.clamp(steering._low, steering._high).flatten(1).unflatten(0, (-1, _NOISES))
        q_a = model.policy.critic(cond, chunks).mean(dim=0)
        q_w = model.policy.noise_critic(cond, noise.unflatten(0, (-1, _NOISES))).mean(dim=0)
        a, w = (q - q.mean(dim=1, keepdim=True) for q in (q_a, q_w))
        scale = (a.square().sum(dim=1) * w.square().sum(dim=1)).sqrt()
        return {
            "critic/gap": (q_w - q_a).abs().mean(),
            "critic/agreement": ((a * w).sum(dim=1) / scale.clamp(min=1e-12)).mean(),
        }


def _of_noise(actor: NoiseActor, cond: Tensor) -> dict[str, Tensor]:
    """Every number of the noise depends on its own number of eps alone, so quantiles give its moments."""
    quantiles = (torch.arange(_QUANTILES, device=cond.device) + 0.5) / _QUANTILES
    z = torch.special.ndtri(quantiles)
    z = z / z.square().mean().sqrt()
    eps = z[:, None, None].expand(-1, len(cond), actor.config["action_dim"])
    noise = torch.stack([actor(cond, each) for each in eps])
    mean, variance = noise.mean(dim=0), noise.var(dim=0, unbiased=False).clamp(min=1e-12)
    kl = 0.5 * (mean.square() + variance - 1 - variance.log()).sum(dim=-1)
    return {
        "noise/rms": noise.square().mean().sqrt(),
        "noise/saturated": (noise.abs() >= _AT_THE_BOUND * actor.config["bound"]).float().mean(),
        "noise/kl": kl.mean(),
    }
