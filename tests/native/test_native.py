"""Runs the C tests of the kernels and the thread pool, plainly and under sanitizers."""

import re
from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    ("target", "sanitizers"),
    [
        ("kernels_test", ""),
        ("kernels_test", "address,undefined"),
        ("kernels_test_avx512", ""),
        pytest.param("kernels_test_avx512", "address,undefined", marks=pytest.mark.slow),
    ],
)
def test_kernels_match_the_scalar_ones_and_exact_arithmetic(
    native_output: Callable[..., str], target: str, sanitizers: str
) -> None:
    lines = native_output(target, sanitizers).splitlines()
    assert lines
    assert all(re.fullmatch(r"(packed|avx512|avx2|neon|scalar): 0 failures", line) for line in lines)


@pytest.mark.parametrize("sanitizers", ["", "thread"])
def test_thread_pool(native_output: Callable[..., str], sanitizers: str) -> None:
    assert native_output("threads_test", sanitizers) == "threads: 0 failures\n"


@pytest.mark.parametrize("sanitizers", ["", "thread", "address,undefined"])
def test_what_xla_calls(native_output: Callable[..., str], sanitizers: str) -> None:
    assert native_output("engine_test", sanitizers) == "engine: 0 failures\n"
