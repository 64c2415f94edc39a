"""attar distils a large language model into a small one and runs it on a phone."""

__version__ = "0.1.0"
