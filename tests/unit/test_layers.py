"""Which module may import which: the map of the design, kept by reading every import statement."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_LEVELS = {
    0: """policy noise data mlp networks normalize sampler config run env_spec errors device plots sb3_logging files
          provenance statistics critics actor agent_config presets learners pilots pools transformer plugins vision
          averaging limits evaluate_config transitions labels chunk_policy training episodes eval_budget
          frames checks safety card plain aggregate start_space report_plots
          hindsight replay noise_policy trajectory_windows policy_guidance mixed_batches
          wrapped random_state tree_file run_lock interruption blocks samples credit agent_state facts unfinished""",
    1: "edm diffusion guidance values steered noise_losses demo_mix piloted replay_log",
    2: "noise_fit awr cfgrl trajectory_diffusion folds",
    3: "noise_diagnostics noise_aliased agents actor_file anchored goals weighted policy_targets td3bc",
    4: """algorithms demos playback evaluate probe collect pretrain finetune callbacks compare video
          extract extract_config extract_modes labelled guidance_curve trial safety_log push compare_runs film_strip
          report_data report_page report_sections warm_start synthetic_diagnostics checkpoint checkpointing
          resume demonstrate""",
    5: "cli commands doctor report synthesize",
}
LEVEL = {f"dsrl.{name}": level for level, names in _LEVELS.items() for name in names.split()}
SIBLINGS = (0, 4, 5)
"""levels whose modules may import each other; two algorithms (level 3) never do"""
FOR_WRAPPERS = {f"dsrl.{name}" for name in ("policy", "noise", "env_spec", "errors", "data", "plugins", "safety")}


def modules() -> dict[str, Path]:
    """``dsrl.x``, ``dsrl.wrappers.x`` and ``dsrl.pretrained.x`` -> its file."""
    found = {}
    for folder, package in (
        (ROOT / "dsrl", ()),
        (ROOT / "wrappers", ("wrappers",)),
        (ROOT / "pretrained", ("pretrained",)),
    ):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(("dsrl", *package, *(p for p in parts if p != "__init__")))] = path
    return found


MODULES = modules()


def imports(tree: ast.AST, module: str, is_package: bool) -> set[str]:
    """All imports of ``dsrl`` modules anywhere in a file: at the top, inside functions, for types, by name."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, module, is_package)
            # `from dsrl.wrappers import steered` imports a module, `from dsrl.noise import NoiseSpace` a name
            # (`from dsrl import __version__` imports nothing else)
            words = [alias.name for alias in node.names if not alias.name.startswith("__")]
            names |= {full if (full := f"{source}.{word}") in MODULES else source for word in words}
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            names |= {
                arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            }
    return {name for name in names if name.split(".")[0] == "dsrl"}


def absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def area(module: str) -> str:
    """``wrappers``, ``pretrained`` or ``core``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ("wrappers", "pretrained") else "core"


def allowed(module: str, target: str) -> bool:
    here, there = area(module), area(target)
    if here != "core" and here == there:
        return True
    if target == "dsrl":  # its names come from everywhere
        return False
    if here == "wrappers":
        return target in FOR_WRAPPERS
    if here == "pretrained":
        return there == "core" and LEVEL.get(target, 9) <= 3
    if there != "core":
        return LEVEL[module] >= 4
    level = LEVEL.get(target, 9)
    return level < LEVEL[module] or (level == LEVEL[module] and level in SIBLINGS)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "dsrl"])
def test_a_module_imports_only_what_lies_below(module):
    path = MODULES[module]
    if area(module) == "core" and module not in LEVEL:
        pytest.fail(f"{path.relative_to(ROOT)} is not on the map; add it to _LEVELS in {Path(__file__).name}")
    found = imports(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py")
    wrong = sorted(target for target in found if not allowed(module, target))
    assert not wrong, f"{module} must not import {', '.join(wrong)}"


def test_the_package_itself_imports_nothing_of_its_own():
    """``import dsrl`` stays light, and no module gets another one through it."""
    assert not imports(ast.parse(MODULES["dsrl"].read_text(encoding="utf-8")), "dsrl", True)


@pytest.mark.parametrize(
    ("module", "target", "verdict"),
    [
        ("dsrl.noise", "dsrl.policy", True),
        ("dsrl.noise", "dsrl.guidance", False),
        ("dsrl.guidance", "dsrl.diffusion", False),
        ("dsrl.agents", "dsrl.noise_aliased", False),
        ("dsrl.agents", "dsrl.diffusion", True),
        ("dsrl.agents", "dsrl.wrappers.steered", False),
        ("dsrl.diffusion", "dsrl.pretrained", False),
        ("dsrl.finetune", "dsrl.evaluate", True),
        ("dsrl.finetune", "dsrl.wrappers.steered", True),
        ("dsrl.finetune", "dsrl.cli", False),
        ("dsrl.finetune", "dsrl", False),
        ("dsrl.cli", "dsrl.pretrained", True),
        ("dsrl.wrappers.steered", "dsrl.wrappers.vec", True),
        ("dsrl.wrappers.steered", "dsrl.pretrained.toy", False),
        ("dsrl.wrappers.steered", "dsrl.run", False),
        ("dsrl.pretrained.toy", "dsrl.policy", True),
        ("dsrl.pretrained.toy", "dsrl.diffusion", True),
        ("dsrl.pretrained.toy", "dsrl.evaluate", False),
        ("dsrl.pretrained.toy", "dsrl.wrappers.toy", False),
    ],
)
def test_the_rules(module, target, verdict):
    assert allowed(module, target) is verdict


def test_every_kind_of_import_is_seen():
    source = """
import dsrl.noise as n, numpy
from dsrl.wrappers import toy
from . import errors
from .policy import PolicySpec
def lazy():
    from dsrl.pretrained import load_policy
    importlib.import_module("dsrl.run")
"""
    found = imports(ast.parse(source), "dsrl.noise", False)
    expected = {"noise", "wrappers.toy", "errors", "policy", "pretrained", "run"}
    assert found == {f"dsrl.{name}" for name in expected}
