import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from selfalign.errors import DataError
from selfalign.runs.rows import PartialRows


class Row(BaseModel):
    key: str
    text: str


ROWS = [Row(key=f"k{i}", text=text) for i, text in enumerate(("one", "zwei\n\u2028", "三", "", "\x00five"))]
KEYS = [row.key for row in ROWS]
LINES = b"".join(row.model_dump_json().encode() + b"\n" for row in ROWS)


def opened(path):
    return PartialRows(path, Row, lambda row: row.key)


def test_rows_are_there_as_soon_as_they_are_appended(tmp_path):
    path = tmp_path / "partial" / "x.jsonl"
    with opened(path) as rows:
        assert len(rows) == 0
        rows.append(ROWS[0])
        assert path.read_bytes() == ROWS[0].model_dump_json().encode() + b"\n"
        assert "k0" in rows
        assert "k1" not in rows
        assert len(rows) == 1


def test_rows_are_read_back_by_key_even_between_appends(tmp_path):
    with opened(tmp_path / "x.jsonl") as rows:
        for row in ROWS:
            rows.append(row)
            assert rows.read("k0") == ROWS[0]
        assert [rows.read(key) for key in reversed(KEYS)] == ROWS[::-1]
    assert (tmp_path / "x.jsonl").read_bytes() == LINES


def test_a_row_that_was_made_twice_is_refused_and_not_written(tmp_path):
    path = tmp_path / "x.jsonl"
    with opened(path) as rows:
        rows.append(ROWS[0])
    with opened(path) as rows, pytest.raises(ValueError, match="'k0' was made twice"):
        rows.append(Row(key="k0", text="another"))
    assert path.read_bytes().count(b"\n") == 1


def test_rows_are_written_in_the_order_asked_for_byte_for_byte(tmp_path):
    shuffled = random.Random(3).sample(ROWS, len(ROWS))  # noqa: S311 -- an order, no secret
    assert shuffled != ROWS
    with opened(tmp_path / "x.jsonl") as rows:
        for row in shuffled:
            rows.append(row)
        rows.write_ordered(tmp_path / "final.jsonl", KEYS)
        rows.write_ordered(tmp_path / "some.jsonl", ["k2"])
    assert (tmp_path / "final.jsonl").read_bytes() == LINES
    assert (tmp_path / "some.jsonl").read_bytes() == ROWS[2].model_dump_json().encode() + b"\n"


def test_rows_are_added_to_an_open_file_and_more_may_follow(tmp_path):
    with opened(tmp_path / "x.jsonl") as rows, (tmp_path / "all.jsonl").open("wb") as file:
        for row in ROWS[:2]:
            rows.append(row)
        rows.copy_ordered(file, ["k1"])
        for row in ROWS[2:]:
            rows.append(row)
        rows.copy_ordered(file, ["k0", *KEYS[2:]])
    one, two, *rest = LINES.splitlines(keepends=True)
    assert (tmp_path / "all.jsonl").read_bytes() == two + one + b"".join(rest)
    assert (tmp_path / "x.jsonl").read_bytes() == LINES


def test_a_key_without_a_row_leaves_no_final_file(tmp_path):
    with opened(tmp_path / "x.jsonl") as rows, pytest.raises(KeyError):
        rows.write_ordered(tmp_path / "final.jsonl", ["k0"])
    assert not (tmp_path / "final.jsonl").exists()


def test_a_torn_last_row_is_cut_off_even_where_it_is_whole_but_for_its_line_break(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES[:-1])
    with opened(path) as rows:
        assert len(rows) == len(ROWS) - 1
        assert "k4" not in rows
    assert path.read_bytes() == b"".join(LINES.splitlines(keepends=True)[:-1])


@pytest.mark.parametrize("damage", [b'{"key": "k1"}\n', b"\x00\x00\x00\n", b'{"key": "k1", "te\n', b"\n"])
def test_a_damaged_complete_row_is_an_error_that_names_it_and_keeps_the_file(tmp_path, damage):
    path = tmp_path / "x.jsonl"
    first, _, *rest = LINES.splitlines(keepends=True)
    content = first + damage + b"".join(rest)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged row.*; remove the row") as caught, opened(path):
        pass
    assert (caught.value.path, caught.value.row) == (path, 2)
    assert path.read_bytes() == content


def finish(path, final, order):
    """Open, make what is missing in this order, and write the final file; as a stage does."""
    with opened(path) as rows:
        for place in order:
            if ROWS[place].key not in rows:
                rows.append(ROWS[place])
        rows.sync()
        rows.write_ordered(final, KEYS)
    return final.read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    kills=st.lists(st.integers(0, len(LINES)), min_size=1, max_size=3),
    order=st.permutations(range(len(ROWS))),
)
def test_kills_at_any_byte_give_the_same_final_file(tmp_path_factory, kills, order):
    folder = tmp_path_factory.mktemp("killed")
    path, final = folder / "x.jsonl", folder / "final.jsonl"
    path.write_bytes(LINES)
    for kill in kills:
        path.write_bytes(path.read_bytes()[:kill])
        assert finish(path, final, order) == LINES
