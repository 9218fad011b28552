"""robosuite environments: exact seeds above all."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, SimulatorFailed
from dsrl.policy import PolicySpec
from dsrl.wrappers import make_vec_env
from dsrl.wrappers.experts import make_expert
from dsrl.wrappers.make import make_env, resolve_env_spec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.robosuite,
    pytest.mark.skipif(find_spec("robosuite") is None, reason="needs the [robosuite] extra"),
]

LIFT = EnvSpec("robosuite", "Lift", options={"physics_timestep": 0.005})
STEPS = 60


def rollout(env, seed):
    obs, _ = env.reset(seed=seed)
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, env.action_space.shape[0])).astype(np.float32)
    return np.stack([obs, *(env.unwrapped.step(action)[0] for action in actions)])


def digest_of_a_rollout(seed):
    env = make_env(LIFT)
    return hashlib.sha256(rollout(env, seed).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def lift():
    env = make_env(LIFT, reward="step-cost")
    yield env
    env.close()


@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan", "NutAssemblySquare"])
def test_copies_and_repeats_play_the_same_episode(task):
    spec = replace(LIFT, name=task)
    first, second = make_env(spec), make_env(spec)
    once = rollout(first, seed=7)
    rollout(first, seed=8)
    first.reset()
    assert np.array_equal(rollout(first, seed=7), once)  # whatever ran before
    second.reset(seed=1)
    assert np.array_equal(rollout(second, seed=7), once)  # in another copy


def test_another_process_plays_the_same_episode():
    code = "from test_robosuite import digest_of_a_rollout; print(digest_of_a_rollout(7))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=__file__.rpartition("/")[0], capture_output=True, text=True, check=True
    )
    assert out.stdout.split()[-1] == digest_of_a_rollout(7)
    assert "robosuite" not in out.stderr  # its start-up advice is silenced


def test_distinct_seeds_are_distinct_starts(lift):
    assert len({lift.reset(seed=seed)[0].tobytes() for seed in range(50)}) == 50


def test_resets_without_a_seed_never_repeat(lift):
    other = make_env(LIFT)
    np.random.seed(0)
    lift.reset(seed=0), other.reset(seed=1)
    starts = [lift.reset()[0].tobytes() for _ in range(10)]
    np.random.seed(0)  # numpy's global generator has no say
    starts += [other.reset()[0].tobytes() for _ in range(10)]
    assert len(set(starts)) == 20
    lift.reset(seed=0)
    assert [lift.reset()[0].tobytes() for _ in range(10)] == starts[:10]


def test_a_fresh_copy_without_a_seed_starts_anywhere():
    assert not np.array_equal(make_env(LIFT).reset()[0], make_env(LIFT).reset()[0])


def test_observations_follow_robomimics_order(lift):
    shapes = lift.unwrapped.obs_shapes
    assert list(shapes.items()) == [
        ("robot0_eef_pos", (3,)),
        ("robot0_eef_quat", (4,)),
        ("robot0_gripper_qpos", (2,)),
        ("object", (10,)),
    ]
    obs, _ = lift.reset(seed=0)
    assert obs.dtype == np.float32 and lift.observation_space.contains(obs)
    simulator = lift.unwrapped.simulator
    site = simulator.sim.data.site_xpos[simulator.robots[0].eef_site_id["right"]]
    np.testing.assert_allclose(obs[:3], site, atol=1e-6)
    np.testing.assert_allclose(obs[9:12], simulator.sim.data.body_xpos[simulator.cube_body_id], atol=1e-6)


@pytest.mark.parametrize("task", ["PickPlaceCan", "NutAssemblySquare"])
def test_the_larger_tasks_have_23_numbers(task):
    assert make_env(f"robosuite/{task}").observation_space.shape == (23,)


def test_keys_are_concatenated_as_asked():
    env = make_env(replace(LIFT, obs_keys=("object", "robot0_eef_pos")))
    assert env.unwrapped.obs_shapes == {"object": (10,), "robot0_eef_pos": (3,)}


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(DsrlError, match="Did you mean 'robot0_eef_pos'"):
        make_env(replace(LIFT, obs_keys=("robot0_eef_poss",)))


def test_the_time_limit_is_a_truncation():
    env = make_env(replace(LIFT, max_episode_steps=3), reward="step-cost")
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[1:4] for _ in range(3)]
    assert ends == [(-1.0, False, False), (-1.0, False, False), (-1.0, False, True)]


def play_expert(env, offset=(0.0, 0.0, 0.0), seed=0, max_steps=80):
    expert = make_expert(env.unwrapped.env_spec, env)
    env.reset(seed=seed)
    expert.reset(np.random.default_rng(seed), np.array(offset))
    steps = []
    for _ in range(max_steps):
        _, reward, terminated, truncated, info = env.step(expert.act(env))
        steps.append((reward, terminated, truncated, info["success"]))
        if terminated or truncated:
            break
    return steps


def test_success_terminates_with_one():
    steps = play_expert(make_env(LIFT))
    assert steps[-1] == (1.0, True, False, True)
    assert all(step == (0.0, False, False, False) for step in steps[:-1])


def test_step_cost_runs_on_to_the_time_limit(lift):
    steps = play_expert(lift)
    assert len(steps) == 80 and steps[-1][2]
    assert all(reward == (0.0 if success else -1.0) for reward, _, _, success in steps)
    assert any(success for *_, success in steps)


def test_a_displaced_operator_misses_the_cube(lift):
    assert not any(success for *_, success in play_expert(lift, offset=(0.04, 0.0, 0.0)))


@pytest.mark.parametrize("task", ["PickPlaceCan", "NutAssemblySquare"])
def test_the_operators_of_the_larger_tasks_succeed_unless_displaced(task):
    env = make_env(replace(LIFT, name=task))
    assert all(play_expert(env, seed=seed, max_steps=200)[-1][3] for seed in range(3))
    assert not any(success for *_, success in play_expert(env, offset=(0.045, 0.0, 0.0), max_steps=200))


def test_dense_reward_is_shaped():
    env = make_env(LIFT, reward="dense")
    env.reset(seed=0)
    assert 0 < env.step(np.zeros(7, np.float32))[1] < 1


def test_the_physics_timestep_stays_with_its_environment(lift):
    import robosuite.macros as macros

    lift.reset()
    assert macros.SIMULATION_TIMESTEP == 0.002
    later = make_env("robosuite/Lift").unwrapped.simulator
    assert (later.model_timestep, later.sim.model.opt.timestep) == (0.002, 0.002)
    ours = lift.unwrapped.simulator
    assert (ours.model_timestep, ours.sim.model.opt.timestep) == (0.005, 0.005)


def test_a_timestep_that_does_not_divide_the_control_step_is_refused():
    with pytest.raises(DsrlError, match="does not divide"):
        resolve_env_spec(replace(LIFT, options={"physics_timestep": 0.003}))


def test_the_spec_survives_a_robomimic_file(lift):
    spec = lift.unwrapped.env_spec
    assert EnvSpec.from_robomimic(spec.to_robomimic()) == spec
    assert resolve_env_spec(spec) == spec


def test_a_controller_of_an_old_file_still_moves_the_arm():
    config = {
        "type": "OSC_POSE", "input_max": 1, "input_min": -1,
        "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
        "kp": 150, "damping": 1, "impedance_mode": "fixed", "kp_limits": [0, 300], "damping_limits": [0, 10],
        "position_limits": None, "orientation_limits": None, "uncouple_pos_ori": True, "control_delta": True,
        "interpolation": None, "ramp_ratio": 0.2,
    }  # fmt: skip
    kwargs = {"robots": "Panda", "controller_configs": config, "camera_heights": 84, "use_camera_obs": True}
    assert play_expert(make_env(replace(LIFT, kwargs=kwargs)))[-1][3]


def test_unknown_tasks_name_the_nearest():
    with pytest.raises(DsrlError, match="Did you mean 'Lift'"):
        resolve_env_spec("robosuite/lifft")
    with pytest.raises(DsrlError, match="Did you mean 'robosuite/Lift'"):
        resolve_env_spec("robosuit/Lift")


def test_a_broken_action_is_a_failed_run(lift):
    lift.reset(seed=0)
    with pytest.raises(SimulatorFailed, match=r"robosuite/Lift was given the action .* at step 1"):
        lift.step(np.full(7, np.nan))


def test_a_rendering_copy_plays_the_same_episode():
    env, silent = make_env(LIFT, render_mode="rgb_array"), make_env(LIFT)
    try:
        played = rollout(env, seed=7)
        frame = env.render()
    except (RuntimeError, ImportError, AttributeError) as error:
        pytest.skip(f"no OpenGL here: {error}")
    finally:
        env.close()
    assert np.array_equal(played, rollout(silent, seed=7))
    assert frame.dtype == np.uint8 and frame.shape[2] == 3 and frame.std() > 0


def test_a_policy_that_reads_the_object_first_gets_it_first():
    """Diffusion Policy's data has another order than robomimic's, and the same length."""
    ours = make_vec_env(LIFT, PolicySpec({"state": (19,)}, 7, 4, 4))
    order = {"object": (10,), "robot0_eef_pos": (3,), "robot0_eef_quat": (4,), "robot0_gripper_qpos": (2,)}
    theirs = make_vec_env(replace(LIFT, obs_keys=()), PolicySpec(order, 7, 4, 4))
    try:
        for envs in (ours, theirs):
            envs.seed(3)
        expected, got = ours.reset()[0, 0], theirs.reset()[0, 0]
        np.testing.assert_array_equal(got, np.concatenate([expected[9:], expected[:9]]))
    finally:
        ours.close()
        theirs.close()


def test_an_observation_that_it_does_not_have_is_named_from_its_process():
    with pytest.raises(DsrlError, match=r"no observation 'robot0_eef_po'. Did you mean 'robot0_eef_pos'\?"):
        make_vec_env(LIFT, PolicySpec({"robot0_eef_po": (3,), "object": (10,)}, 7, 4, 4), n_envs=2)


def test_arguments_that_it_cannot_read_are_shown():
    with pytest.raises(DsrlError, match=r"does not accept the arguments of robosuite/Lift: KeyError.*'kp': 150"):
        make_env(replace(LIFT, kwargs={"controller_configs": {"type": "OSC_POSE", "kp": 150}}))
