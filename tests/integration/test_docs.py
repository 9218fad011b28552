"""What the documentation says is true: its Python runs, its flags exist, its links lead somewhere."""

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest

import dsrl
from dsrl.cli import COMMANDS

pytestmark = [pytest.mark.integration]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITHOUT_CONFIG = {"debug", "help", "version", "config", "preset"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page, language):
    return [body for found, body in FENCE.findall(page.read_text()) if found == language]


def flags_of(config):
    """``{"seed", "sac.tau", ...}`` with dashes, as they are spelt on the command line."""
    flags = set()
    for field in dataclasses.fields(config):
        flags.add(field.name.replace("_", "-"))
        if dataclasses.is_dataclass(field.default_factory):
            flags |= {f"{field.name}.{inner}" for inner in flags_of(field.default_factory)}
    return flags


def config_of(verb):
    module, _, name = COMMANDS[verb].config.partition(":")
    return getattr(import_module(f"dsrl.{module}"), name)


@each_page
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


@each_page
def test_the_commands_and_flags_of_a_page_exist(page):
    # `dsrl finetune --algo ppo`, in a block or in a line
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for verb, rest in re.findall(r"(?:`|\$ )dsrl ([a-z]+)([^`\n|]*)", text):
        assert verb in COMMANDS, f"dsrl {verb}"
        known = flags_of(config_of(verb)) | WITHOUT_CONFIG
        assert set(re.findall(r"--([a-z][\w.-]*)", rest)) <= known, f"dsrl {verb}{rest}"
    everywhere = set().union(*(flags_of(config_of(verb)) for verb in COMMANDS)) | WITHOUT_CONFIG
    for flag in re.findall(r"`--([a-z][\w.-]*)", text):
        assert flag.removeprefix("no-") in everywhere, f"--{flag}"


@each_page
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\[[^\]]*\]\(([^)]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@each_page
def test_the_files_and_targets_of_a_page_exist(page):
    text = page.read_text()
    for path in re.findall(r"(?:benchmarks|examples)/[\w.]+\.py", text):
        assert (ROOT / path).is_file(), path
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ |^)make ([a-z]+)", text, re.MULTILINE)) <= targets


def test_every_name_of_the_package_is_what_it_says_whatever_was_imported_before():
    for name, module in dsrl._EXPORTS.items():
        assert getattr(dsrl, name) is getattr(import_module(module), name), f"dsrl.{name}"


def test_the_readme_lists_every_command():
    assert set(re.findall(r"`dsrl ([a-z]+)", (ROOT / "README.md").read_text())) == set(COMMANDS)
