"""`attar chat`: talk to a model on its device runtime."""

from __future__ import annotations

import sys
import time
from typing import Literal

import click
from rich.markup import escape

from attar.cli._console import err, out
from attar.cli._models import Voice, device_file, open_voice
from attar.runtime.chat import Conversation, Message
from attar.runtime.session import NativeOptions, Session, SessionError, open_session

_HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends, Ctrl-C stops a reply and keeps what was said."


@click.command("chat")
@click.argument("model")
@click.option("--prompt", "-p", help="Send this one message, print the reply, and end.")
@click.option("--system", help="A system message to begin with (needs a chat template).")
@click.option("--temperature", default=0.7, show_default=True, type=click.FloatRange(0), help="0 is greedy.")
@click.option(
    "--top-k", default=0, show_default=True, type=click.IntRange(0), help="Keep the k likeliest; 0 keeps all."
)
@click.option(
    "--top-p", default=0.9, show_default=True, type=click.FloatRange(0, 1, min_open=True), help="Keep this mass."
)
@click.option("--seed", default=None, type=int, help="Seed of the sampler; default: the clock.")
@click.option("--max-tokens", "-n", default=512, show_default=True, type=click.IntRange(1), help="Longest reply.")
@click.option(
    "--context",
    "-c",
    type=click.IntRange(1),
    help="Tokens the conversation may hold; default: the model's, at most 4096.",
)
@click.option("--threads", "-t", type=click.IntRange(1), help="Threads; default: the usable cores.")
@click.option("--cache", type=click.Choice(["f16", "int8"]), default="f16", show_default=True, help="KV cache (.gguf).")
@click.option(
    "--overflow",
    type=click.Choice(["refuse", "slide"]),
    default="refuse",
    show_default=True,
    help="At the end of the context, stop, or forget the older half but the system message (.gguf).",
)
@click.option(
    "--exact", is_flag=True, help="16-bit activations: slower, nearly the logits of float arithmetic (.gguf)."
)
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
def command(
    model: str,
    prompt: str | None,
    system: str | None,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    max_tokens: int,
    context: int | None,
    threads: int | None,
    cache: Literal["f16", "int8"],
    overflow: Literal["refuse", "slide"],
    exact: bool,
    raw: bool,
) -> None:
    """Talk to MODEL: a name, a .gguf, .onnx or .tflite file, or a checkpoint folder.

    The reply streams as it is decoded. The conversation stays in the KV cache, so each turn reads only its new
    tokens; the line under a reply says how many, and how fast. A base model, which has no chat template, continues
    what you type.
    """
    from attar.runtime.native import NativeSampler

    path = device_file(model)
    voice = open_voice(path)
    continue_text = None if raw else voice.continue_text
    if system and continue_text is None:
        raise click.UsageError("--system needs a model with a chat template, and no --raw")
    options = NativeOptions(16 if exact else 8, cache, overflow, _system_tokens(voice, system) if system else 0)
    if path.suffix != ".gguf" and (exact or cache != "f16" or overflow != "refuse"):
        raise click.UsageError("--cache, --overflow and --exact are choices of the C runtime, which runs .gguf files")
    with open_session(path, context_length=context, threads=threads, native=options) as session:
        sampler = NativeSampler(
            session.vocab_size,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=time.time_ns() if seed is None else seed,
        )
        conversation = Conversation(session, voice.tokenizer, sampler.draw, continue_text, slides=overflow == "slide")
        if system:
            conversation.messages.append({"role": "system", "content": system})
        if prompt is not None:
            _say(conversation, prompt, max_tokens, quiet=not err.is_terminal)
        else:
            _greet(model, session, base=continue_text is None and not raw)
            _converse(conversation, max_tokens)


def _system_tokens(voice: Voice, system: str) -> int:
    """Tokens of a conversation that its system message takes up, which never slide out of the context."""
    if voice.continue_text is None:
        return 0
    messages: list[Message] = [{"role": "system", "content": system}, {"role": "user", "content": ""}]
    text = voice.continue_text([], messages)
    head = text[: text.find(system) + len(system)] if text and system in text else ""
    return len(voice.tokenizer.encode(head))


def _greet(model: str, session: Session, base: bool) -> None:
    memory = session.memory()
    parts = [f"[bold]{escape(model)}[/]", f"context {session.context_length:,} tokens"]
    if memory.cache_bytes:
        parts.append(f"KV cache {memory.cache_bytes / 1e6:.0f} MB")
    err.print(" · ".join(parts))
    if base:
        err.print("This is a base model without a chat template: it continues what you type.")
    err.print(f"[dim]{_HELP}[/]")


def _converse(conversation: Conversation, max_tokens: int) -> None:
    while True:
        try:
            text = click.prompt(click.style(">", fg="green", bold=True), prompt_suffix=" ", err=not sys.stdout.isatty())
        except click.Abort:  # Ctrl-C or Ctrl-D at the prompt
            err.print()
            return
        if text.strip() in ("/quit", "/exit"):
            return
        if text.strip() == "/reset":
            conversation.reset()
            err.print("[dim]forgotten[/]")
        elif text.strip() in ("/help", "/?"):
            err.print(f"[dim]{_HELP}[/]")
        else:
            try:
                _say(conversation, text, max_tokens, quiet=False)
            except SessionError as error:
                err.print(f"[red]{escape(str(error))}[/]")


def _say(conversation: Conversation, text: str, max_tokens: int, quiet: bool) -> None:
    """Sends one message and streams the reply; Ctrl-C ends the reply, not the conversation."""
    reply = conversation.send(text, max_tokens)
    try:
        for piece in reply:
            out.file.write(piece)
            out.file.flush()
    except KeyboardInterrupt:
        reply.close()
    out.file.write("\n")
    out.file.flush()
    if not quiet:
        err.print(f"[dim]{_describe(conversation)}[/]")


def _describe(conversation: Conversation) -> str:
    stats = conversation.stats
    speed = stats.prompt_tokens / stats.prefill_seconds if stats.prefill_seconds else 0.0
    line = f"read {stats.prompt_tokens} tokens at {speed:.0f}/s"
    if stats.reused_tokens:
        line += f" ({stats.reused_tokens} kept in the cache)"
    line += f", said {stats.reply_tokens} at {stats.decode_tokens_per_second:.1f}/s"
    reasons = {"length": "--max-tokens reached", "context": "the context is full: /reset", "interrupt": "stopped"}
    return f"{line} · {reasons[stats.stopped]}" if stats.stopped in reasons else line
