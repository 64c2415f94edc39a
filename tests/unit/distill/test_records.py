"""Every kind of file gives the same records, and what is wrong in one is named by file and line or row."""

import builtins
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from attar.distill.records import DataError, Record, find_files, read_records

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "completion": "b"},
    {"prompt": "c"},
    {"text": "a document\nof two lines"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
    {"question": "What is 1+1?", "answer": "#### 2"},
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def without_place(records: list[Record]) -> list[tuple[object, ...]]:
    return [(r.line, r.prompt, r.completion, r.messages, r.text) for r in records]


def test_parquet_gives_the_records_of_jsonl(tmp_path: Path) -> None:
    keys = {key for row in ROWS for key in row}
    table = pyarrow.Table.from_pylist([{key: row.get(key) for key in keys} | {"other": 1} for row in ROWS])
    parquet.write_table(table, tmp_path / "d.parquet", row_group_size=2)
    expected = list(read_records(jsonl(tmp_path / "d.jsonl", ROWS)))
    actual = list(read_records(tmp_path / "d.parquet"))
    assert without_place(actual) == without_place(expected)
    assert actual[2].text == "a document\nof two lines"
    assert (expected[1].place, actual[1].place) == (f"{tmp_path}/d.jsonl:2", f"{tmp_path}/d.parquet: row 2")


def test_bad_parquet_is_named_by_row_or_columns(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", None], "completion": ["b", "c"]}), path)
    with pytest.raises(DataError, match=r"d\.parquet: row 2: must have 'prompt' .*got \['completion'\]"):
        list(read_records(path))
    parquet.write_table(pyarrow.table({"prompt": [1]}), path)
    with pytest.raises(DataError, match=r"row 1: 'prompt' must be a string, got int"):
        list(read_records(path))
    parquet.write_table(pyarrow.table({"story": ["a"]}), path)
    with pytest.raises(DataError, match=r"d\.parquet: must have columns .*got \['story'\]"):
        list(read_records(path))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"d\.parquet: cannot be read as Parquet"):
        list(read_records(path))
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(read_records(tmp_path / "absent.parquet"))


def test_parquet_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_pyarrow(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name=name)
        return importing(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(DataError, match=r"pip install 'attar\[parquet\]'"):
        list(read_records(tmp_path / "d.parquet"))


def test_a_text_file_is_one_document_or_those_between_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("\none\ntwo\n\n \t\n\nthree", encoding="utf-8")
    assert [record.text for record in read_records(path)] == ["\none\ntwo\n\n \t\n\nthree"]
    parts = list(read_records(path, "blank-line"))
    assert [(record.line, record.text) for record in parts] == [(2, "one\ntwo"), (7, "three")]
    path.write_text(" \n\n")
    assert list(read_records(path)) == list(read_records(path, "blank-line")) == []


def test_bytes_of_a_text_file_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes(b"fine\nb\xffd")
    with pytest.raises(DataError, match=r"d\.txt:2: is not UTF-8 text \(byte 6 of the file\)"):
        list(read_records(tmp_path / "d.txt"))


def test_patterns_name_files_in_order(tmp_path: Path) -> None:
    for name in ("b1.jsonl", "b0.jsonl", "a.txt", "strange[1].jsonl"):
        (tmp_path / name).touch()
    found = find_files([f"{tmp_path}/b*.jsonl", f"{tmp_path}/a.txt", f"{tmp_path}/strange[1].jsonl"])
    assert [path.name for path in found] == ["b0.jsonl", "b1.jsonl", "a.txt", "strange[1].jsonl"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("*.parquet", "matches no file"), ("folder", "is a folder"), ("d.csv", r"must be named \*\.jsonl")],
)
def test_patterns_that_name_nothing_readable(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "d.csv").touch()
    with pytest.raises(DataError, match=message):
        find_files([str(tmp_path / pattern)])
