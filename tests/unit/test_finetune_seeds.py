"""Initial states: those of training, curve, probe and final comparison never meet, within a run and between runs."""

from itertools import pairwise

from dsrl import finetune
from dsrl.config import FinetuneConfig
from dsrl.noise import NoiseSpace
from dsrl.pretrained.toy import ToyPolicy
from dsrl.wrappers import SteeredVecEnv, make_vec_env

KINDS = (finetune._TRAIN, finetune._CURVE, finetune._PROBE, finetune._FINAL)


def test_training_starts_where_its_own_seeds_begin():
    policy = ToyPolicy()
    envs = SteeredVecEnv(make_vec_env(policy.spec.env, policy.spec, 2), policy, NoiseSpace(policy.spec.noise_shape))
    finetune._build(FinetuneConfig(n_envs=2, seed=3, hidden_dims=(8,)), envs)
    assert envs.venv._seeds == [finetune._TRAIN + 30_000, finetune._TRAIN + 30_001]


def test_no_two_runs_or_purposes_share_a_start():
    first = sorted(finetune.first_seed(kind, FinetuneConfig(seed=seed)) for kind in KINDS for seed in (0, 1, 9_999))
    assert min(b - a for a, b in pairwise(first)) >= 10_000
    assert first[-1] + 10_000 < 2**32
