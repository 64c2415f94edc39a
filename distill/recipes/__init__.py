"""Data sets that anyone can rebuild on their own machine."""
