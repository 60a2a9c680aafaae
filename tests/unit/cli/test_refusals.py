import json
import os
from pathlib import Path

import pytest

from selfalign.runs.lock import hold

TURN = {"role": "user", "content": "Name a colour."}
RANKED = {"messages": [TURN], "replies": [{"text": "Red.", "rank": 0}, {"text": "A dog.", "rank": 1}]}


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_lines(name, *rows):
    Path(name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")


RECIPE_ERRORS = [
    (["num_iteration=3"], ["mine.yaml", "num_iteration: unknown key; did you mean 'num_iterations'?"]),
    (["sft.epochs=x"], ["mine.yaml", "sft.epochs: Input should be a valid integer"]),
    (["sft"], ["'sft' is no override; write it as section.key=value"]),
    (["judge.rubric=aditive"], ["'aditive' is not a shipped one", "Did you mean 'additive'?"]),
    (["engine.script=rules.toml"], ["engine.script: rules.toml: no such file"]),
    (["prompts.generator=nowhere"], ["nowhere: no such model directory"]),
    (["data.ift.path=nothing.jsonl"], ["nothing.jsonl: there is no such file; check the path"]),
    (["data.ranked.paths=[starter,nothing.jsonl]"], ["nothing.jsonl: there is no such file"]),
    (["data.ift.path=model"], ["model: this is a directory; name a file in it"]),
]


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "run"])
@pytest.mark.parametrize(("overrides", "says"), RECIPE_ERRORS, ids=[words[0] for words, _ in RECIPE_ERRORS])
def test_a_wrong_recipe_is_refused_before_anything_is_written(call, recipe, dry, overrides, says):
    answer = call("run", recipe, *overrides, *dry)
    assert answer.code == 2
    assert [words for words in says if words not in answer.err] == []
    assert set(files(Path("runs"))) <= (set() if dry else {"mine/.lock"})


def test_a_missing_recipe_is_refused_with_the_way_to_one(call):
    answer = call("run", "nothing.yaml")
    assert answer.code == 2
    assert "nothing.yaml: no such recipe; `selfalign init` writes one" in answer.err


REPEATED = {**RANKED, "replies": [{"text": "Red.", "rank": 0}, {"text": "Blue.", "rank": 0}]}
NO_PLACE = {**RANKED, "replies": [{"text": "Red.", "rank": 0}, {"text": "Blue."}]}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], ["there are no rows"]),
        ([RANKED, '{"messages": ['], ["row 2", "broken JSON at line 2"]),
        ([RANKED, "5"], ["row 2", "the row is a number; it must be an object"]),
        ([{"colour": "red"}], ["row 1", "the fields colour fit no format; known are: oasst_trees"]),
        ([RANKED, {"messages": [TURN]}], ["row 2", 'the field "replies" is missing']),
        ([RANKED, REPEATED], ["row 2", 'the same "rank"', "if ties are meant"]),
        ([RANKED, NO_PLACE], ["row 2", "a reply has no place", 'give every one of "replies" a "rank"']),
        ([RANKED], ["1 ranked prompts leave", "give more ranked data"]),
    ],
    ids=["empty", "broken", "number", "no-format", "no-field", "repeated-ranks", "no-rank", "too-few"],
)
def test_bad_data_are_refused_by_file_and_row_before_anything_is_written(call, recipe, rows, says):
    write_lines("bad.jsonl", *rows) if rows else Path("bad.jsonl").touch()
    answer = call("run", recipe, "data.ranked.paths=[bad.jsonl]")
    assert answer.code == 2
    assert [words for words in ["error: bad.jsonl", *says] if words not in answer.err] == []
    assert files(Path("runs")) == ["mine/.lock"]


@pytest.mark.parametrize(
    ("gone", "there", "says"),
    [
        (
            "model.safetensors",
            "pytorch_model.bin",
            "model: only pickled weights (pytorch_model.bin), which can",
        ),
        ("model.safetensors", None, "model: no weights; expected *.safetensors"),
        ("tokenizer.json", None, "model: no tokenizer; put tokenizer.json"),
        ("config.json", None, "model: not a model directory: config.json is missing"),
    ],
)
def test_a_model_that_can_not_be_used_is_refused_before_anything_is_written(call, recipe, gone, there, says):
    (Path("model") / gone).unlink()
    if there is not None:
        (Path("model") / there).touch()
    for words in (["--dry-run"], []):
        answer = call("run", recipe, *words)
        assert answer.code == 2
        assert says in answer.err
    assert files(Path("runs")) == ["mine/.lock"]


def test_a_run_directory_that_is_a_file_is_refused(call, recipe):
    Path("taken").write_text("mine")
    answer = call("run", recipe, "--run-dir", "taken")
    assert answer.code == 2
    assert "taken: not a directory; give another --run-dir" in answer.err
    assert Path("taken").read_text() == "mine"


def test_a_run_directory_that_is_held_is_refused(call, recipe):
    with hold(Path("runs/mine")):
        answer = call("run", recipe)
    assert answer.code == 2
    assert f"runs/mine: held by pid {os.getpid()} on" in answer.err


def test_names_in_brackets_are_shown_as_they_are(call, recipe):
    assert "error: [b]: no such model directory" in call("run", recipe, "policy.model='[b]'").err
    answer = call("init", "runs[b]/[red]mine.yaml")
    assert answer.out == "wrote runs[b]/[red]mine.yaml; run it with: selfalign run 'runs[b]/[red]mine.yaml'\n"
    assert "no run in [b]runs" in call("ls", "[b]runs").out
    assert "[b]runs: not a run directory" in call("status", "[b]runs").err


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(call, recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    answer = call("run", recipe, "report_to=[mlflow]")
    assert answer.code == 2
    assert "report_to: mlflow is not installed; run `pip install mlflow`" in answer.err
    assert files(Path("runs")) == []
