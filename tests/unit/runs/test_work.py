import pytest
from pydantic import BaseModel

from selfalign.runs import work as work_module
from selfalign.runs.events import EventLog, read_events
from selfalign.runs.work import Work


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


def test_items_that_share_a_key_are_refused_before_anything_is_made(work):
    with pytest.raises(ValueError, match="iteration-1/double: two items share a key"):
        map_rows(work, [1, 2, 1], doubled)
    assert not work.scratch("rows.jsonl").exists()


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


def test_a_warning_goes_to_the_manifest_and_to_the_log(work):
    work.warn("few prompts")
    assert work.warnings == ["few prompts"]
    (event,) = read_events(work.directory / "events.jsonl")
    assert (event["event"], event["stage"], event["message"]) == ("warning", work.stage, "few prompts")


def test_unfinished_work_stands_apart_from_the_outputs_under_the_fingerprint(work):
    assert work.scratch("rows.jsonl") == work.directory / "partial" / "double.0123.rows.jsonl"
    assert work.output("rows.jsonl") == work.directory / "rows.jsonl"
