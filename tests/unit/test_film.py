"""Films: what is seen is what was scored, and files hold what was seen."""

import sys

import numpy as np
import pytest
from PIL import Image

from dsrl import commands, video
from dsrl.errors import DsrlError
from dsrl.evaluate import evaluate_in_env
from dsrl.evaluate_config import EvaluateConfig
from dsrl.frames import Film, film_strip, write_mp4
from dsrl.pretrained import save_policy
from dsrl.video import Camera, check_target, save_films
from dsrl.wrappers import rendering
from dsrl.wrappers.rendering import Backend, advice, candidates, choose_backend


@pytest.fixture
def no_probe(monkeypatch):
    """Nothing is drawn by MuJoCo here."""
    monkeypatch.setattr(video, "choose_backend", lambda: None)
    monkeypatch.setattr("dsrl.wrappers.make.choose_backend", lambda: None)


def made_up(policy, length, success, shade, seed=3):
    frames = tuple(np.full((20, 30, 3), shade + i, np.uint8) for i in range(length))
    return Film(policy, seed, frames, tuple(range(length)), success, 10.0)


def test_the_filmed_episodes_are_the_scored_ones(toy_policy, no_probe):
    scored = evaluate_in_env(toy_policy, episodes=4, seed=11, n_envs=2)
    with Camera(toy_policy.spec.env, toy_policy) as camera:
        films = camera.film(toy_policy, "base", episodes=4, seed=11)
        again = camera.film(toy_policy, "base", episodes=2, seed=11)
    assert [film.success for film in films] == scored.success.tolist() and 0 < scored.success.sum() < 4
    assert [film.steps for film in films] == [tuple(range(n + 1)) for n in scored.lengths]  # every env step a frame
    assert [film.seed for film in films] == [11, 12, 13, 14]
    for one, other in zip(films, again, strict=False):
        np.testing.assert_array_equal(one.frames, other.frames)


def test_a_fast_simulator_is_drawn_less_often(toy_policy, no_probe, monkeypatch):
    monkeypatch.setattr("dsrl.wrappers.toy.PointReach.metadata", {"render_modes": ["rgb_array"], "render_fps": 80})
    with Camera(toy_policy.spec.env, toy_policy) as camera:
        (film,) = camera.film(toy_policy, "base", episodes=1, seed=11)
    assert film.fps <= video.MOST_FPS and film.steps[:3] == (0, 3, 6) and len(film.frames) == len(film.steps)
    assert film.steps[-1] == evaluate_in_env(toy_policy, episodes=1, seed=11).lengths[0]  # the end is always seen


def test_a_strip_runs_from_the_first_frame_to_the_last(tmp_path):
    films = [[made_up("base", 30, False, 100), made_up("steered", 3, True, 200)]]
    film_strip(tmp_path / "new" / "strip.png", films, columns=4)
    picture = np.asarray(Image.open(tmp_path / "new" / "strip.png"))
    row = picture.shape[0] // 2  # a bar of 24 above 128 pixels of pictures, twice
    shades = [int(picture[24 + 64, 65 + 130 * i, 0]) for i in range(4)]
    assert shades == [100, 110, 119, 129]
    assert [int(picture[row + 24 + 64, 65 + 130 * i, 0]) for i in range(4)] == [200, 201, 202, 255]


def test_an_mp4_shows_both_until_the_longer_one_is_over(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs the [video] extra")
    write_mp4(tmp_path / "both.mp4", [[made_up("base", 12, False, 100), made_up("steered", 3, True, 200)]])
    reader = ffmpeg.read_frames(str(tmp_path / "both.mp4"))
    facts = next(reader)
    width, height = facts["size"]
    frames = [np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader]
    assert facts["codec"] == "h264" and facts["fps"] == 10 and len(frames) == 12 + 8  # the end stays for 0.8 s
    middle = [(int(f[150, 100, 0]), int(f[150, width - 100, 0])) for f in frames]
    assert middle[0] == pytest.approx((100, 200), abs=3) and middle[-1] == pytest.approx((111, 202), abs=3)


def test_a_folder_gets_a_file_for_every_episode(toy_policy, tmp_path, no_probe):
    pytest.importorskip("imageio_ffmpeg", reason="needs the [video] extra")
    films = {"base": [made_up("base", 3, False, 9, seed) for seed in (3, 4)]}
    written = save_films(tmp_path / "films", films)
    assert sorted(path.name for path in written) == ["base-3.mp4", "base-4.mp4", "strip.png"]
    assert sorted(tmp_path.joinpath("films").iterdir()) == sorted(written)


def test_evaluate_films_without_the_extra_where_no_mp4_is_asked_for(toy_policy, tmp_path, no_probe, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    path = save_policy(toy_policy, tmp_path / "toy.pt")
    commands.evaluate(EvaluateConfig(path, episodes=2, video=tmp_path / "strip.png", device="cpu"))
    assert Image.open(tmp_path / "strip.png").format == "PNG"
    with pytest.raises(DsrlError, match=r"dsrl-steering\[video\].*NAME.png"):
        check_target(tmp_path / "film.mp4")


@pytest.mark.parametrize(
    ("name", "message"), [("film.gif", r"film.gif: expected a name that ends in .mp4 or .png"), ("x.png", "a folder")]
)
def test_a_target_that_cannot_be_is_refused_before_anything_is_played(name, message, tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(DsrlError, match=message):
        check_target(tmp_path / name)


def test_what_cannot_be_drawn_names_the_package(toy_policy, no_probe, monkeypatch):
    broken = {"egl": Backend("egl", False, "no libEGL.so"), "osmesa": Backend("osmesa", False, "no libOSMesa.so")}
    monkeypatch.setattr(rendering, "try_backend", broken.get)
    monkeypatch.setattr(rendering, "find_spec", lambda name: name)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("dsrl.wrappers.toy.PointReach.render", lambda self: 1 / 0)
    with pytest.raises(DsrlError, match=r"--video: dsrl/PointReach-v0 cannot be.*libEGL.*apt-get install libegl1"):
        Camera(toy_policy.spec.env, toy_policy)
    assert choose_backend() is None and "MUJOCO_GL" not in rendering.os.environ


def test_the_first_backend_that_draws_is_taken_and_the_users_is_kept(monkeypatch):
    found = {"egl": Backend("egl", False, "no device"), "osmesa": Backend("osmesa", True)}
    monkeypatch.setattr(rendering, "try_backend", found.get)
    monkeypatch.setattr(rendering, "find_spec", lambda name: name)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert choose_backend() == "egl" and candidates() == ("egl",) and "no device" in advice()
    monkeypatch.setenv("MUJOCO_GL", "")
    assert choose_backend() == "osmesa" == rendering.os.environ["MUJOCO_GL"]


def test_a_backend_that_hangs_or_does_not_exist_is_no_backend():
    assert not rendering.try_backend("nonsense", timeout=30).works
    assert rendering.try_backend("egl", timeout=0.01) == Backend("egl", False, "no picture within 0.01 s")
