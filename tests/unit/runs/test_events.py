import json
from datetime import UTC, datetime

import pytest

from selfalign.runs import events
from selfalign.runs.events import EventLog, read_events


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told otherwise."""
    now = [1000.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    return now


def test_events_are_written_as_they_happen_with_their_time(tmp_path):
    path = tmp_path / "events.jsonl"
    before = datetime.now(UTC).replace(microsecond=0)
    log = EventLog(path)
    log.emit("stage_started", stage="sft/train")
    (event,) = read_events(path)
    assert event["event"] == "stage_started"
    assert event["stage"] == "sft/train"
    assert before <= datetime.fromisoformat(event["time"]) <= datetime.now(UTC)


def test_a_later_log_goes_on_in_the_same_file(tmp_path):
    for number in range(3):
        EventLog(tmp_path / "events.jsonl").emit("run_started", number=number)
    assert [event["number"] for event in read_events(tmp_path / "events.jsonl")] == [0, 1, 2]


def test_the_listener_hears_what_is_written(tmp_path):
    heard = []
    EventLog(tmp_path / "events.jsonl", heard.append).emit("warning", stage="x", message="wörds")
    assert heard == list(read_events(tmp_path / "events.jsonl"))


def test_progress_is_heard_at_once_but_written_every_few_seconds(tmp_path, clock):
    heard = []
    log = EventLog(tmp_path / "events.jsonl", heard.append)
    for done in range(10):
        log.emit("progress", stage="x", done=done, total=10, unit="rows")
        clock[0] += 2.0
    assert [event["done"] for event in heard] == list(range(10))
    assert [event["done"] for event in read_events(tmp_path / "events.jsonl")] == [0, 3, 6, 9]


def test_other_events_are_never_held_back(tmp_path, clock):
    log = EventLog(tmp_path / "events.jsonl")
    for name in ("progress", "warning", "stage_finished", "warning"):
        log.emit(name)
    written = [event["event"] for event in read_events(tmp_path / "events.jsonl")]
    assert written == ["progress", "warning", "stage_finished", "warning"]


@pytest.mark.parametrize("torn", ['{"time": "2026', '{"message": "z', "\x00\x00", '{"event": "x"'])
def test_a_last_line_torn_by_a_kill_is_passed_over(tmp_path, torn):
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("run_started")
    with path.open("a") as file:
        file.write(torn)
    assert [event["event"] for event in read_events(path)] == ["run_started"]


def test_a_last_line_torn_inside_a_character_is_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("run_started")
    path.write_bytes(path.read_bytes() + json.dumps({"message": "词"}, ensure_ascii=False).encode()[:-3])
    assert len(list(read_events(path))) == 1


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x1e", "\x0b", "\n", "\r"])
def test_a_message_with_any_kind_of_line_break_comes_back_whole(tmp_path, mark):
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("warning", message=f"one{mark}two")
    assert [event["message"] for event in read_events(path)] == [f"one{mark}two"]


def test_a_run_without_events_has_none(tmp_path):
    assert list(read_events(tmp_path / "events.jsonl")) == []
