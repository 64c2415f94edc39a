"""A conversation reads only new tokens, keeps sampled replies, and survives interruption."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from attar.runtime.chat import Conversation, Message, split_utf8
from attar.runtime.session import Logits, MemoryUsage, SessionError

END = 256


class EchoSession:
    """Remembers its tokens; its logits always ask for the next byte of a scripted reply, then for END."""

    vocab_size = 257

    def __init__(self, reply: bytes, context_length: int = 400) -> None:
        self.reply, self.context_length = reply, context_length
        self.tokens: list[int] = []
        self.prefilled: list[int] = []
        self._said = 0

    @property
    def position(self) -> int:
        return len(self.tokens)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        self.tokens += tokens
        self.prefilled.append(len(tokens))
        self._said = 0
        return self._next()

    def score(self, tokens: Sequence[int]) -> Logits:
        return np.stack([self.decode(token) for token in tokens])

    def decode(self, token: int) -> Logits:
        self.tokens.append(token)
        self._said += 1
        return self._next()

    def rewind(self, position: int) -> None:
        del self.tokens[position:]

    def memory(self) -> MemoryUsage:
        return MemoryUsage(None, None, None)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def _next(self) -> Logits:
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self.reply[self._said] if self._said < len(self.reply) else END] = 1
        return logits


class ByteTokenizer:
    """One token a byte; "$" closes a turn."""

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return [END if byte == ord("$") else byte for byte in text.encode()]

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == END else bytes([token])

    def is_end(self, token: int) -> bool:
        return token == END


def render(messages: Sequence[Message], opening: bool) -> str:
    return "".join(f"{m['role'][0]}:{m['content'].strip()}$" for m in messages) + ("a:" if opening else "")


def continue_text(messages: Sequence[Message], new: Sequence[Message]) -> str | None:
    """What a chat template adds: the closing of the last reply, the new turns, the opening of the next reply."""
    whole = render([*messages, *new], True)
    held = render(messages[:-1], True) + messages[-1]["content"].strip() if messages else ""
    return whole[len(held) :] if whole.startswith(held) else None


def talk(reply: bytes = b" hi ", context_length: int = 400) -> tuple[Conversation, EchoSession]:
    session = EchoSession(reply, context_length)
    return Conversation(session, ByteTokenizer(), lambda logits: int(logits.argmax()), continue_text), session


def test_second_turn_reads_only_what_is_new() -> None:
    conversation, session = talk()
    assert "".join(conversation.send("one", 50)) == " hi "
    assert "".join(conversation.send("two", 50)) == " hi "
    # The closing of the reply, the user turn and the opening of the next reply; the template trims replies.
    held = bytes(b"$"[0] if t == END else t for t in session.tokens)
    assert held == b"u:one$a: hi $u:two$a: hi "
    assert session.prefilled == [len("u:one$a:"), len("$u:two$a:")]
    assert conversation.stats.reused_tokens == len("u:one$a: hi ")


def test_template_that_rewrites_turns_is_refused() -> None:
    conversation, session = talk()
    conversation.continue_text = lambda messages, new: None if messages else render(new, True)
    list(conversation.send("one", 5))
    held = list(session.tokens)
    with pytest.raises(SessionError, match="rewrites earlier turns"):
        list(conversation.send("two", 5))
    assert session.tokens == held


def test_interrupted_reply_stays() -> None:
    conversation, session = talk(b"abcdef")
    stream = conversation.send("x", 50)
    assert [next(stream), next(stream)] == ["a", "b"]
    stream.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": "ab"}
    assert conversation.stats.stopped == "interrupt"
    assert "".join(conversation.send("y", 50)) == "abcdef"
    assert session.tokens[: len("u:x$a:ab")] == ByteTokenizer().encode("u:x$a:ab")


def test_turn_that_does_not_fit_changes_nothing() -> None:
    conversation, session = talk(context_length=20)
    with pytest.raises(SessionError, match="needs 36 tokens and 20 of 20 are left"):
        list(conversation.send("y" * 31, 50))
    assert session.tokens == []
    assert conversation.messages == []
    assert "".join(conversation.send("x", 50)) == " hi "


def test_full_context_ends_the_reply() -> None:
    conversation, _ = talk(b"abcdefghijkl", context_length=10)
    assert "".join(conversation.send("x", 50)) == "abcd"
    assert conversation.stats.stopped == "context"


def test_length_limit_ends_the_reply() -> None:
    conversation, _ = talk(b"abcdef")
    assert "".join(conversation.send("x", 3)) == "abc"
    assert conversation.stats.stopped == "length"


def test_base_model_continues_raw_text() -> None:
    conversation, session = talk(b"b")
    conversation.continue_text = None
    assert "".join(conversation.send("a", 5)) == "b"
    assert "".join(conversation.send("c", 5)) == "b"
    assert bytes(session.tokens) == b"abcb"


def test_a_sliding_session_is_trusted_with_a_full_context() -> None:
    conversation, session = talk(b"abcdefghijkl", context_length=10)
    conversation.slides = True
    assert "".join(conversation.send("x", 12)) == "abcdefghijkl"
    assert conversation.stats.stopped == "length"
    held = session.position
    del session.tokens[4:]  # as a slide would, between two turns
    list(conversation.send("y", 3))
    assert conversation.stats.reused_tokens == 4 < held


def test_reset_keeps_the_system_message() -> None:
    conversation, session = talk()
    conversation.messages = [{"role": "system", "content": "be brief"}]
    list(conversation.send("one", 5))
    conversation.reset()
    assert session.position == 0
    assert conversation.messages == [{"role": "system", "content": "be brief"}]
    list(conversation.send("two", 5))
    assert bytes(t for t in session.tokens if t != END).startswith(b"s:be briefu:two")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"abc", ("abc", b"")),
        ("é".encode()[:1], ("", b"\xc3")),
        (b"x" + "€".encode()[:2], ("x", b"\xe2\x82")),
        ("😀".encode()[:3], ("", b"\xf0\x9f\x98")),
        (b"\xff\xfe", ("\ufffd\ufffd", b"")),
        (b"", ("", b"")),
    ],
)
def test_split_utf8_waits_for_whole_characters(data: bytes, expected: tuple[str, bytes]) -> None:
    assert split_utf8(data) == expected


def test_multibyte_character_is_yielded_whole() -> None:
    conversation, _ = talk("né😀".encode())
    assert list(conversation.send("x", 50)) == ["n", "é", "😀"]
