"""The arms of the claims are runs that differ in what they claim to differ in, and in nothing else."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from examples.gkd_claims import TASKS
from examples.gkd_claims import Claims as GkdClaims
from examples.pretraining_claims import ARMS, Plan
from examples.pretraining_claims import Claims as PretrainingClaims

DIFFERENCES = {"data", "method", "teacher", "targets", "on_policy_fraction", "divergence"}


def common(config: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in DIFFERENCES}


@pytest.mark.parametrize("name", TASKS)
def test_arms_of_gkd_share_start_prompts_and_steps(name: str, tmp_path: Path) -> None:
    claims = GkdClaims(tmp_path, name, TASKS[name], seeds=2)
    jobs = {arm: claims.arm(arm, 1e-3, 1, "test") for arm in claims.arms}
    configs = {arm: job.config for arm, job in jobs.items() if job.config}
    assert len({job.run for job in jobs.values()}) == len(jobs) == len(configs) == 7
    assert all(common(config) == common(configs["sft"]) for config in configs.values())
    assert {config.student for config in configs.values()} == {str(claims.start(1, "test").model)}
    fractions = {arm: config.on_policy_fraction for arm, config in configs.items() if config.method == "gkd"}
    assert {arm.split()[0]: fraction for arm, fraction in fractions.items()} == {
        "supervised": 0.0, "on-policy": 1.0, "mixed": 0.5
    }  # fmt: skip
    assert configs["seqkd"].data != configs["sft"].data == configs["on-policy reverse KL"].data


def test_arms_of_pre_training_share_weights_texts_and_order(tmp_path: Path) -> None:
    claims = PretrainingClaims(tmp_path, replace(Plan(), texts=10), seeds=2)
    one_hot, distilled = (claims.run(1, arm, 4e-3, 1, "test").config for arm in ARMS)
    assert one_hot is not None
    assert distilled is not None
    assert common(one_hot) == common(distilled)
    assert one_hot.data == distilled.data
    assert (one_hot.method, one_hot.targets) == ("sft", None)
    assert (distilled.method, distilled.targets) == ("pretrain", str(claims.targets))
