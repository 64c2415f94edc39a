"""Rewards, their baselines, and the gradient of (1 - α) E[reward] - α D against exact enumeration."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attar.distill.config import TrainConfig
from attar.distill.losses import Normalization, completion_mask, token_weights
from attar.distill.methods.gkd import Gkd
from attar.distill.methods.method import Labels
from attar.distill.policy_gradient import PolicyLabels, policy_loss, scaled_advantages
from attar.distill.rewards import RewardError, find_reward, leave_one_out, score
from attar.distill.run_folder import read_metrics
from attar.distill.trainer import train

V, END = 3, 2  # token 2 ends a completion, which has at most two tokens
COMPLETIONS = [(0, 0), (0, 1), (0, END), (1, 0), (1, 1), (1, END), (END, 0)]
LENGTHS = np.array([2, 2, 2, 2, 2, 2, 1], np.int32)
REWARDS = np.array([1.0, -0.5, 0.3, 2.0, 0.1, -1.0, 0.7])
THETA = jax.random.normal(jax.random.key(0), (V, V))  # row 0: first token; rows 1, 2: second token after 0, 1
TEACHER = jax.random.normal(jax.random.key(1), (V, V))


def logits_of(theta: jax.Array, tokens: jax.Array) -> jax.Array:
    """[B, 2, V] for tokens [B, 2]; what follows the end is anything."""
    second = theta[jnp.minimum(tokens[:, 0] + 1, V - 1)]
    return jnp.stack([jnp.broadcast_to(theta[0], second.shape), second], axis=1)


def log_probs_of(theta: jax.Array) -> jax.Array:
    """Of all completions, [7]."""
    tokens = jnp.array(COMPLETIONS)
    log_q = jnp.take_along_axis(jax.nn.log_softmax(logits_of(theta, tokens)), tokens[..., None], -1)[..., 0]
    return jnp.where(completion_mask(jnp.asarray(LENGTHS), 2), log_q, 0.0).sum(1)


def expected_gradient(alpha: float, normalization: Normalization) -> np.ndarray[Any, Any]:
    """The mean over all pairs of samples of the loss's gradient, each pair a batch with its leave-one-out baseline."""
    method = Gkd(1.0, "reverse_kl", divergence_share=alpha)

    def gradient(tokens: jax.Array, lengths: jax.Array, advantages: jax.Array) -> jax.Array:
        def loss(theta: jax.Array) -> jax.Array:
            logits = logits_of(theta, tokens)
            log_q = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
            labels = Labels(tokens, policy=PolicyLabels(advantages, jax.lax.stop_gradient(log_q)))
            values = method.loss(logits, labels, logits_of(TEACHER, tokens))
            return jnp.sum(values * token_weights(completion_mask(lengths, 2), normalization))

        return jax.grad(loss)(THETA)

    pairs = np.array(list(itertools.product(range(7), repeat=2)))
    advantages = np.stack(
        [scaled_advantages(leave_one_out(REWARDS[pair], 1), LENGTHS[pair], 2, normalization) for pair in pairs]
    )
    tokens = jnp.array(COMPLETIONS)[pairs]
    gradients = jax.vmap(gradient)(tokens, jnp.asarray(LENGTHS[pairs]), jnp.asarray(advantages))
    weight = np.exp(np.asarray(log_probs_of(THETA), np.float64))[pairs].prod(1)
    return np.einsum("p,pij->ij", weight, np.asarray(gradients, np.float64))


@pytest.mark.parametrize("normalization", ["sequence", "token"])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_gradient_is_that_of_the_objective(alpha: float, normalization: Normalization) -> None:
    wanted = jax.grad(lambda theta: jnp.sum(jnp.exp(log_probs_of(theta)) * REWARDS.astype(np.float32)))(THETA)
    divergence = expected_gradient(1.0, normalization)
    expected = alpha * divergence - (1 - alpha) * np.asarray(wanted)
    np.testing.assert_allclose(expected_gradient(alpha, normalization), expected, atol=1e-5)


def test_without_a_share_for_the_reward_it_is_plain_gkd_bit_for_bit() -> None:
    tokens = jnp.array(COMPLETIONS)
    policy = PolicyLabels(jnp.ones((7, 2)), jnp.zeros((7, 2)))
    student, teacher = logits_of(THETA, tokens), logits_of(TEACHER, tokens)
    plain = Gkd().loss(student, Labels(tokens), teacher)
    shared = Gkd(divergence_share=1.0).loss(student, Labels(tokens, policy=policy), teacher)
    np.testing.assert_array_equal(shared, plain)


def test_samples_of_another_temperature_are_weighed() -> None:
    """One token, drawn at temperature 1.5 and enumerated: the gradient of the expected reward is exact."""
    theta, rewards = THETA[0], jnp.array([1.0, -2.0, 0.5])
    drawn = jax.nn.log_softmax(theta / 1.5)
    assert jnp.exp(jax.nn.log_softmax(theta) - drawn).max() < 2

    def loss(theta: jax.Array) -> jax.Array:
        labels = PolicyLabels(rewards[:, None], drawn[:, None])
        values = policy_loss(jnp.broadcast_to(theta, (V, 1, V)), jnp.arange(V)[:, None], labels)
        return jnp.sum(jnp.exp(drawn) * values[:, 0])

    wanted = jax.grad(lambda t: -jnp.sum(jax.nn.softmax(t) * rewards))(theta)
    np.testing.assert_allclose(jax.grad(loss)(theta), wanted, atol=1e-6)


def test_ratios_are_bounded() -> None:
    labels = PolicyLabels(jnp.ones((1, 1)), jnp.full((1, 1), -50.0))
    values = policy_loss(jnp.zeros((1, 1, V)), jnp.zeros((1, 1), jnp.int32), labels)
    assert float(values[0, 0]) == pytest.approx(2 * np.log(V))


def test_the_baseline_is_the_mean_of_the_others() -> None:
    rewards = np.array([1.0, 2.0, 6.0, 0.0])
    np.testing.assert_allclose(leave_one_out(rewards, 1), [1 - 8 / 3, 2 - 7 / 3, 6 - 1, 0 - 3])
    np.testing.assert_allclose(leave_one_out(rewards, 2), [-1, 1, 6, -6])


def test_built_in_rewards() -> None:
    answers = score(
        find_reward("exact_answer"), "exact_answer", ["?"] * 2, ["so #### 1,200", "#### 3"], ["#### 1200"] * 2
    )
    assert answers.tolist() == [1.0, 0.0]
    overlap = score(find_reward("rougeL"), "rougeL", ["?"] * 2, ["the cat sat", "a dog"], ["the cat sat"] * 2)
    assert overlap.tolist() == [1.0, 0.0]


def test_functions_of_the_working_directory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def brevity(prompts, completions, references):\n    return [-len(c) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert score(find_reward("my_rewards:brevity"), "brevity", ["p"], ["four"], [""]).tolist() == [-4.0]
    for name, message in {
        "my_rewards:missing": "has no function 'missing'",
        "no_such_module:f": "no_such_module cannot be imported",
        "bleurt": "reward must be exact_answer, rougeL or module:function, got 'bleurt'",
    }.items():
        with pytest.raises(RewardError, match=message):
            find_reward(name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"must give 2 floats, one a completion, got \(1,\)"),
        ([[1.0], [2.0]], r"must give 2 floats, one a completion, got \(2, 1\)"),
        ([1.0, float("nan")], "must be finite, got nan for 'b'"),
        ("ab", "failed: ValueError"),
    ],
)
def test_values_that_cannot_be_used_are_refused(values: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score(lambda *_: values, "mine", ["p", "p"], ["a", "b"], ["", ""])


@pytest.fixture
def settings(teacher_folder: Path, data_file: Path) -> dict[str, Any]:
    return {
        "data": str(data_file),
        "teacher": str(teacher_folder),
        "student_layers": (0,),
        "on_policy_fraction": 1.0,
        "max_new_tokens": 8,
        "batch_size": 4,
        "prompt_buckets": 1,
        "steps": 3,
        "learning_rate": 3e-3,
    }


def test_a_run_logs_its_rewards_and_ends_alike_when_resumed(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vowels.py").write_text(
        "def share(prompts, completions, references):\n"
        "    return [sum(c in 'aeiou' for c in text) / max(len(text), 1) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    settings |= {"reward": "vowels:share", "alpha": 0.2, "samples_per_prompt": 2, "checkpoint_every": 1}
    train(TrainConfig(**settings), tmp_path / "whole")
    lines = [line for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if line["kind"] == "train"]
    assert all(0 <= line["reward"] <= 1 for line in lines)
    train(TrainConfig(**settings), tmp_path / "stopped")
    newest = max((tmp_path / "stopped" / "checkpoints").iterdir())
    shutil.rmtree(newest)
    train(TrainConfig(**settings), tmp_path / "stopped")
    weights = [(tmp_path / run / "student" / "model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_a_share_of_one_trains_as_plain_gkd(tmp_path: Path, settings: dict[str, Any]) -> None:
    train(TrainConfig(**settings), tmp_path / "plain")
    train(TrainConfig(**settings, reward="rougeL", alpha=1.0), tmp_path / "shared")
    weights = [(tmp_path / run / "student" / "model.safetensors").read_bytes() for run in ("plain", "shared")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "sft"}, "needs method gkd and a lambda above 0, got sft"),
        ({"on_policy_fraction": 0.0}, "a lambda above 0, got gkd and 0.0"),
        ({"samples_per_prompt": 3}, "a multiple of samples_per_prompt for a reward, got 4 and 3"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
    ],
)
def test_configurations_that_make_no_sense(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings | change, reward="rougeL")
