"""The arithmetic of bounds and comparisons; nothing is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _repository_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are not installed; they run from the repository."""
    monkeypatch.syspath_prepend(str(ROOT))
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("the benchmarks are not part of this copy")
    sys.modules.pop("benchmarks", None)


def test_decoding_reads_weights_and_as_many_keys_as_layers_see() -> None:
    from benchmarks.bounds import Needs

    needs = Needs(1000, 10, 5, windows=(None, 4), kv_values=6, attention_macs=8)
    assert needs.decode_bytes(0) == 1000
    assert needs.decode_bytes(2) == 1000 + (2 + 2) * 6 * 2
    assert needs.decode_bytes(100, cache_bytes_per_value=1) == 1000 + (100 + 3) * 6
    # A query sees itself as well, which is computed but not read.
    assert needs.decode_macs(100) == 15 + (101 + 4) * 8


def test_a_prompt_s_pairs_are_those_of_the_mask() -> None:
    from benchmarks.bounds import Needs

    needs = Needs(0, 10, 5, windows=(None, 3), kv_values=6, attention_macs=2)
    pairs = sum(1 for window in (7, 3) for t in range(7) for key in range(t + 1) if t - key < window)
    assert needs.prefill_macs(7) == 7 * 10 + 5 + pairs * 2


def test_bandwidth_comes_from_a_buffer_no_larger_than_the_working_set() -> None:
    from benchmarks.roofline import Machine

    machine = Machine(1, "avx2", 100.0, {10: 9.0, 100: 5.0, 1000: 2.0})
    assert [machine.bandwidth(size) for size in (1, 10, 99, 100, 5000)] == [9.0, 9.0, 9.0, 5.0, 2.0]


def test_the_better_of_two_takes_each_figure_s_better_one() -> None:
    from benchmarks.runtime_process import Measurement, better

    first, second = Measurement(1.0, 5.0, {0: 7.0, 9: 1.0}, 30, 3), Measurement(2.0, 6.0, {0: 6.0, 9: 2.0}, 20, 4)
    assert better(first, second) == Measurement(1.0, 6.0, {0: 7.0, 9: 2.0}, 20, 3)


def test_ratios_above_one_are_better_for_attar() -> None:
    from benchmarks.bounds import Needs
    from benchmarks.llama_cpp import compare
    from benchmarks.roofline import Machine
    from benchmarks.runtime_process import Measurement

    attar = Measurement(1.0, 30.0, {0: 20.0, 2048: 8.0}, 50_000_000, 1, planned={"cache_bytes": 20_000_000})
    peer = Measurement(2.0, 10.0, {0: 10.0, 2048: 5.0}, 100_000_000, 1)
    needs = Needs(100, 10, 5, windows=(None,), kv_values=6, attention_macs=2)
    rows = compare("smollm2_q4_0", [(attar, peer)], [7.0], 30_000_000, needs, Machine(1, "avx2", 1e4, {10: 4000.0}))
    ratios = {row.name.removesuffix("_smollm2_q4_0"): (pytest.approx(row.ratio), row.passed) for row in rows}
    assert ratios["decode_empty"] == (2.0, True)
    assert ratios["decode_2048"] == (1.6, False)
    assert ratios["prefill_512"] == (3.0, True)
    assert ratios["load"] == (2.0, True)
    assert ratios["rss"] == (2.0, True)
    assert ratios["rss_plan"] == (1.4, True)
    assert ratios["int8_gain"] == (0.875, False)
    assert rows[0].share == pytest.approx(20.0 / 40.0)


def test_windows_begin_with_bos_and_leave_no_token_alone() -> None:
    from benchmarks.perplexity import make_windows

    assert make_windows(list(range(5)), None, 2) == [[0, 1], [2, 3]]
    assert make_windows(list(range(5)), 9, 3) == [[9, 0, 1], [9, 2, 3], [9, 4]]


def test_device_ratios_take_the_best_of_the_peers() -> None:
    from benchmarks.device_peers import ratios_of
    from benchmarks.runtime_process import Measurement

    def run(prefill: float, decode: float, peak: int) -> Measurement:
        return Measurement(1.0, prefill, {128: decode, 512: decode / 2}, peak, 10)

    four = {"attar": run(30, 40, 110), "genai": run(10, 20, 210), "llama.cpp": run(20, 10, 310)}
    eight = {"attar": run(60, 20, 210), "LiteRT-LM": run(40, 10, 160)}
    ratios = ratios_of([{4: four, 8: eight}])
    assert (ratios["decode_128_4_bits"], ratios["prefill_512_4_bits"]) == (2.0, 1.5)
    assert (ratios["rss_4_bits"], ratios["rss_8_bits"]) == (2.0, 0.75)
    # Without a width: attar's best figure of both against the best of all others.
    assert (ratios["decode_512"], ratios["prefill_512"], ratios["rss"]) == (2.0, 1.5, 1.5)


def test_what_a_user_can_mend_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.command import run_command
    from benchmarks.peers import PeerError
    from benchmarks.runtime_process import find_attar_run

    def ask_for_no_program() -> int:
        find_attar_run(ROOT)
        return 0

    def interrupt() -> int:
        raise KeyboardInterrupt

    with pytest.raises(PeerError, match="not a program; give attar-run's path"):
        find_attar_run(ROOT / "missing")
    with pytest.raises(SystemExit, match=r"^Error: .*not a program") as refused:
        run_command(ask_for_no_program)
    assert "\n" not in str(refused.value)
    with pytest.raises(SystemExit) as stopped:
        run_command(interrupt)
    assert (stopped.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_counts_start_at_one() -> None:
    import argparse

    from benchmarks.command import count

    assert count("3") == 3
    for text in ("0", "-1", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 on"):
            count(text)


def test_a_busy_row_is_the_median_of_ratios_within_rounds() -> None:
    from benchmarks.busy import make_row
    from benchmarks.runtime_process import Measurement

    def measured(speed: float) -> Measurement:
        return Measurement(1.0, speed, {0: speed}, 1, 1)

    pairs = [(measured(quiet), measured(busy)) for quiet, busy in ((100, 50), (200, 60), (50, 45))]
    row = make_row("smollm2_q4_0", "prefill", lambda m: m.prefill, pairs)
    assert (row.quiet, row.busy, row.ratio) == (100, 50, 0.5)


def test_the_shortest_load_counts() -> None:
    from benchmarks.llama_cpp import best_load
    from benchmarks.runtime_process import Measurement

    full, short = (Measurement(seconds, 2.0, {0: 3.0}, 1, 1) for seconds in (0.5, 0.2))
    assert best_load(full, [short]).load_seconds == 0.2
    assert best_load(short, [full]).load_seconds == 0.2
