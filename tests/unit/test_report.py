"""The page about runs: its numbers are those of the files, it needs nothing else, and it says what cannot be said."""

import csv
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from report_runs import make_run

from dsrl.errors import DsrlError
from dsrl.evaluate import evaluate, evaluation_envs
from dsrl.film_strip import Filmer, data_uri
from dsrl.pretrained.toy import ToyPolicy
from dsrl.report import ReportConfig, build, report
from dsrl.report_data import group, read_runs
from dsrl.report_plots import ticks
from dsrl.report_sections import command, verdicts
from dsrl.start_space import telling_coordinates, worst_quarter
from dsrl.wrappers import resolve_env_spec
from dsrl.wrappers.toy import PointReach


def verdict(task):
    """All that is said of a task, and the first judgement."""
    found = verdicts(task)
    return " ".join(words for words, _ in found), found[0][1]


VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close, and collects what the tests ask for."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.wrong, self.addresses, self.tags = [], [], [], set()
        self.tables: dict[str, list[dict[str, tuple[str, str]]]] = {}
        self.words = ""
        self._table = self._cell = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.addresses += [found[name] for name in ("src", "href", "srcset", "action", "data") if name in found]
        if tag == "table":
            self._table = found.get("data-run")
            if self._table is not None:
                self.tables[self._table] = []
        if tag == "tr" and self._table is not None:
            self.tables[self._table].append({})
        self._cell = (found["data-name"], found["data-value"]) if "data-name" in found else None
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)  # those of SVG

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)
        self._cell = None

    def handle_data(self, data):
        self.words += data
        if self._cell is not None:
            name, value = self._cell
            self.tables[self._table][-1][name] = (value, data)


def page_of(*paths, **settings) -> Page:
    text = build(read_runs(paths), ReportConfig(tuple(paths), strips=0, **settings))
    found = Page(text)
    assert not found.wrong and not found.open, "tags are balanced"
    assert found.addresses == ["data:,"] and not {"script", "iframe", "object"} & found.tags
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text and "url(" not in text
    return found


def test_the_numbers_of_the_page_are_those_of_the_csv(tmp_path):
    paths = [make_run(tmp_path / f"seed{seed}", seed) for seed in range(2)]
    found = page_of(*paths)
    for path in paths:
        with (path / "evaluations.csv").open() as file:
            expected = list(csv.DictReader(file))
        rows = [row for row in found.tables[path.name] if row]
        assert len(rows) == len(expected) == 5
        for row, true in zip(rows, expected, strict=True):
            for name, text in true.items():
                value, shown = row[name]
                assert value == text or float(value) == float(text)
                if name.startswith("success") or name == "held_rate":
                    assert shown == f"{100 * float(text):.1f} %"
                elif name in ("env_steps", "episodes", "eval_env_steps"):
                    assert int(shown.replace(",", "")) == int(text)
                elif name not in ("policy", "deterministic"):
                    assert float(shown) == pytest.approx(float(text), rel=1e-3)


def test_one_run_is_judged_by_its_last_comparison(tmp_path):
    (task,) = group(read_runs([make_run(tmp_path / "run")]))
    words, kind = verdict(task)
    run = task.runs[0]
    gain = run.comparison["paired"]
    assert kind == "good" and words.startswith("NA raised success from ")
    assert f"{100 * gain['difference']:+.0f} points" in words and "after 2,001 env steps" in words
    assert f"from {100 * run.final('base')['success_rate']:.0f} % to {100 * run.final()['success_rate']:.0f} %" in words
    found = page_of(tmp_path / "run")
    assert words in found.words and "return +0.5 (+0.4 to +0.6, p = 0.0001)" in found.words


@pytest.mark.parametrize(
    ("low", "high", "words", "kind"), [(-0.1, 0.2, "no difference", ""), (-0.3, -0.1, "worse", "bad")]
)
def test_no_gain_is_called_none(tmp_path, low, high, words, kind):
    runs = read_runs([make_run(tmp_path / "run")])
    gain = {"difference": (low + high) / 2, "low": low, "high": high, "p": 0.3}
    (task,) = group([replace(runs[0], comparison={**runs[0].comparison, "paired": gain})])
    assert words in verdict(task)[0] and verdict(task)[1] == kind


def test_seeds_of_a_method_are_one_curve_and_methods_are_compared(tmp_path):
    low = {500: 0.2, 1003: 0.2, 1500: 0.3, 2001: 0.4}
    paths = [make_run(tmp_path / f"na{seed}", seed) for seed in range(3)]
    paths += [make_run(tmp_path / f"sac{seed}", seed, algo="sac", finished=False, curve=low) for seed in range(2)]
    (task,) = group(read_runs(paths))
    assert [(method.label, len(method.runs)) for method in task.methods] == [("NA", 3), ("SAC", 2)]
    words, _ = verdict(task)
    assert "NA, 3 runs: success" in words and "interquartile mean" in words and "3 of 3 beat it beyond chance" in words
    assert "A run of NA beats one of SAC with probability 1.00" in words and "2 not finished" in words
    found = page_of(*paths)
    assert "comparison_episodes" not in found.words and "sac0, sac1: the episodes were not kept" in found.words
    assert "NA, IQM of 3 runs" in found.words and "SAC, IQM of 2 runs" in found.words


def test_what_makes_two_methods_is_in_their_names(tmp_path):
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", gamma=0.97)]
    (task,) = group(read_runs(paths))
    assert [method.label for method in task.methods] == ["NA, gamma 0.99", "NA, gamma 0.97"]
    assert "with a run each, that is no evidence" in verdict(task)[0]
    other = make_run(tmp_path / "c", gamma=0.9, bound=2.0, n_envs=8, warmup_episodes=7)
    (task,) = group(read_runs([*paths, other]))
    assert [method.label for method in task.methods] == ["NA as in a", "NA as in b", "NA as in c"]


def test_runs_of_different_tasks_are_not_compared(tmp_path):
    env = replace(resolve_env_spec("dsrl/PointReach-v0"), max_episode_steps=16)
    paths = [make_run(tmp_path / "long"), make_run(tmp_path / "short", env=env)]
    found = page_of(*paths)
    assert "These runs are of different tasks" in found.words and "max_episode_steps is 32 and 16" in found.words
    assert "with probability" not in found.words


def test_an_unfinished_run_of_an_older_version_is_shown_as_far_as_it_goes(tmp_path):
    path = make_run(tmp_path / "run", finished=False)
    lines = [line.rsplit(",", 6)[0] for line in (path / "evaluations.csv").read_text().splitlines()]
    (path / "evaluations.csv").write_text("\n".join(lines) + "\n")
    (path / "metrics.csv").write_text("step,time/env_steps,train/divergence\n1,100,2.5\n2,200,2.0\n")
    found = page_of(path)
    assert "the run is not finished" in found.words and "did not log the noise itself" in found.words
    assert "gave 90 % of 20 episodes" in found.words and "held" not in found.tables["run"][0]


def test_a_run_that_has_only_begun_has_a_page_and_a_long_one_no_endless_one(tmp_path):
    begun = page_of(make_run(tmp_path / "begun", finished=False, curve={}))
    assert "it was never evaluated, the base policy 25 %" in begun.words and "No evaluation of a steered" in begun.words
    path = make_run(tmp_path / "long")
    rows = "".join(f"{i},{10 * i},{1 + i / 5000 if i % 9 else float('nan')}\n" for i in range(5000))
    (path / "metrics.csv").write_text(f"step,time/env_steps,noise/rms\n{rows}")
    assert len(build(read_runs([path]), ReportConfig((path,), strips=0))) < 60_000
    assert "Size of the noise" in page_of(path).words


def test_what_a_file_says_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script><img src="http://x/y">'
    path = make_run(tmp_path / "run")
    config = path / "config.yaml"
    config.write_text(config.read_text() + f"'{evil}': '{evil}'\n")
    text = build(read_runs([path]), ReportConfig((path,), strips=0))
    assert "<script" not in text and "<img" not in text and "&lt;script&gt;" in text


def test_where_the_policy_fails_is_found(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "run")])
    kept = run.episodes
    telling = telling_coordinates(kept.starts, kept.success)
    assert telling.columns[0] == 1 and telling.p < 0.05 and telling.share > 0.5
    low, _, failed, inside, other, outside = worst_quarter(kept.starts[:, 1], kept.success[0])
    assert low > -0.1 and failed == inside == 20 and failed + other == (~kept.success[0]).sum() and outside == 60
    assert "quarters of obs[1] explain most" in page_of(tmp_path / "run").words
    noise = np.random.default_rng(3).uniform(size=(80, 4))
    assert telling_coordinates(noise, [np.random.default_rng(4).uniform(size=80) < 0.5]).p > 0.05
    assert telling_coordinates(kept.starts, [np.ones(80, bool)]) is None
    assert telling_coordinates(np.zeros((80, 4)), [kept.success[0]]) is None


def test_the_command_gives_the_settings_back(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "run", 3, gamma=0.97, hidden_dims=(32, 64), accept_noise_space=True)])
    words = " ".join(command(run.config).replace("\\\n", " ").split())
    assert words == "dsrl finetune --accept-noise-space --gamma 0.97 --hidden-dims 32 64 --seed 3"


class Painted(PointReach):
    """Shows its first coordinate as brightness."""

    def render(self):
        return np.full((8, 12, 3), int(127 * (1 + self._position[0])), np.uint8)


def test_a_film_strip_is_the_episode_of_the_evaluation():
    policy = ToyPolicy()
    with evaluation_envs(policy, n_envs=3) as envs:
        played = evaluate(policy, envs, episodes=6, seed=11, repeats=2)
    filmer = Filmer(lambda: gymnasium.wrappers.TimeLimit(Painted(), 32), policy)
    for state in range(6):
        strip = filmer.play(policy, 11, state, repeats=2, noise_scale=1.0)
        assert (strip.success, strip.steps[-1]) == (played.success[2 * state], played.lengths[2 * state])
        assert strip.steps[0] == 0 and len(strip.frames) == len(strip.steps) <= 6
    assert data_uri(strip.frames[0]).startswith("data:image/jpeg;base64,")


def test_a_report_without_pictures_says_why(tmp_path):
    path = make_run(tmp_path / "run")
    report(ReportConfig((path,)))
    assert "no film strips:" in (path / "report.html").read_text()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda path: (path / "evaluations.csv").write_text("env_steps,policy\nmany,steered\n"),
            r"evaluations\.csv cannot",
        ),
        (lambda path: (path / "comparison.json").write_text("{"), r"comparison\.json cannot be read"),
        (lambda path: (path / "comparison.json").write_text('{"rows": [{"policy": "steered"}]}'), "comparison"),
        (lambda path: (path / "config.yaml").write_text("- 1\n- 2\n"), r"config\.yaml cannot be read"),
        (lambda path: (path / "metrics.csv").write_text("step\nx\n"), r"metrics\.csv cannot be read"),
        (lambda path: (path / "config.yaml").unlink(), "not a whole run folder"),
        (lambda path: (path / "comparison_episodes.npz").write_bytes(b"PK"), "does not hold the episodes"),
    ],
)
def test_a_broken_file_is_named(tmp_path, spoil, words):
    path = make_run(tmp_path / "run")
    spoil(path)
    with pytest.raises(DsrlError, match=words):
        report(ReportConfig((path,), strips=0))
    assert not (path / "report.html").exists()


def test_bad_input(tmp_path):
    path = make_run(tmp_path / "run")
    with pytest.raises(DsrlError, match="at least one run folder"):
        ReportConfig(())
    with pytest.raises(DsrlError, match="carries its own"):
        ReportConfig((Path("hf://org/name"),))
    with pytest.raises(DsrlError, match="given twice"):
        report(ReportConfig((path, path / ".." / "run"), strips=0))
    with pytest.raises(DsrlError, match="is a folder"):
        report(ReportConfig((path,), out=tmp_path, strips=0))
    with pytest.raises(DsrlError, match="there is no run folder"):
        report(ReportConfig((tmp_path / "none",), strips=0))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 8004), (0.0131, 0.0133), (-3.2, 0.5), (0, 1e6)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 7 and min(found) >= low - 1e-9 and max(found) <= high * (1 + 1e-9)
    assert len(set(np.round(np.diff(found), 12))) <= 2
