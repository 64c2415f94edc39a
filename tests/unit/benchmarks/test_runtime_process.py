"""What benchmarks make of the measurements of processes."""

from benchmarks.runtime_process import Measurement, better


def test_of_two_processes_each_figure_counts_at_its_best() -> None:
    plan = {"cache_bytes": 7}
    first = Measurement(2.0, 10.0, {0: 5.0, 9: 1.0}, 100, 3, "avx2", plan)
    second = Measurement(1.0, 8.0, {0: 4.0, 9: 2.0}, 110, 2, "avx2", plan)
    assert better(first, second) == Measurement(1.0, 10.0, {0: 5.0, 9: 2.0}, 100, 2, "avx2", plan)
