import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from selfalign.errors import DataError
from selfalign.runs.files import (
    hash_file,
    hash_json,
    read_json,
    read_rows,
    remove,
    replacing,
    write_json,
    write_rows,
    write_text,
)


class Row(BaseModel):
    name: str
    value: float | None = None


class Box(BaseModel):
    inner: Row


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_write_that_stops_leaves_the_old_file_and_no_temporary(tmp_path, stop):
    path = tmp_path / "rows.jsonl"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half of the new")
            raise stop

    with pytest.raises(stop):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["rows.jsonl"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "model"
    for generation in ("first", "second"):
        with replacing(path) as temporary:
            (temporary / "inner").mkdir(parents=True)
            (temporary / "inner" / generation).write_text(generation)
    assert names(path / "inner") == ["second"]
    assert names(tmp_path) == ["model"]


def test_a_directory_that_stops_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "weights").write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / "weights").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert (path / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_what_a_killed_process_of_the_same_pid_left_does_not_mix_in(tmp_path):
    path = tmp_path / "model"
    with replacing(path) as temporary:
        pass_by = temporary
        temporary.mkdir()
    pass_by.mkdir()
    (pass_by / "torn").touch()
    with replacing(path) as temporary:
        temporary.mkdir()
    assert names(path) == []


def test_json_comes_back_as_it_was(tmp_path):
    value = {"b": [1, 2.5, None], "a": "naïve 词 \u2028"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert "naïve 词" in (tmp_path / "x.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_has_no_word_for_are_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "x.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": value})
    assert read_json(path) == {"loss": 1.0}
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff{}"])
def test_broken_json_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json: not valid JSON"):
        read_json(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.json: no such file"):
        read_json(tmp_path / "nothing.json")
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file"):
        next(read_rows(tmp_path / "nothing.jsonl", Row))


def test_rows_come_back_in_order_whatever_their_text(tmp_path):
    rows = [Row(name="a\nb\u2028c", value=None), Row(name="词", value=0.1), Row(name="", value=-0.0)]
    assert write_rows(tmp_path / "x.jsonl", iter(rows)) == 3
    assert list(read_rows(tmp_path / "x.jsonl", Row)) == rows
    assert (tmp_path / "x.jsonl").read_bytes().count(b"\n") == 3


def test_rows_whose_maker_fails_leave_the_old_file(tmp_path):
    def failing():
        yield Row(name="new")
        raise RuntimeError("engine died")

    path = tmp_path / "x.jsonl"
    write_rows(path, [Row(name="old")])
    with pytest.raises(RuntimeError, match="engine died"):
        write_rows(path, failing())
    assert [row.name for row in read_rows(path, Row)] == ["old"]
    assert names(tmp_path) == ["x.jsonl"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"value": 1}', "name Field required"),
        ('{"name": 3}', "name Input should be a valid string"),
        ('{"name": "a"', "Invalid JSON"),
        ("", "Invalid JSON"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_and_row_after_the_good_ones(tmp_path, line, problem):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"name": "good"}}\n{line}\n{{"name": "good"}}\n')
    rows = read_rows(path, Row)
    assert next(rows).name == "good"
    with pytest.raises(DataError, match=problem) as caught:
        next(rows)
    assert (caught.value.path, caught.value.row) == (path, 2)
    assert f"{path}, row 2: not a Row: " in str(caught.value)


def test_a_bad_inner_field_is_named_by_its_path(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"inner": {"name": null}}\n')
    with pytest.raises(DataError, match=r"not a Box: inner\.name "):
        list(read_rows(path, Box))


def test_a_file_hashes_to_the_sha256_of_its_bytes(tmp_path):
    content = b"\x00words" * 300_000
    (tmp_path / "x").write_bytes(content)
    assert hash_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@settings(deadline=None)
@given(value=st.dictionaries(st.text(), JSON, min_size=2, max_size=5))
def test_a_json_hash_does_not_depend_on_the_order_of_keys_and_survives_a_round_trip(value):
    assert hash_json(dict(reversed(value.items()))) == hash_json(value)
    assert hash_json(json.loads(json.dumps(value))) == hash_json(value)


@pytest.mark.parametrize(
    ("one", "other"), [([1, 2], [2, 1]), (1, "1"), (None, "null"), ({"a": None}, {}), (["ab"], ["a", "b"])]
)
def test_values_that_differ_hash_differently(one, other):
    assert hash_json(one) != hash_json(other)


def test_a_hash_of_nan_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        hash_json({"rate": float("nan")})


def test_removing_takes_files_trees_and_nothing(tmp_path):
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("tree", "file", "absent"):
        remove(tmp_path / name)
    assert names(tmp_path) == []
