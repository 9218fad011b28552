"""Give an agent's critics the demonstrations that a run was told of."""

from __future__ import annotations

from gymnasium.spaces import Box
from rich.console import Console

from dsrl.algorithms import discount_inside
from dsrl.config import FinetuneConfig
from dsrl.demo_mix import DemoMix
from dsrl.demos import decisions, fill, read_demos, replay_check
from dsrl.env_spec import EnvSpec
from dsrl.noise_aliased import NoiseAliasedSAC
from dsrl.policy import FrozenPolicy
from dsrl.pretrained.hub import local_data


def show_demonstrations(
    config: FinetuneConfig,
    model: NoiseAliasedSAC,
    policy: FrozenPolicy,
    env: EnvSpec,
    action_space: Box,
    console: Console,
) -> None:
    """Give the agent's critics the demonstrations, once their actions have succeeded again.

    Raises:
        DsrlError: when they do not fit the policy or the environment, or fail when they are played back.
    """
    assert config.demos is not None
    data = read_demos(local_data(config.demos), policy, env)
    replay_check(data, env, console=console)
    cut = decisions(data, policy, discount_inside(config), config.reward, action_space=action_space)
    buffer = model.new_buffer(len(cut))
    fill(buffer, cut)
    budget = config.total_env_steps // policy.spec.n_action_steps
    model.demos = DemoMix(buffer, config.demo_mix, config.demo_share, budget)
    console.print(f"{len(data)} demonstrations, {len(cut)} decisions, for the critics")
