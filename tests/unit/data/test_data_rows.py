import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from selfalign.data import read_rows
from selfalign.errors import DataError

ROWS = [{"a": 1}, {"b": "zwei\u2028drei"}, {}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def write(folder: Path, content: bytes, name: str = "data.txt") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES + b"\n",
        LINES.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + LINES,
        gzip.compress(LINES),
        gzip.compress(b"\xef\xbb\xbf" + LINES),
        json.dumps(ROWS).encode(),
        b"\xef\xbb\xbf\n \n" + json.dumps(ROWS, indent=2).encode(),
        gzip.compress(json.dumps(ROWS).encode()),
    ],
)
def test_lines_and_arrays_are_recognised_by_content_whatever_the_name(tmp_path, content):
    assert list(read_rows(write(tmp_path, content))) == list(enumerate(ROWS, start=1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), json_values, max_size=3), min_size=1, max_size=4))
def test_any_objects_survive_the_way_through_lines_array_and_gzip(tmp_path, rows):
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    for content in (lines, gzip.compress(lines), json.dumps(rows).encode()):
        assert [row for _, row in read_rows(write(tmp_path, content))] == rows


def test_blank_lines_are_skipped_but_counted(tmp_path):
    assert list(read_rows(write(tmp_path, b'\n{"a": 1}\n  \n\n{"a": 2}\n'))) == [(2, {"a": 1}), (5, {"a": 2})]


def test_json_lines_are_streamed(tmp_path):
    rows = read_rows(write(tmp_path, b'{"a": 1}\nbroken\n'))
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(DataError, match="row 2"):
        next(rows)


@pytest.mark.parametrize(
    ("content", "row", "message"),
    [
        (b"", None, "no rows"),
        (b"\n \n", None, "no rows"),
        (b"[]", None, "no rows"),
        (gzip.compress(b""), None, "no rows"),
        (b'{"a": 1}\n{"a": }\n', 2, "line 2, column 7"),
        (b'{"a": 1}\n\n{"a": 1\n', 3, "line 3, column 8"),
        (b'\n\n[{"a": 1},\n{"a" 1}]', None, "line 4, column 6"),
        (b'{"a": 1}\n[1]\n', 2, "a list; it must be an object"),
        (b'[{"a": 1}, null]', 2, "null; it must be an object"),
        (b'["text"]', 1, "text; it must be an object"),
        (b'{"a": 1}\n{"a": "\xff"}\n', 2, "byte 0xff on line 2 is not UTF-8"),
        (b'[{"a": 1},\n{"a": "\xff"}]', None, "byte 0xff on line 2 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), 1, "not UTF-8"),
        (b"\x1f\x8bnot gzip at all", 1, "gzip file is damaged or cut off"),
        (b'{"a": ' + b"9" * 5000 + b"}", 1, "too long"),
        (b'{"a": ' + b"[" * 200_000, 1, "too deep"),
    ],
)
def test_bad_input_names_file_row_and_way_out(tmp_path, content, row, message):
    location = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(location))
    assert caught.value.path == location
    assert caught.value.row == row
    assert ";" in str(caught.value)


def test_a_gzip_file_that_was_cut_off_is_refused_rather_than_read_in_part(tmp_path):
    location = write(tmp_path, gzip.compress(LINES)[:-4])
    with pytest.raises(DataError, match=r"row \d: the gzip file is damaged or cut off .*; fetch it again"):
        list(read_rows(location))


def test_missing_file_and_directory_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        next(read_rows(str(tmp_path / "nothing.jsonl")))
    with pytest.raises(DataError, match="is a directory"):
        next(read_rows(str(tmp_path)))


def test_hub_location_names_data_set_and_split(monkeypatch):
    calls = []

    def load_dataset(name, split):
        calls.append((name, split))
        return iter(ROWS)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert list(read_rows("hub:owner/name")) == list(enumerate(ROWS, start=1))
    assert list(read_rows("hub:owner/name:validation[:3]")) == list(enumerate(ROWS, start=1))
    assert calls == [("owner/name", "train"), ("owner/name", "validation[:3]")]


def test_hub_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"selfalign\[hub\]"):
        next(read_rows("hub:owner/name"))


@pytest.mark.parametrize("error", [ValueError('Unknown split "x"'), ConnectionError("no route")])
def test_hub_data_set_that_cannot_be_loaded_is_a_data_error(monkeypatch, error):
    def load_dataset(name, split):
        raise error

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=str(error)):
        next(read_rows("hub:owner/name:x"))


def test_hub_location_without_a_name_is_refused():
    with pytest.raises(DataError, match="hub:owner/name"):
        next(read_rows("hub:"))


def test_parquet_is_read_whatever_its_name(tmp_path):
    rows = [{"a": [{"role": "user"}]}, {"a": []}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.json")
    assert list(read_rows(str(tmp_path / "rows.json"))) == [(1, rows[0]), (2, rows[1])]
    (tmp_path / "cut").write_bytes((tmp_path / "rows.json").read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged"):
        list(read_rows(str(tmp_path / "cut")))
