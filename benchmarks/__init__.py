"""Measurements against a baseline or a peer taken in the same run; each is `python -m benchmarks.NAME`."""
