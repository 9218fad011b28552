"""Small agents on the toy task, for the tests of noise-aliased SAC."""

from dsrl.algorithms import ALGORITHMS, steering_facts
from dsrl.config import FinetuneConfig
from dsrl.noise import NoiseSpace
from dsrl.noise_aliased import NoiseAliasedSAC
from dsrl.pretrained.toy import ToyPolicy
from dsrl.wrappers import SteeredVecEnv, make_vec_env

POLICY = ToyPolicy()
COND, NOISE = 4, 8


def toy_envs(n_envs: int = 2, bound: float = 1.5, policy=POLICY, **layout) -> SteeredVecEnv:
    space = NoiseSpace(policy.spec.noise_shape, bound, **layout)
    return SteeredVecEnv(make_vec_env(policy.spec.env, policy.spec, n_envs, seed=0), policy, space)


def agent(bound: float = 10.0, envs=None, **changes) -> NoiseAliasedSAC:
    """Small, warmed up after 40 decisions, one gradient step per decision."""
    networks = {"net_arch": [16, 16], "actor": changes.pop("actor", "gaussian"), "n_critics": 3}
    networks |= changes.pop("policy_kwargs", {})
    settings = {"learning_starts": 40, "batch_size": 16, "gradient_steps": 1, "fit_updates": 5, "fit_actor_updates": 5}
    return NoiseAliasedSAC(
        "MlpPolicy",
        envs or toy_envs(bound=bound),
        policy_kwargs=networks,
        seed=0,
        device="cpu",
        **{**settings, **changes},
    )


def build(config: FinetuneConfig, n_envs: int = 2, **layout) -> NoiseAliasedSAC:
    bound = config.bound or ALGORITHMS["na"].bound(config)
    envs = toy_envs(n_envs, bound, **layout)
    model = ALGORITHMS["na"].build(config, envs, POLICY.spec.n_action_steps, seed=0, device="cpu")
    model.steering = steering_facts(config, model, bound, POLICY, envs.steering.noise_space.layout())
    return model
