"""Where a run stands, also while it is written, of another version, or damaged."""

import json
import os
import socket

import pytest

from selfalign.errors import RunError
from selfalign.runs.files import write_json
from selfalign.ui.state import RunState, find_run, runs_in, state_of


def say(root, *events) -> None:
    with (root / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


PROGRESS = {
    "event": "progress",
    "stage": "iteration-3/candidates",
    "done": 5,
    "total": 20,
    "unit": "rows",
    "time": "t",
}


def test_a_finished_run_says_so(make_run) -> None:
    state = state_of(make_run())
    assert (state.state, state.method, state.model) == ("finished", "self_rewarding", "m")
    assert [line["stage"] for line in state.stages] == ["iteration-1/pairs"]
    assert state.problems == ()


def test_a_running_one_shows_its_stage_and_how_far_it_is(make_run) -> None:
    root = make_run()
    write_json(root / ".holder.json", {"pid": os.getpid(), "host": socket.gethostname()})
    say(root, {"event": "run_started"}, {"event": "stage_started", "stage": "iteration-3/candidates"})
    assert (state_of(root).stage, state_of(root).progress) == ("iteration-3/candidates", None)
    say(root, PROGRESS)
    state = state_of(root)
    assert state.state == "running"
    assert state.why == f"pid {os.getpid()} on {socket.gethostname()}"
    assert state.progress is not None
    assert (state.progress.done, state.progress.total) == (5, 20)


def test_a_killed_run_is_stopped_whatever_its_note_says(make_run) -> None:
    root = make_run()
    write_json(root / ".holder.json", {"pid": 2**22 + 1, "host": socket.gethostname()})
    say(root, {"event": "run_started"}, PROGRESS)
    state = state_of(root)
    assert state.state == "stopped"
    assert "without a word" in state.why
    assert state.stage == "iteration-3/candidates"


def test_a_run_that_failed_says_why(make_run) -> None:
    root = make_run()
    say(root, {"event": "run_started"}, {"event": "run_stopped", "reason": "DataError", "message": "row 3"})
    assert state_of(root).why == "DataError: row 3"


@pytest.mark.parametrize("torn", [b'{"event": "run_sta', b"[1, 2]\n", b'"x"\n', b"\xff\n", b"[" * 9999])
def test_a_torn_event_is_passed_over(make_run, torn) -> None:
    root = make_run()
    with (root / "events.jsonl").open("ab") as file:
        file.write(torn)
    assert state_of(root).state == "finished"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stage": 1}', "null"])
def test_a_damaged_manifest_is_named_and_the_others_are_shown(make_run, content) -> None:
    root = make_run()
    (root / "iteration-2" / "manifests").mkdir()
    (root / "iteration-2" / "manifests" / "pairs.json").write_text(content)
    state = state_of(root)
    assert [line["stage"] for line in state.stages] == ["iteration-1/pairs"]
    assert len(state.problems) == 1
    assert "iteration-2/manifests/pairs.json" in state.problems[0]


@pytest.mark.parametrize("content", ["", "[1]", '"x"', '{"policy": 3}'])
def test_a_damaged_recipe_is_named(make_run, content) -> None:
    root = make_run()
    (root / "recipe.resolved.json").write_text(content)
    state = state_of(root)
    assert state.state == "finished"
    assert any("recipe.resolved.json" in line for line in state.problems)


def test_a_recipe_of_another_version_is_shown_as_it_is(make_run) -> None:
    state = state_of(make_run(method="from_the_future", policy={"model": "m2", "odd": 1}))
    assert (state.method, state.model, state.problems) == ("from_the_future", "m2", ())


def test_a_directory_that_a_run_has_just_made_is_one(tmp_path) -> None:
    (tmp_path / "new").mkdir()
    assert runs_in(tmp_path) == []
    (tmp_path / "new" / "events.jsonl").touch()
    assert runs_in(tmp_path) == [tmp_path / "new"]
    assert state_of(tmp_path / "new").state == "not started"


def test_names_that_no_address_can_hold_are_left_out(tmp_path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(odd)  # noqa: PTH102 -- a name in bytes
    os.close(os.open(odd + b"/events.jsonl", os.O_CREAT))
    assert runs_in(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../runs/one", "one/../one", "/etc", "none", "one\0"])
def test_a_run_is_found_by_its_name_alone(make_run, name) -> None:
    root = make_run()
    assert find_run(root.parent, "one") == root.resolve()
    with pytest.raises(RunError, match="no such run"):
        find_run(root.parent, name)


def test_a_warning_of_several_stages_is_told_once() -> None:
    stages = tuple({"stage": f"{name}/evaluate", "warnings": ["tied"]} for name in "ab")
    assert RunState("run", "finished", stages=stages).warnings == {"tied": ["a/evaluate", "b/evaluate"]}
