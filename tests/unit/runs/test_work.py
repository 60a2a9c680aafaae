import shutil
from weakref import WeakSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from selfalign.runs import work as work_module
from selfalign.runs.events import EventLog, read_events
from selfalign.runs.work import Repeatable, Work


class Row(BaseModel):
    key: str
    double: int


@pytest.fixture
def work(tmp_path):
    return Work("iteration-1/double", tmp_path, "double.0123", EventLog(tmp_path / "events.jsonl"))


def doubled(items):
    for item in items:
        yield Row(key=f"k{item}", double=2 * item)


def map_rows(work, items, apply):
    work.map_rows("rows.jsonl", items, apply, key=lambda i: f"k{i}", record=Row, row_key=lambda row: row.key)
    return [Row.model_validate_json(line).double for line in work.output("rows.jsonl").open()]


def test_the_rows_stand_in_the_order_of_the_items_whatever_order_they_were_made_in(work):
    assert map_rows(work, [3, 1, 2], lambda shard: doubled(sorted(shard))) == [6, 2, 4]


def test_no_items_give_an_empty_file(work):
    assert map_rows(work, [], doubled) == []


def test_a_stopped_map_goes_on_with_the_missing_items_alone(work):
    def stopping(shard):
        yield from doubled(shard[:2])
        raise KeyboardInterrupt

    asked = []

    def asking(shard):
        asked.extend(shard)
        return doubled(shard)

    with pytest.raises(KeyboardInterrupt):
        map_rows(work, [1, 2, 3, 4], stopping)
    assert not work.output("rows.jsonl").exists()
    assert map_rows(work, [1, 2, 3, 4], asking) == [2, 4, 6, 8]
    assert asked == [3, 4]


def test_a_map_whose_rows_are_all_made_asks_for_nothing(work):
    expected = map_rows(work, [1, 2], doubled)

    def never(shard):
        raise AssertionError("nothing is left to make")

    assert map_rows(work, [1, 2], never) == expected


def test_items_go_out_in_shards_and_every_one_once(work, monkeypatch):
    monkeypatch.setattr(work_module, "SHARD_SIZE", 3)
    shards = []

    def sharded(shard):
        shards.append(list(shard))
        return doubled(shard)

    assert map_rows(work, list(range(8)), sharded) == [2 * i for i in range(8)]
    assert shards == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("size", [2, 1024])
def test_items_that_share_a_key_are_refused_before_anything_is_made(work, monkeypatch, size):
    monkeypatch.setattr(work_module, "SHARD_SIZE", size)
    with pytest.raises(ValueError, match="iteration-1/double: two items share a key: 'k1'"):
        map_rows(work, [1, 2, 3, 4, 1], doubled)
    assert list(work.directory.iterdir()) == []


def test_items_that_can_be_gone_through_only_once_are_refused(work):
    with pytest.raises(TypeError, match="give a list or `Repeatable`"):
        map_rows(work, iter([1, 2]), doubled)
    assert not work.output("rows.jsonl").exists()


class Item:
    """Something of which can be seen whether it is in memory."""

    def __init__(self, number):
        self.number = number


@pytest.mark.parametrize("count", [40, 400])
def test_no_more_than_a_shard_of_items_is_in_memory_however_many_there_are(work, monkeypatch, count):
    monkeypatch.setattr(work_module, "SHARD_SIZE", 8)
    alive = WeakSet()
    most = 0

    def items():
        nonlocal most
        for number in range(count):
            item = Item(number)
            alive.add(item)
            most = max(most, len(alive))
            yield item

    work.map_rows(
        "rows.jsonl",
        Repeatable(items),
        lambda shard: (row for item in shard for row in doubled([item.number])),
        key=lambda item: f"k{item.number}",
        record=Row,
        row_key=lambda row: row.key,
    )
    rows = [Row.model_validate_json(line).double for line in work.output("rows.jsonl").open()]
    assert rows == [2 * number for number in range(count)]
    assert 8 <= most <= 9  # of the shard before, the generator still holds the last


def stopping_after(rows):
    """What makes so many rows and is then interrupted."""
    made = []

    def apply(shard):
        for row in doubled(shard):
            if len(made) == rows:
                raise KeyboardInterrupt
            made.append(row)
            yield row

    return apply


def asking(asked):
    """What makes rows and remembers the items that they were asked of."""

    def apply(shard):
        asked.append(list(shard))
        return doubled(shard)

    return apply


@pytest.mark.parametrize(
    ("stopped", "asked"),
    [(1, [[1, 2], [3, 4, 5], [6, 7]]), (3, [[3, 4, 5], [6, 7]]), (5, [[5], [6, 7]]), (7, [[7]])],
)
def test_a_map_stopped_inside_a_shard_goes_on_there(work, monkeypatch, stopped, asked):
    monkeypatch.setattr(work_module, "SHARD_SIZE", 3)
    with pytest.raises(KeyboardInterrupt):
        map_rows(work, list(range(8)), stopping_after(stopped))
    left = []
    assert map_rows(work, list(range(8)), asking(left)) == [2 * i for i in range(8)]
    assert left == asked


def test_a_shard_that_was_done_elsewhere_is_not_done_again(work, tmp_path, monkeypatch):
    monkeypatch.setattr(work_module, "SHARD_SIZE", 3)
    other = Work(work.stage, tmp_path / "other", work.partial_prefix, EventLog(tmp_path / "events.jsonl"))
    expected = map_rows(other, list(range(8)), doubled)
    (shards,) = (other.directory / "partial").iterdir()
    found = work.directory / "partial" / shards.name
    found.mkdir(parents=True)
    shutil.copy(shards / "000001.jsonl", found)
    left = []
    assert map_rows(work, list(range(8)), asking(left)) == expected
    assert left == [[0, 1, 2], [6, 7]]


def test_rows_that_were_made_in_shards_of_another_size_do_no_harm(work, monkeypatch):
    monkeypatch.setattr(work_module, "SHARD_SIZE", 3)
    with pytest.raises(KeyboardInterrupt):
        map_rows(work, list(range(8)), stopping_after(5))
    monkeypatch.setattr(work_module, "SHARD_SIZE", 2)
    assert map_rows(work, list(range(8)), doubled) == [2 * i for i in range(8)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_kill_at_any_byte_of_any_shard_loses_and_doubles_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("killed")
    work = Work("double", folder, "double.0123", EventLog(folder / "events.jsonl"))
    numbers = data.draw(st.permutations(range(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_module, "SHARD_SIZE", 3)
        expected = map_rows(work, numbers, lambda shard: doubled(sorted(shard)))
        shards = sorted((folder / "partial").glob("*/*.jsonl"))
        assert [len(path.read_bytes().splitlines()) for path in shards] == [3, 3, 2]
        place = data.draw(st.integers(0, 2))
        content = shards[place].read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        shards[place].write_bytes(content[:cut])
        for path in shards[place + 1 :]:
            path.unlink()
        work.output("rows.jsonl").unlink()
        left = []
        assert map_rows(work, numbers, asking(left)) == expected == [2 * number for number in numbers]
    kept = content[:cut].count(b"\n") + 3 * place
    assert sum(map(len, left)) == 8 - kept


def test_a_row_that_no_item_asked_for_is_an_error(work):
    with pytest.raises(ValueError, match="a row 'k9' was made of no item"):
        map_rows(work, [1, 2], lambda shard: doubled([*shard, 9]))
    assert not work.output("rows.jsonl").exists()


def test_an_item_left_out_is_an_error_that_names_it_and_leaves_no_output(work):
    with pytest.raises(ValueError, match="no row was made for 'k2'"):
        map_rows(work, [1, 2, 3], lambda shard: doubled(item for item in shard if item != 2))
    assert not work.output("rows.jsonl").exists()


def test_a_row_made_twice_is_an_error(work):
    with pytest.raises(ValueError, match="'k1' was made twice"):
        map_rows(work, [1, 2], lambda shard: doubled([*shard, *shard]))


def test_progress_counts_what_was_there_before(tmp_path):
    heard = []
    work = Work("double", tmp_path, "double.0123", EventLog(tmp_path / "events.jsonl", heard.append))
    map_rows(work, [1, 2], doubled)
    assert [(event["done"], event["total"]) for event in heard] == [(0, 2), (1, 2), (2, 2)]
    heard.clear()
    map_rows(work, [1, 2], doubled)
    assert [(event["done"], event["total"]) for event in heard] == [(2, 2)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told otherwise."""
    now = [1000.0]
    monkeypatch.setattr(work_module.time, "monotonic", lambda: now[0])
    return now


def test_of_many_rows_a_thousandth_each_is_said_and_always_the_last(tmp_path, clock):
    heard = []
    work = Work("double", tmp_path, "double.0123", EventLog(tmp_path / "events.jsonl", heard.append))
    map_rows(work, list(range(4321)), doubled)
    done = [event["done"] for event in heard]
    assert done == [*range(0, 4321, 5), 4321]
    assert {event["total"] for event in heard} == {4321}


def test_rows_that_take_their_time_are_each_said(tmp_path, clock):
    heard = []
    work = Work("double", tmp_path, "double.0123", EventLog(tmp_path / "events.jsonl", heard.append))

    def slowly(shard):
        for row in doubled(shard):
            clock[0] += 1.0
            yield row

    map_rows(work, list(range(4321)), slowly)
    assert [event["done"] for event in heard] == list(range(4322))


def test_a_warning_goes_to_the_manifest_and_to_the_log(work):
    work.warn("few prompts")
    assert work.warnings == ["few prompts"]
    (event,) = read_events(work.directory / "events.jsonl")
    assert (event["event"], event["stage"], event["message"]) == ("warning", work.stage, "few prompts")


def test_unfinished_work_stands_apart_from_the_outputs_under_the_fingerprint(work):
    assert work.scratch("rows.jsonl") == work.directory / "partial" / "double.0123.rows.jsonl"
    assert work.output("rows.jsonl") == work.directory / "rows.jsonl"
