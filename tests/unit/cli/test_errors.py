"""Errors of the file system in one line that says what to do."""

from pathlib import Path

import click
import pytest

from attar.cli._errors import one_line_errors


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "out"
    file.touch()
    with pytest.raises(click.ClickException) as raised, one_line_errors():
        (file / below).mkdir()
    assert raised.value.message == f"{file / below}: is a file where a folder is wanted; choose another place"
