"""Chat templates: what transformers renders, and what a hostile template must not do."""

from __future__ import annotations

import time
from typing import Any

import pytest

from attar.engine.chat_template import ChatTemplateError, render_chat, render_turn_suffix

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = """{{ bos_token }}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' }}{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
USER, ANSWER, NEXT = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Who?"},
)


def render(template: str, *messages: dict[str, Any], prompt: bool = True) -> str:
    return render_chat(template, messages, add_generation_prompt=prompt, bos_token="<bos>", eos_token="<eos>")


def test_chatml() -> None:
    assert render(CHATML, USER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_gemma() -> None:
    assert render(GEMMA, USER, ANSWER, NEXT) == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert render(GEMMA, USER, prompt=False) == "<bos><start_of_turn>user\nHi<end_of_turn>\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if true %}\nx\n{% endif %}\ny", "x\ny"),  # trim_blocks
        ("a\n    {% if true %}b{% endif %}", "a\nb"),  # lstrip_blocks
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),  # not escaped, unlike jinja2's own
        ("{{ bos_token }}|{{ eos_token }}", "<bos>|<eos>"),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{{ '-' * 3 }}{{ 2 * 3 }}", "---6"),
        ("{{ tools is none }}{{ nothing is defined }}", "TrueFalse"),
        ("{{ strftime_now('%%') }}", "%"),
    ],
)
def test_settings_are_those_of_transformers(template: str, text: str) -> None:
    assert render(template, USER) == text


def test_a_refusal_carries_the_templates_words() -> None:
    with pytest.raises(ChatTemplateError, match="chat template refused this conversation: roles must alternate"):
        render(GEMMA, ANSWER)


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(ChatTemplateError, match="does not compile at line 2"):
        render("a\n{% if %}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ render.__globals__ }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ 'a' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ 'xxxxxxxxxxxxxxxx' * 9999 }}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ 'x' | nosuchfilter }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000d}'.format(1) }}",
        "{{ '{:{}d}'.format(1, 1000000000) }}",
        "{{ '{:{w}d}'.format(1, w=1000000000) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ 'x' | indent(1000000000) }}",
        "{{ 'a' * 4000000 * 4000000 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999).join('y' * 99999) }}",
        "{{ ['x' * 99999] * 99999 | join }}",
        "{{ (['x' * 99999] * 99999) | join('-') }}",
        "{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set tick = 1 %}{% for i in 'x' * 200000 %}{% set environment = 1 %}{% endfor %}",
    ],
)
def test_hostile_templates_end_in_one_named_error(template: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(template, USER)


def test_a_huge_template_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="at most 262144 characters, got 300000"):
        render("x" * 300_000)


@pytest.mark.parametrize("template", [CHATML, GEMMA])
def test_a_turn_suffix_continues_what_is_held(template: str) -> None:
    first = render(template, USER)
    suffix = render_turn_suffix(template, [USER, ANSWER], [NEXT], bos_token="<bos>", eos_token="<eos>")
    assert suffix is not None
    assert first + "Hello!" + suffix == render(template, USER, ANSWER, NEXT)


def test_the_first_turn_is_the_whole_text() -> None:
    assert render_turn_suffix(CHATML, [], [USER]) == render_chat(CHATML, [USER], add_generation_prompt=True)


def test_words_that_the_template_writes_itself_are_not_taken_for_the_answer() -> None:
    for words in ("user", "im_end", "model", "\n", "e"):
        said = {"role": "assistant", "content": words}
        suffix = render_turn_suffix(CHATML, [USER, said], [NEXT])
        assert suffix == "<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_that_the_template_trims_is_continued_after_its_words() -> None:
    said = {"role": "assistant", "content": "Hello! \n"}
    assert render_turn_suffix(GEMMA, [USER, said], [NEXT], bos_token="<bos>") == (
        "<end_of_turn>\n<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_template_that_rewrites_earlier_turns_has_no_suffix() -> None:
    last_only = "{{ messages[-1].content }}{{ messages | length }}"
    counts = "{{ messages | length }}{% for m in messages %}{{ m.content }};{% endfor %}"
    for template in (last_only, counts):
        assert render_turn_suffix(template, [USER, ANSWER], [NEXT]) is None


def test_the_clock_is_this_machines() -> None:
    assert render("{{ strftime_now('%Y') }}", USER) in {time.strftime("%Y"), str(int(time.strftime("%Y")) - 1)}
