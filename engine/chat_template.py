"""Chat templates: renders messages with the Jinja template a model carries, in a sandbox.

A template is code from whoever made the model file, so it runs in jinja2's immutable sandbox, its size, its loops
and its output are bounded, and every failure becomes one `ChatTemplateError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_OUTPUT_CHARS = 16 * 1024 * 1024
MAX_RANGE = 10_000
_MAX_REPEAT = 1_000_000


class ChatTemplateError(ValueError):
    """A chat template that does not compile, refuses its messages, or exceeds a bound."""


class _GenerationBlock(Extension):
    """Renders the body of `{% generation %}`, which training code uses to mark the assistant's tokens."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares `tags` as a mutable class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Returns the block's body, so that the mark itself disappears."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' settings (`trim_blocks`, `lstrip_blocks`, loop controls), with arithmetic that cannot explode."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["range"] = _bounded_range

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiplies, unless the result would be a huge string, list or number."""
        if operator == "**":
            raise SecurityError("powers are not allowed in a chat template")
        sizes = [len(x) for x in (left, right) if isinstance(x, str | bytes | list | tuple)]
        counts = [abs(x) for x in (left, right) if isinstance(x, int)]
        if (sizes and counts and sizes[0] * counts[0] > _MAX_REPEAT) or any(c > 2**63 for c in counts):
            raise SecurityError(f"a chat template may repeat a value to at most {_MAX_REPEAT} items")
        return super().call_binop(context, operator, left, right)


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    bos_token: str | None = None,
    eos_token: str | None = None,
) -> str:
    """The text of a conversation as the model was trained to read it.

    Args:
      template: Jinja source, as in `tokenizer_config.json` or a GGUF's `tokenizer.chat_template`.
      messages: Dictionaries with `role` and `content`, oldest first.
      add_generation_prompt: Ends with the opening of the assistant's turn.
      bos_token: Text of BOS. Most templates write it themselves, so encode the result without adding another.
      eos_token: Text of EOS.

    Raises:
      ChatTemplateError: If the template does not compile, refuses the messages, or exceeds a bound.
    """
    compiled = _compile(template)
    pieces: list[str] = []
    size = 0
    try:
        for piece in compiled.generate(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token or "",
            eos_token=eos_token or "",
            tools=None,
            documents=None,
        ):
            size += len(piece)
            if size > MAX_OUTPUT_CHARS:
                raise ChatTemplateError(f"a rendered chat may have at most {MAX_OUTPUT_CHARS} characters, got more")
            pieces.append(piece)
    except ChatTemplateError:
        raise
    except Exception as error:  # the template is foreign code: any exception in it is its own failure
        raise ChatTemplateError(f"the model's chat template refused this conversation: {error}") from error
    return "".join(pieces)


def render_turn_suffix(
    template: str,
    messages: Sequence[Message],
    new_messages: Sequence[Message],
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
) -> str | None:
    """The text that follows `messages` when `new_messages` are added and the assistant is to answer.

    Lets a KV cache that holds `messages` continue without reading them again.

    Args:
      messages: The conversation so far. Where the last is the assistant's, its closing marks (`<|im_end|>`) are part
        of the suffix, because a generation stops before or at them.
      new_messages: What is added, usually one user turn.

    Returns:
      The suffix after the content of the last message, or None where the template rewrites earlier turns, so that
      the longer text does not start with the shorter one.

    Raises:
      ChatTemplateError: As `render_chat`.
    """

    def render(turns: Sequence[Message], prompt: bool) -> str:
        return render_chat(template, turns, add_generation_prompt=prompt, bos_token=bos_token, eos_token=eos_token)

    whole = render([*messages, *new_messages], True)
    if not messages:
        return whole
    last = messages[-1]
    if last.get("role") != "assistant":
        held = [render(messages, False)]
    else:
        opening, found, _ = render([*messages[:-1], {**last, "content": _MARK}], False).partition(_MARK)
        words = str(last.get("content", ""))
        held = [opening + words, opening + words.strip()] if found else []
    return next((whole[len(text) :] for text in held if whole.startswith(text)), None)


# Stands in for the assistant's words to find where they begin; not text that a template would write itself.
_MARK = "\ufdd0attar\ufdd1"


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ChatTemplateError(
            f"a chat template may have at most {MAX_TEMPLATE_CHARS} characters, got {len(template)}"
        )
    try:
        return _Environment().from_string(template)
    except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        place = f" at line {line}" if line else ""
        raise ChatTemplateError(f"the model's chat template does not compile{place}: {error}") from error


def _raise_exception(message: str) -> NoReturn:
    raise ChatTemplateError(f"the model's chat template refused this conversation: {message}")


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _bounded_range(*arguments: int) -> range:
    values = range(*arguments)
    if len(values) > MAX_RANGE:
        raise SecurityError(f"a chat template may loop over at most {MAX_RANGE} numbers, got {len(values)}")
    return values


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    """transformers' `tojson`: unlike jinja2's, it does not escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
