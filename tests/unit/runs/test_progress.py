"""The pace of a run and what its events say."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from selfalign.runs.progress import MOST_WARNINGS, Following

BEGIN = datetime(2031, 2, 3, tzinfo=UTC)


def following(*events: dict[str, Any]) -> Following:
    found = Following()
    for event in events:
        found.take(event)
    return found


def word(seconds: float, done: int, total: int = 100, unit: str = "rows") -> dict[str, Any]:
    time = (BEGIN + timedelta(seconds=seconds)).isoformat()
    return {"event": "progress", "time": time, "stage": "s", "done": done, "total": total, "unit": unit}


START = {"event": "stage_started", "stage": "s"}


def test_the_pace_is_that_between_the_words_and_tells_the_time_left() -> None:
    pace = following(START, word(0, 20), word(10, 60)).pace()
    assert pace is not None
    assert (pace.stage, pace.done, pace.total, pace.unit) == ("s", 60, 100, "rows")
    assert pace.per_second == 4
    assert pace.seconds_left == 10


def test_rows_that_were_kept_from_an_earlier_start_are_not_counted_as_speed() -> None:
    pace = following(START, word(0, 0), {"event": "run_started"}, START, word(99, 90), word(109, 95)).pace()
    assert pace is not None
    assert pace.per_second == 0.5


def test_the_pace_follows_the_last_minute() -> None:
    slow_then_fast = [word(second, second) for second in range(0, 600, 5)]
    slow_then_fast += [word(600 + second, 600 + 10 * second, 2000) for second in range(0, 70, 5)]
    pace = following(START, *slow_then_fast).pace()
    assert pace is not None
    assert pace.per_second == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(
    "events",
    [[word(0, 20)], [word(0, 20), word(9, 20)], [word(0, 20), word(0, 30)], [word(5, 1), word(0, 9)]],
)
def test_without_two_words_that_differ_there_is_no_pace(events: list[dict[str, Any]]) -> None:
    pace = following(START, *events).pace()
    assert pace is not None
    assert (pace.per_second, pace.seconds_left) == (None, None)


def test_a_stage_that_goes_on_to_count_something_else_begins_anew() -> None:
    pace = following(
        START, word(0, 0), word(5, 100), word(6, 0, unit="steps"), word(8, 4, unit="steps")
    ).pace()
    assert pace is not None
    assert (pace.unit, pace.per_second) == ("steps", 2)


def test_between_stages_there_is_no_pace() -> None:
    found = following(START, word(0, 0), {"event": "stage_finished", "stage": "s"})
    assert (found.pace(), found.stage) == (None, None)


def test_the_last_warnings_are_kept_and_why_the_run_stopped_until_it_goes_on() -> None:
    warnings = [{"event": "warning", "stage": "s", "message": str(n)} for n in range(9)]
    stopped = {"event": "run_stopped", "reason": "DataError", "message": "row 3"}
    found = following(*warnings, stopped)
    assert list(found.warnings) == [f"s: {n}" for n in range(9 - MOST_WARNINGS, 9)]
    assert found.stopped == "DataError: row 3"
    found.take({"event": "run_started"})
    assert found.stopped is None
