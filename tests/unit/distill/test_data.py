"""Reading JSONL: both forms, completion-only targets, and one clear line for each kind of bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from attar.distill.data import DataError, Limits, PromptFormat, load_examples
from attar.engine.tokenizer import Tokenizer

LIMITS = Limits(prompt_tokens=60, completion_tokens=30)
EOS = 2


def write(folder: Path, *lines: str | dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


def test_a_pair_becomes_prompt_and_ended_completion(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, {"prompt": "ab:", "completion": " c", "package": "other keys are left alone"})
    (example,) = load_examples(path, tokenizer, LIMITS).examples
    assert example.prompt.tolist() == tokenizer.encode("ab:", add_special=True)
    assert example.prompt[0] == tokenizer.bos_token_id
    assert example.completion.tolist() == [*tokenizer.encode(" c"), EOS]
    assert (example.line, example.prompt_text, example.reference) == (1, "ab:", "c")


def test_chat_format_wraps_the_pair_in_the_template(tmp_path: Path, chat_tokenizer: Tokenizer) -> None:
    path = write(tmp_path, {"prompt": "hi", "completion": "yo"})
    (chat,) = load_examples(path, chat_tokenizer, LIMITS).examples
    assert chat.prompt_text == "[user]hi\n[assistant]"
    assert chat.completion.tolist() == [*chat_tokenizer.encode("yo"), EOS]  # the newline after EOS is never sampled
    (plain,) = load_examples(path, chat_tokenizer, LIMITS, "plain").examples
    assert plain.prompt_text == "hi"


def test_a_question_becomes_a_prompt_that_asks_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, {"question": "What is 1+1?", "answer": "1+1 = <<1+1=2>>2\n#### 2"})
    (example,) = load_examples(path, tokenizer, LIMITS).examples
    assert example.prompt_text == "Question: What is 1+1?\nAnswer:"
    assert example.reference == "1+1 = <<1+1=2>>2\n#### 2"
    assert example.completion.tolist() == [*tokenizer.encode(f" {example.reference}"), EOS]


def test_a_pair_may_carry_a_question_and_an_answer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, {"prompt": "a", "completion": "b", "question": 1, "answer": 2})
    (example,) = load_examples(path, tokenizer, LIMITS).examples
    assert (example.prompt_text, example.reference) == ("a", "b")


def test_every_assistant_turn_is_an_example(tmp_path: Path, chat_tokenizer: Tokenizer) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    path = write(tmp_path, {"messages": [{"role": role, "content": text} for role, text in turns]})
    first, second = load_examples(path, chat_tokenizer, LIMITS).examples
    assert first.prompt_text == "[user]a\n[assistant]"
    assert second.prompt_text == "[user]a\n[assistant]b<eos>\n[user]c\n[assistant]"
    assert (first.reference, second.reference) == ("b", "d")
    assert second.completion.tolist() == [*chat_tokenizer.encode("d"), EOS]


def test_long_completions_are_cut_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, {"prompt": "a", "completion": "x" * 31}, {"prompt": "a", "completion": "x" * 29})
    data = load_examples(path, tokenizer, LIMITS)
    cut, whole = data.examples
    assert data.num_cut == 1
    assert len(cut.completion) == 30
    assert EOS not in cut.completion  # it does not end there
    assert whole.completion[-1] == EOS


def test_an_empty_completion_is_an_end_of_sequence(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (example,) = load_examples(write(tmp_path, {"prompt": "a", "completion": ""}), tokenizer, LIMITS).examples
    assert example.completion.tolist() == [EOS]


def test_prompts_alone_are_enough_on_policy(tmp_path: Path, tokenizer: Tokenizer) -> None:
    limits = Limits(60, 30, needs_completion=False)
    (example,) = load_examples(write(tmp_path, {"prompt": "a"}), tokenizer, limits).examples
    assert example.completion.size == 0


def test_max_examples_and_hash(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"prompt": str(i), "completion": "x"} for i in range(5)]
    data = load_examples(write(tmp_path, *rows), tokenizer, LIMITS, max_examples=3)
    assert [example.prompt_text for example in data.examples] == ["0", "1", "2"]
    changed = load_examples(write(tmp_path, *rows[:4]), tokenizer, LIMITS, max_examples=3)
    assert data.sha256 != changed.sha256


GOOD = {"prompt": "a", "completion": "b"}
BAD_LINES: list[tuple[str | dict[str, Any], str]] = [
    ('{"prompt": "a", "completion": "b"', "is not valid JSON"),
    ("[1, 2]", "must be a JSON object, got list"),
    (
        {"completion": "b"},
        "must have 'prompt' and 'completion', or 'messages', or 'question' and 'answer', or 'text'; got ['completion']",
    ),
    ({"prompt": "a"}, "lacks a 'completion' (or 'answer')"),
    ({"question": "a"}, "lacks a 'completion' (or 'answer')"),
    ({"question": ["a"], "answer": "b"}, "'question' must be a string, got list"),
    ({"question": "a", "answer": 3}, "'answer' must be a string, got int"),
    ({"prompt": 3, "completion": "b"}, "'prompt' must be a string, got int"),
    ({"text": 3}, "'text' must be a string, got int"),
    ({"text": "a"}, "is plain text, where prompts are needed"),
    ({"prompt": "a", "completion": None}, "'completion' must be a string, got NoneType"),
    ({"prompt": "a" * 60, "completion": "b"}, "the prompt must have at most 60 tokens"),
    ({"messages": []}, "'messages' must be a list of at least one message"),
    ({"messages": [{"role": "user"}]}, "each message must have the strings 'role' and 'content'"),
    ({"messages": [{"role": "user", "content": "a"}]}, "must hold an assistant turn"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_LINES)
def test_a_bad_line_is_named_by_file_and_number(
    tmp_path: Path, tokenizer: Tokenizer, bad: str | dict[str, Any], message: str
) -> None:
    path = write(tmp_path, GOOD, "", bad, GOOD)
    with pytest.raises(DataError) as caught:
        load_examples(path, tokenizer, LIMITS)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_text_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "\xff"}\n')
    with pytest.raises(DataError, match=r"data\.jsonl:1: is not UTF-8"):
        load_examples(path, tokenizer, LIMITS)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_data_is_refused(tmp_path: Path, tokenizer: Tokenizer, content: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="holds no examples"):
        load_examples(path, tokenizer, LIMITS)


def test_a_missing_file_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read"):
        load_examples(tmp_path / "absent.jsonl", tokenizer, LIMITS)


@pytest.mark.parametrize(
    ("row", "prompt_format"), [(GOOD, "chat"), ({"messages": [{"role": "assistant", "content": "b"}]}, "auto")]
)
def test_chat_needs_a_template(
    tmp_path: Path, tokenizer: Tokenizer, row: dict[str, Any], prompt_format: PromptFormat
) -> None:
    with pytest.raises(DataError, match="chat template"):
        load_examples(write(tmp_path, row), tokenizer, LIMITS, prompt_format)
