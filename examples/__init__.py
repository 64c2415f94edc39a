"""Runnable examples; each prints what it did and the seconds it took."""
