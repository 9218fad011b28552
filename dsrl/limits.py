"""The range of a setting: one check and one wording for every flag."""

from __future__ import annotations

from typing import Any

from dsrl.errors import DsrlError


def within(config: Any, interval: str, *names: str, prefix: str = "") -> None:
    """Check settings against an interval such as ``"(0, 1]"`` or ``"[1, inf)"``; those that were left out pass.

    Args:
        config: has them as attributes.
        interval: a bracket includes its end, a parenthesis does not.
        names: of the settings.
        prefix: of their flags, such as ``"na."``.

    Raises:
        DsrlError: naming the flag, what it is and what it can be.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        reached = value >= low if interval[0] == "[" else value > low
        kept = value <= high if interval[-1] == "]" else value < high
        if not (reached and kept):  # which NaN never is
            flag = f"--{prefix}{name.replace('_', '-')}"
            raise DsrlError(f"{flag} is {value}; it must {_in_words(interval, low, high, isinstance(value, float))}")


def _in_words(interval: str, low: float, high: float, real: bool) -> str:
    if high < float("inf"):
        return f"lie in {interval}"
    words = f"be {'at least' if interval[0] == '[' else 'above'} {low:g}"
    return f"{words} and finite" if real and interval[-1] == ")" else words


def check_training(config: Any) -> None:
    """Check what every recipe that trains a policy or a model has.

    Raises:
        DsrlError: naming the flag.
    """
    within(config, "[1, inf)", "steps", "batch_size")
    within(config, "(0, inf)", "lr")
    within(config, "[0, inf)", "weight_decay")
    within(config, "[0, 1)", "ema_decay", "valid_share")
