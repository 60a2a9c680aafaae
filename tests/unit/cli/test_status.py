"""What `status`, `ls` and `report` say, to people, into a log, and to programs."""

import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from selfalign.cli.console import Narrator
from selfalign.cli.tables import effect_table
from selfalign.recipes import load_recipe
from selfalign.report.effects import Effect
from selfalign.runs.files import write_json
from selfalign.runs.lock import hold


@pytest.fixture
def begun(recipe):
    """A run that was stopped before its first stage."""
    root = Path("runs/mine")
    write_json(root / "recipe.resolved.json", load_recipe(recipe).model_dump(mode="json"))
    return root


def tell(root, *events):
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (root / "events.jsonl").write_text(lines, encoding="utf-8")


def word(seconds_ago, done):
    time = (NOW - timedelta(seconds=seconds_ago)).isoformat()
    return {
        "event": "progress",
        "time": time,
        "stage": "sft/train",
        "done": done,
        "total": 400,
        "unit": "steps",
    }


NOW = datetime(2026, 1, 1, tzinfo=UTC)
STARTED = [{"event": "run_started"}, {"event": "stage_started", "stage": "sft/train"}]


def test_status_tells_the_pace_of_what_runs_and_the_time_left(call, begun):
    tell(begun, *STARTED, word(30, 0), word(10, 100))
    with hold(begun):
        answer = call("status", str(begun))
        told = json.loads(call("status", str(begun), "--json").out)
    assert "now: sft/train, 100 of 400 steps, 5 a second, 1 min 00 s left, " in answer.out
    assert told["now"]["per_second"] == pytest.approx(5)
    assert told["now"]["seconds_left"] == pytest.approx(60)
    assert f"pid {os.getpid()}" in told["held_by"]


def test_status_tells_where_a_run_stopped_and_why(call, begun):
    stopped = {"event": "run_stopped", "reason": "TrainingError", "message": "the loss is [not] finite"}
    tell(begun, *STARTED, word(30, 0), stopped)
    answer = call("status", str(begun))
    assert "stopped at: sft/train, 0 of 400 steps, " in answer.out
    assert "! TrainingError: the loss is [not] finite" in answer.out
    assert (
        json.loads(call("status", str(begun), "--json").out)["stopped"]
        == "TrainingError: the loss is [not] finite"
    )


def test_status_tells_what_each_stage_needs_and_no_column_is_cut(call, begun, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = call("status", str(begun)).out
    rows = {line.split()[0]: line for line in out.splitlines() if "/" in line}
    assert "40 generations, 20,480 new tokens" in rows["iteration-1/candidates"]
    assert "training tokens" in rows["sft/train"]
    assert "…" not in out
    assert "\x1b" not in out


@pytest.mark.parametrize("text", ["7\n", '{"event": "progress"}\n', '{"event": "warning"}\n', "{half a"])
def test_status_passes_over_events_that_can_not_be_read(call, begun, text):
    (begun / "events.jsonl").write_text(text)
    answer = call("status", str(begun))
    assert answer.code == 0
    assert "0 of 23 stages done" in answer.out


@pytest.mark.parametrize("text", ["", "{", "null", '{"stage": "sft/train"}'])
def test_status_shows_a_stage_with_a_damaged_manifest_as_stale(call, begun, text):
    (begun / "sft/manifests").mkdir(parents=True)
    (begun / "sft/manifests/train.json").write_text(text)
    answer = call("status", str(begun))
    assert answer.code == 0
    assert "sft/manifests/train.json is damaged" in answer.out
    assert "sft/manifests/train.json" in answer.err


def test_report_names_what_can_not_be_read_and_succeeds(call, begun):
    (begun / "sft/manifests").mkdir(parents=True)
    (begun / "sft/manifests/train.json").write_text("{")
    answer = call("report", str(begun))
    assert (answer.code, answer.out) == (0, f"wrote {begun}/report.html\n")
    assert "! sft/manifests/train.json: not valid JSON" in answer.err
    told = json.loads(call("report", str(begun), "--json").out)
    assert told["report"] == f"{begun}/report.html"
    assert told["bytes"] == (begun / "report.html").stat().st_size
    assert told["problems"][0].startswith("sft/manifests/train.json")


def test_report_of_a_run_of_another_version_says_so_and_is_made(call, begun):
    recipe = json.loads((begun / "recipe.resolved.json").read_text())
    write_json(begun / "recipe.resolved.json", recipe | {"colour": "red"})
    answer = call("report", str(begun))
    assert answer.code == 0
    assert "made by another version of selfalign" in answer.err
    assert "colour" in answer.err
    assert "made by another version" in (begun / "report.html").read_text(encoding="utf-8")


def test_report_of_a_run_whose_recipe_is_gone_is_made(call, begun):
    (begun / "recipe.resolved.json").unlink()
    (begun / "events.jsonl").touch()
    assert call("report", str(begun)).code == 0


def test_ls_does_not_cut_or_shift_long_names(call, begun):
    name = "a-run-with-a-name-that-is-longer-than-any-column-that-one-would-make-for-it"
    begun.rename(begun.with_name(name))
    write_json(
        begun / "recipe.resolved.json",
        json.loads((begun.with_name(name) / "recipe.resolved.json").read_text()),
    )
    lines = call("ls").out.splitlines()
    assert lines[0].startswith(f"runs/{name}  stopped")
    assert lines[1].index("stopped") == lines[0].index("stopped")
    assert {row["state"] for row in json.loads(call("ls", "--json").out)} == {"stopped"}


def test_a_log_gets_plain_lines_with_pace_and_time_left(monkeypatch):
    monkeypatch.setattr("selfalign.cli.console._LOG_EVERY_SECONDS", -1.0)
    out = io.StringIO()
    with Narrator(Console(file=out, width=10_000)) as narrator:
        for event in (*STARTED[1:], word(30, 0), word(10, 100)):
            narrator(event)
    assert out.getvalue().splitlines()[-1] == "  sft/train, 100 of 400 steps, 5 a second, 1 min 00 s left"
    assert "\x1b" not in out.getvalue()


def test_a_table_in_a_log_is_as_wide_as_what_stands_in_it():
    out = io.StringIO()
    row = Effect("a measure with a name " * 9, "12 pairs", "41.7 % (16.7 to 66.7)", "x" * 99, "y" * 99)
    Console(file=out, width=10_000).print(effect_table([row], "not measured"))
    assert "…" not in out.getvalue()
    assert "x" * 99 in out.getvalue()
