"""What every benchmark's command line shares: one line for what the user can mend, and counts that are at least 1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from attar.cli._errors import one_line_errors
from benchmarks.peers import PeerError


def run_command(main: Callable[[], int]) -> NoReturn:
    """Exits with main's status; 1 and one line for attar's, the peers' and the system's errors; 130 for Ctrl-C."""
    try:
        with one_line_errors():
            sys.exit(main())
    except (PeerError, click.ClickException) as error:
        sys.exit(f"Error: {error}")
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)


def count(text: str) -> int:
    """An argparse type: a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)
