import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml

from selfalign import __version__
from selfalign.cli.main import main
from selfalign.config import SelfRewardingRecipe
from selfalign.methods import execute
from selfalign.recipes import load_recipe, resolve_recipe
from selfalign.runs.files import write_json
from selfalign.runs.lock import hold

ITERATION = ("prompts", "candidates", "judgments", "attacks", "pairs", "reference", "train", "evaluate")
STAGES = [
    "data/read", "sft/train", "sft/evaluate",
    "eft/judgments", "eft/examples", "eft/train", "eft/evaluate",
    *(f"iteration-{t}/{stage}" for t in (1, 2) for stage in ITERATION),
]  # fmt: skip


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("verb", "says"),
    [
        ("init", ["every key", "--preset", "path"]),
        ("validate", ["presets and overrides resolved", "{recipe} [KEY=VALUE]...", "--json"]),
        ("schema", ["JSON Schema"]),
        ("run", ["go on where it stopped", "{recipe} [KEY=VALUE]...", "--dry-run", "--update"]),
        ("run", ["--run-dir", "runs/ and the recipe's name"]),
        ("status", ["how far a run is", "run_dir", "--json"]),
        ("report", ["report.html", "run_dir"]),
        ("ls", ["List runs", "runs_dir", "--json"]),
        ("merge", ["LoRA adapter", "adapter", "output"]),
        ("ui", ["Show runs as they go", "runs_dir", "--port", "--no-browser"]),
    ],
)
def test_every_verb_explains_itself(call, verb, says):
    for option in ("--help", "-h"):
        answer = call(verb, option)
        assert answer.code == 0
        flat = " ".join(answer.out.split())
        assert [words for words in says if words not in flat] == []
    assert verb in call("--help").out


def test_without_a_word_it_shows_its_help(call):
    answer = call()
    assert "recipes/quickstart.yaml" in answer.out + answer.err
    assert answer.code == 2


def test_it_knows_its_version(call):
    answer = call("--version")
    assert (answer.code, answer.out) == (0, f"selfalign {__version__}\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run"], "Missing argument 'recipe'"),
        (["run", "x.yaml", "--dry"], "No such option: --dry"),
        (["merge", "adapter"], "Missing argument 'output'"),
    ],
)
def test_a_wrong_call_exits_with_2_and_names_what_is_wrong(call, words, says):
    answer = call(*words)
    assert answer.code == 2
    assert says in answer.err


@pytest.mark.parametrize("preset", [None, "paper", "autoalign"])
def test_init_writes_a_recipe_that_is_the_preset_and_never_overwrites(call, preset):
    options = ["--preset", preset] if preset else []
    assert call("init", "mine.yaml", *options).out.endswith("selfalign run mine.yaml\n")
    assert load_recipe("mine.yaml") == resolve_recipe({"preset": preset} if preset else {})
    Path("mine.yaml").write_text("seed: 5")
    answer = call("init", "mine.yaml", *options)
    assert (answer.code, Path("mine.yaml").read_text()) == (2, "seed: 5")
    assert "mine.yaml: exists already; give another name" in answer.err


def test_init_makes_the_directory_that_the_recipe_goes_into(call):
    assert call("init", "new/folder/mine.yaml").code == 0
    assert load_recipe("new/folder/mine.yaml") == SelfRewardingRecipe()


def test_init_of_an_unknown_preset_writes_nothing(call, tmp_path):
    answer = call("init", "--preset", "papper")
    assert answer.code == 2
    assert "did you mean 'paper'?" in answer.err
    assert files(tmp_path) == []


def test_validate_prints_the_resolved_recipe_alone_on_stdout(call, recipe):
    words = ["validate", recipe, "preset=paper", "dpo.beta=0.2"]
    expected = load_recipe(recipe, words[2:])
    answer = call(*words)
    assert answer.code == 0
    assert SelfRewardingRecipe.model_validate(yaml.safe_load(answer.out)) == expected
    assert "mine.yaml: valid" in answer.err
    assert SelfRewardingRecipe.model_validate(json.loads(call(*words, "--json").out)) == expected


def test_schema_prints_json(call):
    answer = call("schema")
    assert answer.code == 0
    assert {"SelfRewardingRecipe", "RLCDRecipe"} <= json.loads(answer.out)["$defs"].keys()


def test_a_dry_run_lists_every_stage_and_writes_nothing(call, recipe, tmp_path):
    before = files(tmp_path)
    answer = call("run", recipe, "--dry-run")
    assert answer.code == 0
    stages, memory = answer.out.split("memory of one process of a training")
    listed = [line.split()[:2] for line in stages.splitlines()]
    assert [words for words in listed if words and "/" in words[0]] == [[name, "pending"] for name in STAGES]
    trained = [line.split()[0] for line in memory.splitlines() if "/" in line]
    assert trained == [name for name in STAGES if name.endswith("/train")]
    assert files(tmp_path) == before
    assert not Path("runs").exists()


def test_a_dry_run_tells_programs_what_each_stage_needs(call, recipe):
    rows = json.loads(call("run", recipe, "--dry-run", "--json").out)
    assert [row["stage"] for row in rows] == STAGES
    assert {row["state"] for row in rows} == {"pending"}
    by_name = {row["stage"]: row for row in rows}
    assert by_name["iteration-1/candidates"]["generations"] == 10 * 4
    assert by_name["iteration-1/candidates"]["new_tokens"] == 10 * 4 * 512
    assert by_name["iteration-2/prompts"]["generations"] == 5 * 3
    assert by_name["sft/train"]["training_tokens"] > 0
    assert by_name["data/read"]["generations"] == 0
    memory = by_name["sft/train"]["training_memory"]
    assert memory["weights"] == memory["gradients"] == memory["optimizer"] / 2 > 0
    assert memory["available"] > memory["total"] > memory["activations"] > 0
    assert by_name["data/read"]["training_memory"] is None


def test_the_totals_of_a_dry_run_are_the_sums_of_its_rows(call, recipe):
    rows = json.loads(call("run", recipe, "--dry-run", "--json").out)
    lines = call("run", recipe, "--dry-run").out.splitlines()
    last = next(line for line in lines if line.startswith("left")).split()
    totals = [sum(row[name] for row in rows) for name in ("generations", "new_tokens", "training_tokens")]
    assert last == ["left,", "at", "most", *(f"{total:,}" for total in totals)]


def test_a_dry_run_follows_the_recipe(call, recipe):
    rows = json.loads(call("run", recipe, "num_iterations=1", "--dry-run", "--json").out)
    assert [row["stage"] for row in rows] == STAGES[: -len(ITERATION)]


@pytest.fixture
def failing(monkeypatch):
    """Let the run itself fail in a given way."""

    def failing(how):
        def execute_(*_, **__):
            how()

        monkeypatch.setattr(execute, "execute", execute_)

    return failing


def raising(error):
    def how():
        raise error

    return how


WORDS = ["data.ranked.paths=[a.jsonl,b.jsonl]", 'judge.reply_start="My score:"']
AGAIN = "selfalign run mine.yaml 'data.ranked.paths=[a.jsonl,b.jsonl]' 'judge.reply_start=\"My score:\"'"


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        (raising(KeyboardInterrupt), 130, "stopped; nothing is lost"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "terminated; nothing is lost"),
        (raising(OSError(errno.ENOSPC, "No space left on device")), 2, "No space left on device"),
        (raising(PermissionError(errno.EACCES, "Permission denied", "runs/[a]")), 2, "runs/[a]"),
    ],
    ids=["ctrl-c", "terminated", "disk-full", "forbidden"],
)
def test_a_run_that_is_stopped_says_the_command_that_goes_on(call, recipe, failing, how, code, says):
    failing(how)
    answer = call("run", recipe, *WORDS)
    assert answer.code == code
    assert says in answer.err
    assert AGAIN in answer.err


@pytest.mark.parametrize("error", [RuntimeError("ours"), FileNotFoundError("ours"), KeyError("ours")])
def test_a_defect_of_ours_is_not_hidden(recipe, failing, monkeypatch, tmp_path, error):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    failing(raising(error))
    monkeypatch.setattr(sys, "argv", ["selfalign", "run", recipe])
    with pytest.raises(type(error), match="ours"):
        main()


@pytest.mark.parametrize("verb", ["status", "report"])
def test_what_is_no_run_is_refused(call, tmp_path, verb):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        answer = call(verb, name)
        assert answer.code == 2
        assert f"{name}: not a run directory" in answer.err
    assert files(tmp_path) == []


def begin(name, recipe, **changes):
    """Leave what a run leaves that was stopped before its first stage."""
    resolved = load_recipe(recipe).model_dump(mode="json") | changes
    write_json(Path(name) / "recipe.resolved.json", resolved)


def test_status_of_a_run_that_has_done_nothing(call, recipe):
    begin("runs/mine", recipe)
    answer = call("status", "runs/mine")
    assert answer.code == 0
    assert f"runs/mine: 0 of {len(STAGES)} stages done; not running" in answer.out
    told = json.loads(call("status", "runs/mine", "--json").out)
    assert told["held_by"] is None
    assert [row["stage"] for row in told["stages"]] == STAGES


def test_status_tells_who_holds_the_run(call, recipe):
    begin("runs/mine", recipe)
    with hold(Path("runs/mine")):
        assert f"running (pid {os.getpid()} on" in call("status", "runs/mine").out


def test_the_status_of_a_run_of_another_version_is_refused_by_name(call, recipe):
    begin("runs/mine", recipe, colour="red")
    answer = call("status", "runs/mine")
    assert answer.code == 2
    assert "runs/mine/recipe.resolved.json: made by another version of selfalign" in answer.err
    assert "colour" in answer.err


def test_ls_of_nothing_says_so(call, tmp_path):
    assert call("ls").out == "no run in runs\n"
    (tmp_path / "empty").mkdir()
    assert call("ls", "empty").out == "no run in empty\n"
    assert json.loads(call("ls", "empty", "--json").out) == []


def test_ls_lists_runs_and_passes_over_what_is_none(call, recipe):
    begin("runs/one", recipe)
    begin("runs/two", recipe)
    Path("runs/notes").mkdir()
    lines = call("ls").out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        [f"runs/{name}", "stopped", f"0/{len(STAGES)}"] for name in ("one", "two")
    ]
    with hold(Path("runs/two")):
        rows = json.loads(call("ls", "--json").out)
        assert [bool(row["held_by"]) for row in rows] == [False, True]


def test_a_run_that_can_not_be_read_does_not_hide_the_others(call, recipe):
    begin("runs/one", recipe, colour="red")
    begin("runs/two", recipe)
    answer = call("ls")
    assert answer.code == 0
    one, two = answer.out.splitlines()
    assert one.startswith("runs/one")
    assert "another version" in one
    assert two.startswith("runs/two")
    rows = json.loads(call("ls", "--json").out)
    assert [row["run"] for row in rows] == ["runs/one", "runs/two"]
