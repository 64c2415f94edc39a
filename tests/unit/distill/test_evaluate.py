"""Evaluation of a JAX model against its definition, and generation through a session."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from attar.distill.data import DataSet, Limits, Windows, load_examples
from attar.distill.evaluate import EvalSettings, Network, evaluate
from attar.distill.evaluate_device import evaluate_session, generate_with_session
from attar.distill.jax_answers import Writer
from attar.distill.token_scores import compare_logits
from attar.engine.config import ModelConfig
from attar.engine.tokenizer import Tokenizer
from attar.engine.transformer import Params, forward, init_params
from attar.runtime.session import MemoryUsage

SETTINGS = EvalSettings(batch_size=4, max_new_tokens=8, num_samples=2)


@pytest.fixture(scope="module")
def data(data_file: Path, tokenizer: Tokenizer) -> DataSet:
    return load_examples(data_file, tokenizer, Limits(24, 8))


@pytest.fixture(scope="module")
def student(shape: ModelConfig) -> Network:
    return Network(network_params(shape, 3), shape)


@pytest.fixture(scope="module")
def teacher(shape: ModelConfig) -> Network:
    return Network(network_params(shape, 4), shape)


def network_params(shape: ModelConfig, seed: int) -> Params:
    params = init_params(shape, jax.random.key(seed))
    return {**params, "embed_tokens": params["embed_tokens"] * 5.0}


def all_logits(network: Network, tokens: Sequence[int]) -> NDArray[np.float64]:
    """float64 [len(tokens), V]; one shape is compiled, and what follows a token cannot reach back."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    whole = jax.jit(forward, static_argnums=1)(network.params, network.config, padded)
    return np.asarray(whole[0, : len(tokens)], np.float64)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class ForwardSession:
    """A session that reads its whole sequence again for every token: slow, and independent of any cache."""

    context_length = 64

    def __init__(self, network: Network) -> None:
        self._network = network
        self._tokens: list[int] = []
        self.vocab_size = network.config.vocab_size

    @property
    def position(self) -> int:
        return len(self._tokens)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(self.score(tokens)[-1])

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self._tokens += tokens
        return all_logits(self._network, self._tokens).astype(np.float32)[-len(tokens) :]

    def decode(self, token: int) -> NDArray[np.float32]:
        return self.prefill([token])

    def rewind(self, position: int) -> None:
        del self._tokens[position:]

    def memory(self) -> MemoryUsage:
        return MemoryUsage(None, None, None)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        pass


def test_scores_equal_their_definition(student: Network, teacher: Network, tokenizer: Tokenizer, data: DataSet) -> None:
    # Five examples in batches of four: the filled-up rows of the last batch must not count.
    evaluation = evaluate(student, teacher, tokenizer, data, SETTINGS)
    nlls, forward_kls, reverse_kls, agreements = [], [], [], []
    for example in data.examples:
        tokens = [*example.prompt.tolist(), *example.completion.tolist()]
        first = len(example.prompt) - 1
        log_q, log_p = (log_softmax(all_logits(network, tokens))[first:-1] for network in (student, teacher))
        nlls.append(-log_q[np.arange(len(log_q)), example.completion])
        forward_kls.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
        reverse_kls.append((np.exp(log_q) * (log_q - log_p)).sum(-1))
        agreements.append(np.mean(log_q.argmax(-1) == log_p.argmax(-1)))
    for name, values in (
        ("nll", nlls),
        ("kl_teacher_student_data", forward_kls),
        ("kl_student_teacher_data", reverse_kls),
    ):
        assert evaluation.scores[name].mean == pytest.approx(np.mean([value.mean() for value in values]), rel=1e-4)
    assert evaluation.perplexity == pytest.approx(np.exp(np.concatenate(nlls).mean()), rel=1e-4)
    assert evaluation.scores["agreement_data"].mean == pytest.approx(np.mean(agreements))
    assert evaluation.scores["nll"].low < evaluation.scores["nll"].mean < evaluation.scores["nll"].high
    assert [sample.prompt for sample in evaluation.samples] == ["copy abc:", "copy xyz:"]


def test_divergences_on_samples_tell_equal_models_from_different_ones(
    student: Network, teacher: Network, tokenizer: Tokenizer, data: DataSet
) -> None:
    names = ("kl_student_teacher_samples", "kl_teacher_student_samples", "kl_student_teacher_sequence")
    same = evaluate(student, student, tokenizer, data, SETTINGS)
    other = evaluate(student, teacher, tokenizer, data, SETTINGS)
    for name in names:
        assert same.scores[name].mean == pytest.approx(0.0, abs=1e-6)
        assert same.scores["agreement_samples"].mean == 1.0
        assert other.scores[name].mean > 0.1
    assert other.scores["kl_student_teacher_sequence"].mean > other.scores["kl_student_teacher_samples"].mean


def test_results_hold_each_example(student: Network, teacher: Network, tokenizer: Tokenizer, data: DataSet) -> None:
    evaluation = evaluate(student, teacher, tokenizer, data, dataclasses.replace(SETTINGS, scored_examples=3))
    results = evaluation.results
    assert [result.example for result in results] == ["1", "2", "3", "4", "5"]
    assert [result.reference for result in results] == [example.reference for example in data.examples]
    assert [result.completion for result in results[:2]] == [sample.completion for sample in evaluation.samples]
    assert [result.sample is None for result in results] == [False] * 3 + [True] * 2
    assert [name for name in results[4].scores if "kl" in name or "agreement" in name or name == "nll"] == []
    nll = np.mean([result.scores["nll"] for result in results[:3]])
    assert evaluation.scores["nll"].mean == pytest.approx(nll)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> DataSet:
    """Forty bytes in windows of sixteen tokens, of which eight are context."""
    path = tmp_path_factory.mktemp("text") / "d.txt"
    path.write_text("Words of a text that none has asked for.")
    return load_examples(path, tokenizer, Limits(4, 4, windows=Windows(16, 8, ended=False)))


def test_text_is_scored_in_windows_and_not_answered(
    student: Network, teacher: Network, tokenizer: Tokenizer, text: DataSet
) -> None:
    evaluation = evaluate(student, teacher, tokenizer, text, SETTINGS)
    nats = 0.0
    for example in text.examples:
        tokens = [*example.prompt.tolist(), *example.completion.tolist()]
        log_q = log_softmax(all_logits(student, tokens))[len(example.prompt) - 1 : -1]
        nats -= log_q[np.arange(len(log_q)), example.completion].sum()
    assert evaluation.scores["bits_per_byte"].mean == pytest.approx(nats / np.log(2) / 40, rel=1e-5)
    assert evaluation.scores["word_perplexity"].mean == pytest.approx(np.exp(nats / 9), rel=1e-4)
    assert evaluation.perplexity == pytest.approx(np.exp(nats / 40), rel=1e-5)  # bytes are tokens here
    assert evaluation.scores["kl_student_teacher_data"].mean > 0.1
    assert not {"rougeL", "bleu", "kl_student_teacher_samples"} & set(evaluation.scores)
    assert (evaluation.samples, evaluation.results[0].sample) == ((), None)
    through = evaluate_session(ForwardSession(student), teacher, tokenizer, text, SETTINGS)
    assert set(through.scores) == set(evaluation.scores)
    for name, score in through.scores.items():
        assert score.mean == pytest.approx(evaluation.scores[name].mean, rel=1e-4)


def test_prompts_beside_text_are_answered(
    student: Network, teacher: Network, tokenizer: Tokenizer, text: DataSet, data: DataSet
) -> None:
    both = dataclasses.replace(data, examples=(*text.examples[:2], *data.examples))
    found = evaluate(student, teacher, tokenizer, both, SETTINGS)
    alone = evaluate(student, teacher, tokenizer, data, SETTINGS)
    assert [result.completion for result in found.results[2:]] == [result.completion for result in alone.results]
    assert [sample.prompt for sample in found.samples] == ["copy abc:", "copy xyz:"]
    assert found.scores["rougeL"].mean == pytest.approx(alone.scores["rougeL"].mean)
    assert [result.sample is None for result in found.results] == [True] * 2 + [False] * 5


def test_final_answers_are_checked_with_and_without_a_calculator(
    student: Network, tokenizer: Tokenizer, data: DataSet
) -> None:
    asked = [dataclasses.replace(example, reference="2*3 = <<2*3=6>>6\n#### 6") for example in data.examples[:2]]
    problems = dataclasses.replace(data, examples=(*asked, *data.examples[2:]))
    direct = evaluate(student, None, tokenizer, problems, SETTINGS)
    assert {"answer", "chain", "answer_calculator"} <= set(direct.scores)
    assert [result.assisted is None for result in direct.results] == [False, False, True, True, True]
    through = evaluate_session(ForwardSession(student), None, tokenizer, problems, SETTINGS)
    assert [r.assisted for r in through.results] == [r.assisted for r in direct.results]


def test_a_model_goes_on_behind_what_the_calculator_wrote(
    student: Network, tokenizer: Tokenizer, data: DataSet
) -> None:
    writer = Writer(*student, tokenizer, 4, 12)
    example = data.examples[0]
    (answer,) = writer.answer_with_calculator([example], ["<<2*3=5>>5"])
    session = ForwardSession(student)
    head = tokenizer.encode("<<2*3=6>>")
    left = generate_with_session(session, [*example.prompt.tolist(), *head], 12 - len(head), tokenizer.eos_token_ids)
    assert answer == "<<2*3=6>>" + tokenizer.decode(left)


def test_agreement_is_equality_of_the_likeliest_tokens() -> None:
    logits, teacher_logits = np.random.default_rng(0).normal(size=(2, 2, 40, 3)).astype(np.float32)  # [B, N, V] each
    found = np.asarray(compare_logits(jnp.asarray(logits), jnp.asarray(teacher_logits))["agreement"])
    np.testing.assert_array_equal(found, logits.argmax(-1) == teacher_logits.argmax(-1))
    assert 0 < found.mean() < 1


def test_without_a_teacher_divergences_are_left_out(student: Network, tokenizer: Tokenizer, data: DataSet) -> None:
    evaluation = evaluate(student, None, tokenizer, data, SETTINGS)
    on_texts = {"rouge1", "rouge2", "rougeL", "exact", "sentence_bleu", "sentence_chrf", "bleu", "chrf"}
    assert set(evaluation.scores) == {"nll", *on_texts}
    assert all(result.sample is None for result in evaluation.results)


def test_a_session_scores_as_the_jax_model(
    student: Network, teacher: Network, tokenizer: Tokenizer, data: DataSet
) -> None:
    heard: list[int] = []
    settings = dataclasses.replace(SETTINGS, scored_examples=2)
    through = evaluate_session(ForwardSession(student), teacher, tokenizer, data, settings, heard.append)
    direct = evaluate(student, teacher, tokenizer, data, settings)
    assert through.perplexity == pytest.approx(direct.perplexity, rel=1e-5)
    on_data = ("kl_teacher_student_data", "kl_student_teacher_data", "agreement_data")
    for name in ("nll", "rouge1", "rougeL", "exact", "bleu", "chrf", *on_data):
        assert through.scores[name].mean == pytest.approx(direct.scores[name].mean, rel=1e-5, abs=1e-7)
    assert [sample.completion for sample in through.samples] == [sample.completion for sample in direct.samples]
    assert heard == [1, 2, 3, 4, 5, 6, 7]
    assert set(through.scores) == set(direct.scores)
    # Other random numbers, so only near: both estimate the same divergence.
    name = "kl_student_teacher_samples"
    assert through.scores[name].mean == pytest.approx(direct.scores[name].mean, rel=0.5)


def test_a_session_of_the_teacher_itself_does_not_diverge(
    teacher: Network, tokenizer: Tokenizer, data: DataSet
) -> None:
    found = evaluate_session(ForwardSession(teacher), teacher, tokenizer, data, SETTINGS)
    for name in ("kl_student_teacher_samples", "kl_teacher_student_samples", "kl_student_teacher_sequence"):
        assert found.scores[name].mean == pytest.approx(0.0, abs=1e-5)


def test_generation_ends_before_the_end_token(student: Network) -> None:
    session = ForwardSession(student)
    free = generate_with_session(session, [1, 5, 9], 6, [])
    assert len(free) == 6
    ended = generate_with_session(session, [1, 5, 9], 6, [free[2]])
    assert ended == free[: free.index(free[2])]
