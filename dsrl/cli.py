"""The ``dsrl`` command. Nothing heavy is imported before a command is known."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from dsrl import __version__
from dsrl.errors import DsrlError, nearest


@dataclass(frozen=True)
class Command:
    """A verb: its settings, and the function that does it, both named so that they are imported late."""

    help: str
    config: str
    run: str
    positional: tuple[str, ...] = ()


COMMANDS: Mapping[str, Command] = {
    "finetune": Command(
        "steer a frozen policy by reinforcement learning on its noise", "config:FinetuneConfig", "commands:finetune"
    ),
    "evaluate": Command(
        "score a run or a checkpoint on seeded episodes",
        "evaluate_config:EvaluateConfig",
        "commands:evaluate",
        ("target",),
    ),
    "report": Command("one HTML page about one run or many", "report:ReportConfig", "report:report", ("runs",)),
    "probe": Command(
        "steerability check: what the choice of noise changes",
        "evaluate_config:ProbeConfig",
        "commands:probe",
        ("checkpoint",),
    ),
    "export": Command("base policy and agent in one file", "config:ExportConfig", "commands:export", ("run", "out")),
    "push": Command("put a run on the Hugging Face hub", "push:PushConfig", "push:push", ("run", "repo")),
    "convert": Command(
        "write a policy of any format as a diffusers folder",
        "config:ConvertConfig",
        "commands:convert",
        ("checkpoint", "out"),
    ),
    "inspect": Command("print what is in a checkpoint", "config:InspectConfig", "commands:inspect", ("checkpoint",)),
    "plugins": Command(
        "list the formats and simulators that other packages add", "config:PluginsConfig", "commands:plugins"
    ),
    "doctor": Command(
        "what of this machine works, and how to mend what does not", "doctor:DoctorConfig", "doctor:doctor"
    ),
    "collect": Command("record demonstrations of a scripted expert", "collect:CollectConfig", "collect:collect"),
    "pretrain": Command(
        "train a diffusion or flow policy by behaviour cloning", "pretrain:PretrainConfig", "pretrain:pretrain"
    ),
    "extract": Command(
        "guide a policy towards what is good in a data set (CFGRL)", "extract:ExtractConfig", "extract:extract"
    ),
    "synthesize": Command(
        "draw data like a data set's, with the actions of a policy (policy-guided diffusion)",
        "synthesize:SynthesizeConfig",
        "synthesize:synthesize",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dsrl``; returns the exit code: 0, 1 for a run that failed, 2 for bad input, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    # the networks are small: threads that wait for each other beside busy simulators are many times slower than one
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        return _dispatch(args)
    except DsrlError as error:
        if debug:
            raise
        print(f"dsrl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("dsrl: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        print(f"dsrl: {type(error).__name__}: {error} (run again with --debug for the traceback)", file=sys.stderr)
        return 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if args[0] == "--version":
        print(f"dsrl {__version__}")
        return 0
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        raise DsrlError(f"there is no command '{name}'.{nearest(name, list(COMMANDS))} See: dsrl --help")
    command = COMMANDS[name]
    config = _parse(name, _named(command.config), command, rest)
    result = _named(command.run)(config)
    return result if isinstance(result, int) else 0


def _parse(name: str, kind: Any, command: Command, args: list[str]) -> Any:
    """Defaults, then ``--config FILE`` where there is one, then flags."""
    import tyro

    default: dict[str, Any] = {}
    if name == "finetune":
        args, base = _base_config(args)
        default = {} if base is None else {"default": base}
    target = _with_positionals(kind, command.positional)
    return tyro.cli(target, prog=f"dsrl {name}", description=kind.__doc__, args=args, **default)


def _base_config(args: list[str]) -> tuple[list[str], Any]:
    """Take ``--config FILE``, ``--preset NAME`` or ``--resume RUN`` out: what it names is what other flags change."""
    from dsrl.presets import preset

    rest, base = list(args), None
    for flag, read, hint in (
        ("--config", lambda value: _read_config(Path(value)), "a file, such as the config.yaml of a run folder"),
        ("--preset", preset, "a name, such as reference"),
        ("--resume", _resumed, "a run folder"),
    ):
        at = next((i for i, arg in enumerate(rest) if arg == flag or arg.startswith(flag + "=")), None)
        if at is None:
            continue
        if base is not None:
            raise DsrlError("--config, --preset and --resume exclude each other; give one of them")
        _, equals, value = rest[at].partition("=")
        if not equals and at + 1 >= len(rest):
            raise DsrlError(f"{flag} needs {hint}")
        base = read(value if equals else rest[at + 1])
        del rest[at : at + (1 if equals else 2)]
    return rest, base


def _with_positionals(kind: Any, names: tuple[str, ...]) -> Any:
    """Let ``dsrl inspect ckpt.pt`` do without flag names."""
    import tyro

    hints = get_type_hints(kind)
    for name in names:
        kind.__annotations__[name] = tyro.conf.Positional[hints[name]]  # type: ignore[misc, valid-type]
    return kind


def _read_config(path: Path) -> Any:
    import yaml

    from dsrl.config import finetune_config

    if not path.is_file():
        raise DsrlError(f"there is no config file {path}")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise DsrlError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise DsrlError(f"{path} holds {type(values).__name__}, expected settings such as 'algo: sac'")
    return finetune_config(values)


def _resumed(run: str) -> Any:
    from dsrl.resume import resumed_config

    return resumed_config(Path(run))


def _named(where: str) -> Callable[..., Any]:
    module, _, attribute = where.partition(":")
    return getattr(import_module(f"dsrl.{module}"), attribute)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "dsrl: fine-tune a frozen diffusion or flow policy through its noise",
            "",
            "usage: dsrl COMMAND [flags]      dsrl COMMAND --help      dsrl --version",
            "",
            *lines,
            "",
            "every command takes --debug, which shows the traceback of an error",
        ]
    )


def _as_interrupt(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: what was learned is saved."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
