import json
import shutil
from pathlib import Path

import pytest

from selfalign.config import SelfRewardingRecipe
from selfalign.runs import Artifact, Run, Stage
from selfalign.runs.artifact import differences
from selfalign.runs.events import EventLog, read_events

CHAIN = {"limit": 3, "version": 1, "outside": "fingerprint of M0", "word": "x"}
"""What shapes the stages of `chain`: limit and version the first, outside and word the second."""


def chain(run, **changes):
    """Three stages, each reading the one before; returns the artifact of the last."""
    shape = CHAIN | changes
    first = Stage(
        "data/read", shape["version"], ("rows.txt", "rest.txt"), {"data": {"limit": shape["limit"]}}, {},
        {"rows": 5},
    )  # fmt: skip

    def read(work):
        work.output("rows.txt").write_text("r" * shape["limit"])
        work.output("rest.txt").write_text("rest")
        return {"rows": shape["limit"], "rest": {"rows": 4}}

    rows = run.do(first, read)
    outside = Artifact(Path("/models/base"), shape["outside"])
    second = Stage(
        "step-1/train", 1, ("model",), {"word": shape["word"]}, {"rows": rows, "model": outside},
        {"training_tokens": 7},
    )  # fmt: skip

    def train(work):
        (work.output("model") / "inner").mkdir(parents=True, exist_ok=True)
        (work.output("model") / "inner" / "config.json").write_text(shape["word"])
        (work.output("model") / "weights.safetensors").write_text(rows.path.read_text())
        return {"steps": 2}

    model = run.do(second, train)

    def judge(work):
        work.output("scores.txt").write_text("5")
        return {"rows": 1}

    return run.do(Stage("step-1/judge", 1, ("scores.txt",), {}, {"model": model}), judge)


def states(run):
    return {status.stage.name: status.state for status in run.statuses}


def doing(root, **changes):
    run = Run(root, SelfRewardingRecipe(), EventLog(root.parent / "events.jsonl"))
    chain(run, **changes)
    return run


def planning(root, **changes):
    run = Run(root, SelfRewardingRecipe())
    chain(run, **changes)
    return run


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(tmp_path):
    """A run directory whose three stages are done."""
    doing(tmp_path / "run")
    return tmp_path / "run"


ALL = ("data/read", "step-1/train", "step-1/judge")


def test_planning_tells_what_is_pending_and_writes_nothing(tmp_path):
    root = tmp_path / "run"
    run = planning(root)
    assert run.planning
    assert states(run) == dict.fromkeys(ALL, "pending")
    assert not root.exists()


def test_a_plan_hands_on_what_stages_are_expected_to_leave(tmp_path):
    run = planning(tmp_path / "run")
    assert run.statuses[0].stage.expected == {"rows": 5}
    assert run.statuses[1].stage.inputs["rows"].rows == 5
    assert run.statuses[1].stage.inputs["rows"].path == tmp_path / "run" / "data" / "rows.txt"


def test_a_finished_run_is_done_and_doing_it_again_does_nothing(finished):
    before = snapshot(finished)
    assert states(planning(finished)) == dict.fromkeys(ALL, "done")
    assert states(doing(finished)) == dict.fromkeys(ALL, "done")
    assert snapshot(finished) == before


def test_a_later_run_hands_on_the_figures_that_were_counted(finished):
    assert planning(finished).statuses[1].stage.inputs["rows"].rows == 3


def test_a_moved_run_is_still_done(finished, tmp_path):
    finished.rename(tmp_path / "elsewhere")
    assert states(planning(tmp_path / "elsewhere")) == dict.fromkeys(ALL, "done")


def test_stages_that_were_not_reached_are_pending(tmp_path, finished):
    shutil.rmtree(finished / "step-1" / "manifests")
    assert states(planning(finished)) == {
        "data/read": "done", "step-1/train": "pending", "step-1/judge": "pending",
    }  # fmt: skip


def test_a_stage_with_unfinished_work_is_partial_and_goes_on_with_it(tmp_path):
    root = tmp_path / "run"
    stage = Stage("data/read", 1, ("rows.txt",), {"limit": 3})
    events = EventLog(tmp_path / "events.jsonl")

    def killed(work):
        work.scratch("rows.txt").parent.mkdir(parents=True, exist_ok=True)
        work.scratch("rows.txt").write_text("half")
        raise KeyboardInterrupt

    def going_on(work):
        work.output("rows.txt").write_text(work.scratch("rows.txt").read_text() + " whole")
        return {}

    with pytest.raises(KeyboardInterrupt):
        Run(root, SelfRewardingRecipe(), events).do(stage, killed)
    assert Run(root, SelfRewardingRecipe()).inspect(stage).state == "partial"
    artifact = Run(root, SelfRewardingRecipe(), events).do(stage, going_on)
    assert artifact.path.read_text() == "half whole"
    assert Run(root, SelfRewardingRecipe()).inspect(stage).state == "done"
    assert list((root / "data" / "partial").iterdir()) == []


def test_work_begun_under_other_settings_is_stale_and_goes_to_stale(tmp_path):
    root = tmp_path / "run"

    def killed(work):
        work.scratch("rows.txt").parent.mkdir(parents=True, exist_ok=True)
        work.scratch("rows.txt").write_text("half")
        raise KeyboardInterrupt

    stage = Stage("data/read", 1, ("rows.txt",), {"n": 1})
    with pytest.raises(KeyboardInterrupt):
        Run(root, SelfRewardingRecipe(), EventLog(tmp_path / "e")).do(stage, killed)
    other = Stage("data/read", 1, ("rows.txt",), {"n": 2})
    status = Run(root, SelfRewardingRecipe()).inspect(other)
    assert (status.state, status.why) == ("stale", ("it was begun under other settings",))
    Run(root, SelfRewardingRecipe(), EventLog(tmp_path / "e")).do(
        other, lambda work: {"n": work.output("rows.txt").write_text("whole")}
    )
    assert [path.read_text() for path in root.glob("stale/*/*")] == ["half"]


def test_the_partial_work_of_a_stage_is_not_that_of_its_namesake(tmp_path):
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "train-more.0123.rows").touch()
    assert Run(tmp_path, SelfRewardingRecipe()).inspect(Stage("train", 1, ("model",))).state == "pending"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"limit": 4}, {"data/read": "data.limit: 3 -> 4", "step-1/train": "input rows changed"}),
        ({"version": 2}, {"data/read": "stage version: 1 -> 2", "step-1/train": "input rows changed"}),
        ({"outside": "another model"}, {"step-1/train": "input model changed"}),
        ({"word": "y"}, {"step-1/train": "word: 'x' -> 'y'"}),
    ],
)
def test_a_change_makes_its_stage_and_all_after_it_stale_and_says_why(finished, change, why):
    why = why | {"step-1/judge": "input model changed"}
    before = snapshot(finished)
    for status in planning(finished, **change).statuses:
        expected = ("stale", (why[status.stage.name],)) if status.stage.name in why else ("done", ())
        assert (status.state, status.why) == expected
    assert snapshot(finished) == before


def test_a_change_taken_back_is_no_change(finished):
    assert set(states(planning(finished, limit=4)).values()) == {"stale"}
    assert set(states(planning(finished)).values()) == {"done"}


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("data/rows.txt", None, "data/rows.txt is missing"),
        ("data/rest.txt", None, "data/rest.txt is missing"),
        ("data/rows.txt", "abc", "data/rows.txt was changed after the stage"),
        ("step-1/model/inner/config.json", "z", "step-1/model/inner/config.json was changed after the stage"),
        ("step-1/model/weights.safetensors", "rr", "weights.safetensors was changed after the stage"),
        ("step-1/model", None, "config.json is missing"),
    ],
)
def test_an_output_that_is_missing_or_changed_makes_its_stage_stale(finished, file, content, why):
    path = finished / file
    if content is not None:
        path.write_text(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    stale = [status for status in planning(finished).statuses if status.state == "stale"]
    assert [status.stage.name.split("/")[0] for status in stale] == [file.split("/")[0]]
    assert any(reason.endswith(why) for reason in stale[0].why)


def test_a_file_beside_the_outputs_changes_nothing(finished):
    (finished / "data" / "notes.txt").write_text("mine")
    (finished / "step-1" / "model" / "README.md").write_text("mine")
    assert set(states(planning(finished)).values()) == {"done"}


def test_an_update_moves_the_stale_and_does_it_again_without_losing_anything(finished):
    before = snapshot(finished)
    doing(finished, word="y")
    assert set(states(planning(finished, word="y")).values()) == {"done"}
    assert (finished / "step-1" / "model" / "inner" / "config.json").read_text() == "y"
    moved = {path.relative_to(finished / "stale").parts[1:]: path for path in finished.glob("stale/**/*")}
    for path, content in before.items():
        if path.parts[0] == "step-1" and path.name != "metrics.json":
            kept = path.parts[2:] if "manifests" in path.parts else path.parts[1:]
            assert moved[kept].read_bytes() == content
        elif path.parts[0] == "data":
            assert (finished / path).read_bytes() == content
    assert sorted(path.name.split("-", 1)[1] for path in (finished / "stale").iterdir()) == [
        "step-1-judge", "step-1-train",
    ]  # fmt: skip


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_the_stale_is_moved_loses_nothing(finished, monkeypatch, renames):
    before = (finished / "data" / "rows.txt").read_bytes(), (finished / "data" / "rest.txt").read_bytes()
    rename, done = Path.rename, []

    def killed(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(self)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            doing(finished, limit=4)
    assert states(planning(finished, limit=4))["data/read"] == "stale"
    doing(finished, limit=4)
    kept = {path.name: path.read_bytes() for path in finished.glob("stale/*-data-read/*")}
    assert (kept["rows.txt"], kept["rest.txt"]) == before
    assert "read.json" in kept


def test_what_a_killed_write_left_is_gone_once_its_stage_is_done(tmp_path):
    root = tmp_path / "run"
    for torn in (root / "step-1" / ".model.4711.tmp", root / "step-1" / "partial" / ".train.0123.x.4711.tmp"):
        torn.mkdir(parents=True)
        (torn / "weights.safetensors").touch()
    doing(root)
    assert list(root.rglob("*.tmp")) == []


def test_the_manifest_holds_everything_that_was_decided_and_counted(finished):
    manifest = json.loads((finished / "data" / "manifests" / "read.json").read_text())
    assert manifest["stage"] == "data/read"
    assert manifest["parts"] == {"stage version": 1, "data.limit": 3}
    assert manifest["figures"] == {"rows": 3, "rest": {"rows": 4}}
    assert manifest["outputs"]["rows.txt"]["size"] == 3
    assert set(manifest["outputs"]) == {"rows.txt", "rest.txt"}
    assert manifest["seconds"] >= 0
    model = json.loads((finished / "step-1" / "manifests" / "train.json").read_text())["outputs"]["model"]
    assert set(model["files"]) == {"inner/config.json", "weights.safetensors"}


def test_the_figures_of_a_directory_are_in_one_file(finished):
    metrics = json.loads((finished / "step-1" / "metrics.json").read_text())
    assert metrics == {"train": {"steps": 2}, "judge": {"rows": 1}}


def test_a_stage_whose_figures_are_not_numbers_is_not_done(tmp_path):
    stage = Stage("sft/train", 1, ("rows.txt",))

    def body(work):
        work.output("rows.txt").touch()
        return {"loss": float("nan")}

    with pytest.raises(ValueError, match="JSON compliant"):
        Run(tmp_path, SelfRewardingRecipe(), EventLog(tmp_path / "events.jsonl")).do(stage, body)
    assert Run(tmp_path, SelfRewardingRecipe()).inspect(stage).state == "pending"


def test_a_stage_that_leaves_out_an_output_is_not_done(tmp_path):
    stage = Stage("sft/train", 1, ("rows.txt",))
    with pytest.raises(FileNotFoundError):
        Run(tmp_path, SelfRewardingRecipe(), EventLog(tmp_path / "events.jsonl")).do(stage, lambda work: {})
    assert Run(tmp_path, SelfRewardingRecipe()).inspect(stage).state == "pending"


def test_a_run_tells_what_it_begins_and_ends(finished, tmp_path):
    told = [(event["event"], event["stage"]) for event in read_events(tmp_path / "events.jsonl")]
    assert told == [(event, stage) for stage in ALL for event in ("stage_started", "stage_finished")]


def test_a_sibling_has_its_own_path_figures_and_fingerprint(finished):
    run = planning(finished)
    main = run.statuses[1].stage.inputs["rows"]
    rest = main.sibling("rest.txt")
    assert rest.path == finished / "data" / "rest.txt"
    assert rest.rows == 4
    assert rest.fingerprint != main.fingerprint
    assert main.sibling("other.txt").rows == 0
    changed = planning(finished, limit=4).statuses[1].stage.inputs["rows"]
    assert changed.sibling("rest.txt").fingerprint != rest.fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"settings": {"a": 1}}, {"settings": {"a": "1"}}),
        ({"settings": {"a": {}}}, {"settings": {}}),
        ({"settings": {"a": {"b": None}}}, {"settings": {"a": None}}),
        ({"name": "x/one"}, {"name": "x/two"}),
        ({"version": 1}, {"version": 2}),
    ],
)
def test_whatever_differs_in_a_stage_differs_in_its_fingerprint(one, other):
    plain = {"name": "x/one", "version": 1, "outputs": ("file",)}
    assert Stage(**plain | one).fingerprint != Stage(**plain | other).fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_of_settings_or_on_what_is_expected():
    one = Stage("x", 1, ("file",), {"a": 1, "b": {"c": 2, "d": 3}})
    other = Stage("x", 1, ("file",), {"b": {"d": 3, "c": 2}, "a": 1}, {}, {"rows": 9})
    assert one.fingerprint == other.fingerprint


def test_differences_are_told_key_by_key_in_the_order_of_the_keys():
    old = {"b": 1, "a.rate": 1e-6, "input policy": "abc", "same": [1]}
    new = {"b": None, "a.rate": 2e-6, "input policy": "def", "same": [1], "new": True}
    assert differences(old, new) == [
        "a.rate: 1e-06 -> 2e-06", "b: 1 -> None", "input policy changed", "new: None -> True",
    ]  # fmt: skip


def test_a_setting_written_as_a_tuple_is_the_list_that_the_manifest_holds(tmp_path):
    stage = Stage("x/y", 1, ("file",), {"rates": (1e-6, 2e-6)})
    events = EventLog(tmp_path / "events.jsonl")
    Run(tmp_path, SelfRewardingRecipe(), events).do(
        stage, lambda work: {"n": work.output("file").write_text("1")}
    )
    assert Run(tmp_path, SelfRewardingRecipe()).inspect(stage).state == "done"
