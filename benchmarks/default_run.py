"""The README's table: ``dsrl finetune`` as it is, over seeds, for NA, SAC or PPO.

``python benchmarks/default_run.py --algo na --seeds 0 1 2`` writes ``benchmarks/results/default_<algo>.csv`` (every
policy of every seed on its 100 fresh episodes) and ``default_<algo>.png``. A run that is already there is not repeated.
"""

import argparse
import csv
import json
import subprocess
from pathlib import Path

from dsrl.plots import learning_curves
from dsrl.run import RunFolder

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--algo", choices=["na", "sac", "ppo"], default="na")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    args, flags = parser.parse_known_args()
    RESULTS.mkdir(exist_ok=True)
    rows, curves = [], {}
    for seed in args.seeds:
        run_dir = args.runs / f"{args.algo}_seed{seed}"
        summary = run_dir / "comparison.json"
        if not summary.exists():
            command = ["dsrl", "finetune", "--algo", args.algo, "--seed", str(seed), "--run-dir", str(run_dir)]
            subprocess.run([*command, "--overwrite", *flags], check=True)
        comparison = json.loads(summary.read_text())
        rows += [{"algo": args.algo, "seed": seed, **row} for row in comparison["rows"]]
        curves[f"seed {seed}"] = RunFolder.open(run_dir).read_evaluations()
    with (RESULTS / f"default_{args.algo}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    with (RESULTS / f"default_{args.algo}_curves.csv").open("w", newline="") as file:
        points = [{"seed": name, **row} for name, curve in curves.items() for row in curve]
        writer = csv.DictWriter(file, list(points[0]))
        writer.writeheader()
        writer.writerows(points)
    title = f"{args.algo} on the noise of the Lift policy"
    learning_curves({args.algo: list(curves.values())}, RESULTS / f"default_{args.algo}.png", title)
    for row in rows:
        print(f"{row['algo']} seed {row['seed']}  {row['policy']:<32} {row['success_rate']:.0%}")


if __name__ == "__main__":
    main()
