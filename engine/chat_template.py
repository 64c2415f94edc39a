"""Chat templates: renders messages with the Jinja template a model carries, in a sandbox.

A template is code from whoever made the model file, so it runs in a sandbox, what it may cost is bounded
(`_template_sandbox`), and every failure becomes one `ChatTemplateError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError

from attar.engine._template_sandbox import ChatSandbox, TemplateRefusal

Message = Mapping[str, Any]

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_OUTPUT_CHARS = 16 * 1024 * 1024


class ChatTemplateError(ValueError):
    """A chat template that does not compile, refuses its messages, or exceeds a bound."""


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
    sandbox, compiled = _compile(template)
    context = {
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token or "",
        "eos_token": eos_token or "",
        "tools": None,
        "documents": None,
    }
    sandbox.start()
    try:
        return _joined(compiled.generate(context))
    except TemplateRefusal as refusal:
        raise ChatTemplateError(f"the model's chat template refused this conversation: {refusal}") from None
    except Exception as error:  # the template is foreign code: any exception in it is its own failure
        raise ChatTemplateError(f"the model's chat template failed on this conversation: {error}") from error


def _joined(pieces: Iterable[str]) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_OUTPUT_CHARS:
            raise ChatTemplateError(f"a rendered chat may have at most {MAX_OUTPUT_CHARS} characters, got more")
        kept.append(piece)
    return "".join(kept)


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
def _compile(template: str) -> tuple[ChatSandbox, Template]:
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ChatTemplateError(
            f"a chat template may have at most {MAX_TEMPLATE_CHARS} characters, got {len(template)}"
        )
    sandbox = ChatSandbox()
    try:
        return sandbox, sandbox.from_string(template)
    except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        place = f" at line {line}" if line else ""
        raise ChatTemplateError(f"the model's chat template does not compile{place}: {error}") from error
