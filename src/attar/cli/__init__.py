"""The command line: `attar COMMAND`. The only place that prints and turns errors into exit codes."""

from attar.cli._main import main

__all__ = ["main"]
