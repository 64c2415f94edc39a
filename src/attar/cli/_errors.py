"""Turns what went wrong into one line and an exit code: 1 refused, 2 usage, 130 interrupted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Reports attar's own exceptions, missing extras and file-system errors as one line; lets bugs show themselves."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(130) from None
    except OSError as error:
        raise click.ClickException(_describe_os_error(error)) from None
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("attar"):
            raise
        raise click.ClickException(f"{error.name} is not installed; run: pip install 'attar[train,export]'") from None
    except Exception as error:
        if not type(error).__module__.startswith("attar."):
            raise
        raise click.ClickException(" ".join(str(error).split())) from None


def _describe_os_error(error: OSError) -> str:
    place = error.filename2 or error.filename
    reason = error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError) and place and not os.path.isdir(place):
        reason = "is a file where a folder is wanted; choose another place"
    return f"{place}: {reason}" if place else reason
