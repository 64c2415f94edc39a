"""A conversation on a session: the KV cache is kept across turns, so each turn reads only its new tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from attar.runtime.session import Logits, Session, SessionError

Message = dict[str, str]
Continue = Callable[[Sequence[Message], Sequence[Message]], str | None]
Draw = Callable[[Logits], int]


class ChatTokenizer(Protocol):
    """What a conversation needs of a tokenizer."""

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]: ...
    def token_bytes(self, token: int, /) -> bytes: ...
    def is_end(self, token: int, /) -> bool: ...


@dataclass
class TurnStats:
    """What one reply cost. Times in seconds."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefill_seconds: float = 0.0
    reply_tokens: int = 0
    decode_seconds: float = 0.0
    stopped: str = "end"  # "end" of turn, "length" of the reply, "context" full, "interrupt"

    @property
    def decode_tokens_per_second(self) -> float:
        """Reply tokens over decode seconds; 0 before the second token."""
        return self.reply_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class Conversation:
    """Messages so far, and the session that has read them.

    Attributes:
      continue_text: (messages so far, new messages) -> the text that the model's chat template writes after the
        former, up to the opening of the next reply, or None where it rewrites earlier turns. The attribute itself is
        None for a base model, whose turns are raw text to be continued.
      draw: Chooses a token from logits [V].
      slides: The session forgets its oldest tokens when the context is full, instead of refusing.
    """

    session: Session
    tokenizer: ChatTokenizer
    draw: Draw
    continue_text: Continue | None = None
    slides: bool = False
    messages: list[Message] = field(default_factory=list)
    stats: TurnStats = field(default_factory=TurnStats)
    _held: list[int] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets everything but a leading system message."""
        self.messages = [m for m in self.messages[:1] if m["role"] == "system"]
        self._held = []
        self.session.rewind(0)

    def send(self, text: str, max_tokens: int) -> Generator[str, None, None]:
        """Appends a user turn and yields the reply as it is decoded.

        Closing the iterator (or a KeyboardInterrupt inside it) ends the reply; what was said so far stays in the
        conversation and in the cache.

        Raises:
          SessionError: If the turn does not fit the context; the conversation is then as before.
        """
        new_tokens = self._turn_tokens(text)
        logits = self._read(new_tokens)
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            for piece in self._reply(logits, max_tokens):
                pieces.append(piece)
                yield piece
        except (KeyboardInterrupt, GeneratorExit):
            self.stats.stopped = "interrupt"
            raise
        finally:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _turn_tokens(self, text: str) -> list[int]:
        """Tokens to append to what the cache holds so that the model is about to reply to `text`."""
        if self.continue_text is None:
            return self.tokenizer.encode(text, add_special=not self._held, parse_special=False)
        user: Message = {"role": "user", "content": text}
        if self._held:
            turn = self.continue_text(self.messages, [user])
        else:
            turn = self.continue_text([], [*self.messages, user])
        if turn is None:
            raise SessionError("the chat template rewrites earlier turns, so the cache cannot be kept; use /reset")
        return self.tokenizer.encode(turn, add_special=False)

    def _read(self, tokens: list[int]) -> Logits:
        if not self.slides and self.session.position + len(tokens) > self.session.context_length:
            raise SessionError(
                f"the turn needs {len(tokens)} tokens and {self.session.context_length - self.session.position} of "
                f"{self.session.context_length} are left; shorten it, or /reset"
            )
        started, held = time.perf_counter(), self.session.position
        logits = self.session.prefill(tokens)
        self.stats = TurnStats(
            prompt_tokens=len(tokens), reused_tokens=held, prefill_seconds=time.perf_counter() - started
        )
        self._held += tokens
        return logits

    def _reply(self, logits: Logits, max_tokens: int) -> Iterator[str]:
        pending = b""
        for _ in range(max_tokens):
            token = self.draw(logits)
            if self.tokenizer.is_end(token):
                break
            if not self.slides and self.session.position >= self.session.context_length:
                self.stats.stopped = "context"
                break
            pending += self.tokenizer.token_bytes(token)
            text, pending = split_utf8(pending)
            started = time.perf_counter()
            logits = self.session.decode(token)
            self.stats.decode_seconds += time.perf_counter() - started
            self.stats.reply_tokens += 1
            self._held.append(token)
            if text:
                yield text
        else:
            self.stats.stopped = "length"
        if pending:
            yield pending.decode("utf-8", "replace")


def split_utf8(data: bytes) -> tuple[str, bytes]:
    """The text that is complete in `data`, and the bytes of a character still to come (at most 3)."""
    for held in range(min(3, len(data)) + 1):
        cut = len(data) - held
        try:
            return data[:cut].decode("utf-8"), data[cut:]
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                break
    return data.decode("utf-8", "replace"), b""
