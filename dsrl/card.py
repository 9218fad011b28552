"""The model card of a run: what it is, how good it is, how it is used and made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.run import RunFolder

Row = Mapping[str, Any]


def model_card(
    run: RunFolder, base: Mapping[str, Any], steering: Mapping[str, Any], *, repo: str, agent: str, license: str | None
) -> str:
    """``README.md`` with the hub's metadata in front.

    Args:
        run: the run.
        base: ``path sha256 env`` of the base policy, as it is published.
        steering: what the agent's file says beside its weights.
        repo: ``org/name``.
        agent: ``best`` or ``final``.
        license: as the hub spells it.
    """
    env = EnvSpec.from_robomimic(base["env"])
    rows, verdict = _results(run)
    parts = [
        f"---\n{_metadata(rows, base, env, steering, repo, license)}\n---",
        f"# {repo}",
        f"An agent ({steering['algo']}, {agent} of its run) that steers a frozen policy in **{env.id}** through its "
        "noise, trained with [dsrl](https://pypi.org/project/dsrl-steering/). The weights of the base policy are not "
        "in here and were not changed.",
        "## Results",
        verdict,
        _table(rows),
        "![success against env steps](learning_curve.png)" if run.learning_curve.is_file() else "",
        "## Use",
        _use(base, repo),
        "## Make it again",
        f"```console\n$ dsrl finetune --config config.yaml{_base_flag(base)} --run-dir again\n```",
        "`config.yaml` holds every setting, `environment.json` the versions and the machine, `evaluations.csv` every "
        "evaluation on the way." + (" `report.html` shows them." if (run.path / "report.html").is_file() else ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(run: RunFolder) -> tuple[list[Row], str]:
    """Rows of the last comparison, or what the evaluations on the way say, and one sentence."""
    path = run.path / "comparison.json"
    if not path.is_file():
        seen = run.read_evaluations()
        ends = [row for row in seen if row["policy"] == "base"][:1] + [r for r in seen if r["policy"] == "steered"][-1:]
        return list(ends), "The run ended before its last comparison; these are evaluations on the way."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows, paired = data["rows"], data.get("paired")
        count = rows[0]["episodes"]
        verdict = f"On {count} initial states that were used for nothing else, with 95 % Wilson intervals."
        if paired:
            verdict += (
                f" Steered against base on the same states: {100 * paired['difference']:+.0f} points, 95 % interval "
                f"{100 * paired['low']:+.0f} to {100 * paired['high']:+.0f}, p = {paired['p']:.1g}."
            )
    except (ValueError, LookupError, TypeError) as error:
        raise DsrlError(f"{path} is not what `dsrl finetune` wrote ({error!r}); remove the file") from error
    return rows, verdict


def _table(rows: list[Row]) -> str:
    lines = ["| policy | success | 95 % interval | episodes |", "|---|---|---|---|"]
    lines += [
        f"| {row['policy']} | {row['success_rate']:.0%} | [{row['success_low']:.0%}, {row['success_high']:.0%}] "
        f"| {row['episodes']} |"
        for row in rows
    ]
    return "\n".join(lines) if rows else "No evaluation was recorded."


def _use(base: Mapping[str, Any], repo: str) -> str:
    path = str(base["path"])
    portable = "://" in path or path.startswith("dsrl:")
    flag = "" if portable else " --load.base PATH"
    where = f"It is at `{path}`" if portable else "It is not published; get it from the authors and give its path"
    return (
        f"```console\n$ pip install dsrl-steering\n$ dsrl evaluate hf://{repo}{flag}\n"
        f"$ dsrl finetune --base-policy hf://{repo}{flag}    # steer it further\n```\n\n"
        f"The base policy has the sha256 `{base['sha256']}`; another one is refused. {where}."
    )


def _base_flag(base: Mapping[str, Any]) -> str:
    """The path in ``config.yaml`` is one of the machine that pushed."""
    path = str(base["path"])
    if path.startswith("dsrl:"):  # what is steered when nothing is said
        return ""
    return f" --base-policy {path if '://' in path else 'PATH'}"


def _metadata(
    rows: list[Row], base: Mapping[str, Any], env: EnvSpec, steering: Mapping[str, Any], repo: str, license: str | None
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    steered = [row for row in rows if row["policy"] == "steered"]
    results = [
        EvalResult(
            task_type="robotics",
            dataset_type=env.id,
            dataset_name=env.id,
            metric_type="success_rate",
            metric_name=f"success rate, 95 % [{row['success_low']:.2f}, {row['success_high']:.2f}]",
            metric_value=row["success_rate"],
        )
        for row in steered
    ]
    path = str(base["path"])
    data = ModelCardData(
        license=license,
        library_name="dsrl",
        pipeline_tag="robotics",
        tags=["dsrl", "reinforcement-learning", "robotics", "diffusion-policy", str(steering["algo"]), env.family],
        base_model=path.removeprefix("hf://").partition("@")[0] if path.startswith("hf://") else None,
        model_name=repo,
        eval_results=results or None,
    )
    return data.to_yaml(line_break="\n")
