"""Freed memory goes back once a long compilation is over, and only then."""

import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from attar.engine.compiler_memory import give_back_after_compiling

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    give_back_after_compiling.cache_clear()
    yield
    give_back_after_compiling.cache_clear()


class Library:
    def __init__(self) -> None:
        self.calls: list[int] = []

    def malloc_trim(self, pad: int) -> None:
        self.calls.append(pad)


def test_a_long_compilation_is_followed_by_giving_back(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert give_back_after_compiling()
    assert give_back_after_compiling()
    jax.monitoring.record_event_duration_secs(COMPILED, 0.1)
    jax.monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_trace_duration", 9.0)
    assert library.calls == []
    jax.monitoring.record_event_duration_secs(COMPILED, 2.0)
    assert library.calls == [0]


def test_the_event_is_jaxs(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        heard.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x * 3.25 + 1.125)(2.0)
    assert COMPILED in heard


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    library: Any = object()
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert not give_back_after_compiling()
