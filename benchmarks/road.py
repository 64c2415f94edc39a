"""GKD against SFT at equal steps over seeds, on the demo's teacher and data.

    python -m benchmarks.road --seeds 3

Runs the demo's training for each seed (the teacher is trained once), scores both students on the same held-out
packages and prints the paired differences. `--json` prints one object whose `ratios` hold, for each seed, SFT's
divergence over GKD's and GKD's ROUGE-L over SFT's: above 1 is better for GKD.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from examples.demo import Demo, Plan

from attar.cli._console import make_table, out
from benchmarks.command import count, run_command

KL = "kl_student_teacher_samples"


def run_seed(root: Path, seed: int, plan: Plan) -> dict[str, dict[str, Any]]:
    """Trains and scores both students with one seed; the first seed's data and teacher serve all."""
    demo = Demo(root / f"seed{seed}", plan)
    first = root / "seed0"
    if seed:
        demo.out.mkdir(parents=True, exist_ok=True)
        for shared in ("data", "teacher"):
            if not (demo.out / shared).exists():
                shutil.copytree(first / shared, demo.out / shared, ignore=shutil.ignore_patterns("checkpoints"))
    demo.prepare()
    demo.train()
    return {arm: demo.score(arm) for arm in ("sft", "gkd")}


def main() -> int:
    """Prints the table of all seeds, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/road"))
    parser.add_argument("--quick", action="store_true", help="a few steps on few examples, to see it run")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    plans = [
        Plan(teacher_steps=2, start_steps=2, steps=2, examples=8, scored_examples=4, seed=seed)
        if chosen.quick
        else Plan(seed=seed)
        for seed in range(chosen.seeds)
    ]
    results = [run_seed(chosen.out, seed, plan) for seed, plan in enumerate(plans)]
    rows, ratios = [], {}
    for seed, arms in enumerate(results):
        kl = {arm: scores[KL]["mean"] for arm, scores in arms.items()}
        rouge = {arm: 100 * scores["rougeL"]["mean"] for arm, scores in arms.items()}
        rows.append([str(seed), *(f"{v:.3f}" for v in kl.values()), *(f"{v:.2f}" for v in rouge.values())])
        ratios |= {f"kl_seed{seed}": kl["sft"] / kl["gkd"], f"rougeL_seed{seed}": rouge["gkd"] / rouge["sft"]}
    if chosen.json:
        print(json.dumps({"ratios": ratios, "results": results, "plan": plans[0].__dict__}))
    else:
        out.print(make_table(None, ["seed", "KL, SFT", "KL, GKD", "ROUGE-L, SFT", "ROUGE-L, GKD"], rows))
    return 0


if __name__ == "__main__":
    run_command(main)
