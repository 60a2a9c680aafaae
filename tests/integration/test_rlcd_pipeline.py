"""Whole RLCD runs: what they leave, how they join and count, and how they stop and go on."""

import json
import random
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from selfalign.models.source import find_model
from selfalign.records import Completion, Contrast, Judgment, Message, PreferencePair, Prompt
from selfalign.rlcd import completion_id, under_principle
from selfalign.runs.files import hash_file, read_json, read_rows

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
KILLS = 8
MIXED_SCRIPT = """\
vocabulary = "one two three four five six seven eight nine ten"
[[rules]]
match = ''
reply = "{{ choice(['', 'the same', 'the same', 'the same now', words(4), words(5), words(6), words(40)]) }}"
"""
CONSTANT_SCRIPT = """\
vocabulary = "one"
[[rules]]
match = ''
reply = "{{ prompt }} It is always the same."
"""


def script(folder: Path, text: str) -> str:
    (folder / "script.toml").write_text(text, encoding="utf-8")
    return f"engine.script={folder / 'script.toml'}"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data.paths=[{path}]"


def figures(run_dir: Path, stage: str) -> dict[str, Any]:
    folder, _, name = stage.partition("/")
    return read_json(run_dir / folder / "manifests" / f"{name}.json")["figures"]


def prompts_of(run_dir: Path, name: str) -> dict[str, Prompt]:
    return {p.prompt_id: p for p in read_rows(run_dir / "data" / f"{name}.jsonl", Prompt)}


def contrasts_of(run_dir: Path) -> dict[str, Contrast]:
    return {c.contrast_id: c for c in read_rows(run_dir / "contrast" / "contrasts.jsonl", Contrast)}


def pairs_of(run_dir: Path, name: str = "pairs") -> list[PreferencePair]:
    return list(read_rows(run_dir / "contrast" / f"{name}.jsonl", PreferencePair))


def check_counts(run_dir: Path) -> Counter[str]:
    """Assert that every prompt and every contrast is accounted for; return the outcomes."""
    made, drawn = figures(run_dir, "contrast/pairs"), figures(run_dir, "contrast/contrasts")
    kept = len(pairs_of(run_dir)) + len(pairs_of(run_dir, "held_out_pairs"))
    outcomes = Counter(made["outcomes"])
    assert outcomes["kept"] == kept
    assert outcomes.total() == made["contrasts"]
    by_group: dict[str, Counter[str]] = defaultdict(Counter)
    for contrast in contrasts_of(run_dir).values():
        by_group[f"{contrast.language}/{contrast.group}"]["contrasts"] += 1
    assert drawn["groups"] == {name: counts["contrasts"] for name, counts in by_group.items()}
    samples = made["contrasts"] // drawn["rows"]
    assert {name: sum(counts.values()) for name, counts in made["outcomes_by_group"].items()} == {
        name: samples * counts["contrasts"] for name, counts in by_group.items()
    }
    assert sum(map(Counter, made["outcomes_by_group"].values()), Counter()) == outcomes
    read = len(prompts_of(run_dir, "prompts")) + len(prompts_of(run_dir, "held_out"))
    contrasted = {c.prompt_id for c in contrasts_of(run_dir).values()}
    assert read == len(contrasted) + sum(drawn["dropped"].values())
    return outcomes


@pytest.fixture(scope="module")
def finished(command, rlcd_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of an RLCD run that was never interrupted; nothing may write into it."""
    run_dir = tmp_path_factory.mktemp("rlcd") / "whole"
    subprocess.run(command(run_dir, recipe=rlcd_recipe), check=True, capture_output=True, text=True)
    return run_dir


def test_a_run_leaves_everything_it_promises(finished: Path):
    for name in (
        "recipe.yaml", "recipe.resolved.json", "manifest.json", "events.jsonl", "report.html",
        "data/prompts.jsonl", "data/held_out.jsonl",
        "contrast/contrasts.jsonl", "contrast/completions.jsonl", "contrast/pairs.jsonl",
        "contrast/held_out_pairs.jsonl", "contrast/strength.jsonl",
        "rlcd/reference.jsonl", "rlcd/model/model.safetensors", "rlcd/model/tokenizer.json",
        "rlcd/training.jsonl", "rlcd/preference.json", "rlcd/held_out_scores.jsonl",
        "rlcd/outputs.json", "rlcd/base_outputs.jsonl", "rlcd/policy_outputs.jsonl",
    ):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert not (finished / "contrast" / "judgments.jsonl").exists()
    assert not list(finished.glob("*/partial/*"))
    assert read_json(finished / "manifest.json")["method"] == "rlcd"
    assert len((finished / "contrast" / "strength.jsonl").read_text().splitlines()) == 8
    assert (len(prompts_of(finished, "prompts")), len(prompts_of(finished, "held_out"))) == (48, 12)
    preference = read_json(finished / "rlcd" / "preference.json")
    assert preference["implicit_reward_accuracy"]["n"] == len(pairs_of(finished, "held_out_pairs")) > 0


def test_training_starts_from_the_reference_and_changes_the_model(finished: Path):
    """At the first step policy and reference are one model: every margin is 0 and the loss is log 2."""
    log = [json.loads(line) for line in (finished / "rlcd" / "training.jsonl").read_text().splitlines()]
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert log[-1]["rewards/margins"] != pytest.approx(0, abs=1e-4)


def test_no_held_out_prompt_is_trained_on(finished: Path):
    train, held_out = prompts_of(finished, "prompts"), prompts_of(finished, "held_out")
    assert not train.keys() & held_out.keys()
    assert {p.prompt_id for p in pairs_of(finished)} <= train.keys()
    assert {p.prompt_id for p in pairs_of(finished, "held_out_pairs")} <= held_out.keys()
    outputs = {c.prompt_id for c in read_rows(finished / "rlcd" / "policy_outputs.jsonl", Completion)}
    assert outputs == held_out.keys()


def test_pairs_join_by_key_and_hold_no_principle(finished: Path):
    prompts = prompts_of(finished, "prompts") | prompts_of(finished, "held_out")
    contrasts = contrasts_of(finished)
    file = finished / "contrast" / "completions.jsonl"
    completions = {c.completion_id: c for c in read_rows(file, Completion)}
    assert len(completions) == 2 * len(contrasts) == 120
    for pair in pairs_of(finished) + pairs_of(finished, "held_out_pairs"):
        contrast = contrasts[pair.contrast_id]
        assert contrast.prompt_id == pair.prompt_id
        assert pair.messages == prompts[pair.prompt_id].messages
        assert "system" not in {message.role for message in pair.messages}
        for side, held, text in (
            ("positive", pair.chosen_id, pair.chosen),
            ("negative", pair.rejected_id, pair.rejected),
        ):
            assert held == completion_id(contrast, side, 0)
            assert (completions[held].text, completions[held].prompt_id) == (text, pair.prompt_id)
        assert (pair.reward_chosen, pair.reward_rejected, pair.margin) == (None, None, None)


def test_a_second_command_finds_everything_done(command, finished: Path, rlcd_recipe: Path):
    words = command(finished, "--dry-run", "--json", recipe=rlcd_recipe)
    plan = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert {stage["state"] for stage in plan} == {"done"}


def test_every_prompt_and_every_contrast_is_counted(finished: Path, rlcd_recipe: Path, tmp_path: Path, call):
    assert check_counts(finished).keys() == {"kept"}
    rows = [
        {"instruction": f"{word} {i}", "output": "x"}
        for i in range(20)
        for word in ("question", "问题", "12")
    ]
    words = (
        script(tmp_path, MIXED_SCRIPT), jsonl(tmp_path / "prompts.jsonl", rows),
        "contrast.per_prompt=2", "contrast.samples=3",
        "contrast.sampling={temperature: 0.7, max_new_tokens: 20}", "contrast.filters.similarity=0.6",
    )  # fmt: skip
    assert call("run", rlcd_recipe, *words, "--run-dir", tmp_path / "run") == 0
    outcomes = check_counts(tmp_path / "run")
    assert outcomes.keys() == {"kept", "empty", "identical", "truncated", "near_identical"}
    assert outcomes.total() == 2 * 3 * 40
    assert figures(tmp_path / "run", "contrast/contrasts")["dropped"] == {"no_principles": 20}


def test_sides_that_never_differ_stop_the_run_and_say_how_to_go_on(
    rlcd_recipe: Path, tmp_path: Path, call, capsys
):
    words = ("run", rlcd_recipe, script(tmp_path, CONSTANT_SCRIPT), "--run-dir", tmp_path / "run")
    assert call(*words) == 2
    message = capsys.readouterr().err
    assert "no pair is left to train on (60 identical)" in message
    assert "try contrast.sampling.temperature=0.7" in " ".join(message.split())
    assert "Traceback" not in message
    assert not (tmp_path / "run" / "contrast" / "pairs.jsonl").exists()
    assert not (tmp_path / "run" / "rlcd").exists()


def test_prompts_of_a_language_without_principles_stop_the_run(
    rlcd_recipe: Path, tmp_path: Path, call, capsys
):
    data = jsonl(tmp_path / "p.jsonl", [{"instruction": f"вопрос {i}", "output": "x"} for i in range(4)])
    assert call("run", rlcd_recipe, data, "--run-dir", tmp_path / "run") == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "no prompt can be contrasted (4 no_principles)" in message
    assert "contrast.language" in message


def test_a_principle_without_a_side_stops_the_run_before_anything_is_done(
    rlcd_recipe: Path, tmp_path: Path, call, capsys
):
    own = tmp_path / "mine.toml"
    own.write_text('language = "en"\nscript = "LATIN"\n[[helpful]]\npositive = "Help."\n')
    words = ("run", rlcd_recipe, f"contrast.principles={own}", "--run-dir", tmp_path / "run")
    assert call(*words) == 2
    assert f"{own}: helpful pair 1: negative is missing" in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "run" / "contrast").exists()


def test_pairs_that_the_judge_inverts_are_dropped(rlcd_recipe: Path, tmp_path: Path, call):
    """The shipped script scores at random: about two in five judged pairs are the wrong way round."""
    run_dir = tmp_path / "run"
    assert call("run", rlcd_recipe, "judge={samples: 1}", "--run-dir", run_dir) == 0
    outcomes = check_counts(run_dir)
    judgments = {
        j.completion_id: j.score for j in read_rows(run_dir / "contrast" / "judgments.jsonl", Judgment)
    }
    sides = [
        [judgments[completion_id(c, side, 0)] for side in ("positive", "negative")]
        for c in contrasts_of(run_dir).values()
    ]
    inverted = sum(None not in (good, bad) and good < bad for good, bad in sides)
    assert outcomes == Counter(kept=60 - inverted, judge_inverted=inverted)
    assert 10 < inverted < 40
    for pair in pairs_of(run_dir):
        assert pair.reward_chosen == judgments[pair.chosen_id]
        assert pair.reward_rejected == judgments[pair.rejected_id]
        assert pair.margin is None or pair.margin >= 0


@pytest.mark.parametrize("own_system", ["append", "replace", "skip"])
def test_a_system_turn_of_a_row_is_handled_as_the_recipe_says(
    own_system: str, rlcd_recipe: Path, tmp_path: Path, call, monkeypatch
):
    def row(i: int) -> dict[str, Any]:
        own = [{"role": "system", "content": f"You are number {i}."}] if i % 2 else []
        return {"messages": [*own, {"role": "user", "content": f"question {i}"}]}

    seen = []
    monkeypatch.setattr(
        "selfalign.stages.contrast.under_principle",
        lambda *asked: seen.append((asked, under_principle(*asked))) or seen[-1][1],
    )
    data, run_dir = jsonl(tmp_path / "rows.jsonl", [row(i) for i in range(20)]), tmp_path / "run"
    words = ("run", rlcd_recipe, data, f"contrast.own_system={own_system}", "--run-dir", run_dir)
    assert call(*words) == 0
    check_counts(run_dir)
    assert figures(run_dir, "contrast/contrasts")["dropped"] == (
        {"own_system": 10} if own_system == "skip" else {}
    )
    for (messages, principle, _), shown in seen:
        own = f"{messages[0].content}\n\n" if messages[0].role == "system" and own_system == "append" else ""
        assert shown[0] == Message(role="system", content=own + principle)
        assert [message.role for message in shown] == ["system", "user"]
    prompts = prompts_of(run_dir, "prompts") | prompts_of(run_dir, "held_out")
    pairs = pairs_of(run_dir) + pairs_of(run_dir, "held_out_pairs")
    trained_with_system = [pair for pair in pairs if pair.messages[0].role == "system"]
    assert len(trained_with_system) == (10 if own_system == "append" else 0)
    assert all(pair.messages == prompts[pair.prompt_id].messages for pair in trained_with_system)
    assert len(pairs) == (10 if own_system == "skip" else 20)


def test_a_run_goes_on_from_a_run_of_the_other_method(
    finished: Path, finished_run: Path, rlcd_recipe: Path, tiny_recipe: Path, tmp_path: Path, call
):
    for recipe, before, last, more in (
        (tiny_recipe, finished, "rlcd", ["num_iterations=1"]),
        (rlcd_recipe, finished_run, "iteration-2", []),
    ):
        run_dir = tmp_path / last
        words = ("run", recipe, f"policy.from_run={before}", *more, "--run-dir", run_dir)
        assert call(*words) == 0
        model = before / last / "model"
        assert read_json(run_dir / "manifest.json")["model"] == {
            "name": str(model),
            "fingerprint": find_model(str(model)).fingerprint,
        }


@pytest.mark.parametrize(
    "file", ["self_instruct/user_oriented_instructions.jsonl", "hh_rlhf/harmless-base/test.jsonl.gz"]
)
def test_public_prompts_are_contrasted(file: str, rlcd_recipe: Path, tmp_path: Path, call):
    if not (SHARED / file).is_file():
        pytest.skip(f"{file} is not here")
    run_dir = tmp_path / "run"
    words = ("run", rlcd_recipe, f"data.paths=[{SHARED / file}]", "data.limit=40", "--run-dir", run_dir)
    assert call(*words) == 0
    assert check_counts(run_dir)["kept"] >= 35
    assert all(pair.messages[-1].role == "user" for pair in pairs_of(run_dir))


def artifacts(run_dir: Path) -> dict[str, str]:
    """Return the hashes of the finished data files and weights by name."""
    files = [*run_dir.glob("*/*.jsonl"), *run_dir.glob("rlcd/*.json"), *run_dir.glob("*/model/*")]
    return {
        path.relative_to(run_dir).as_posix(): hash_file(path) for path in files if path.name != "metrics.json"
    }


@pytest.mark.slow
def test_kills_change_nothing(command, finished: Path, rlcd_recipe: Path, tmp_path: Path):
    draw = random.Random(11)  # noqa: S311 -- moments of death, no secret
    started = time.monotonic()
    subprocess.run(command(tmp_path / "timed", recipe=rlcd_recipe), check=True, capture_output=True)
    whole = time.monotonic() - started
    run_dir, kills, stages = tmp_path / "killed-0", 0, set()
    while kills < KILLS:
        process = subprocess.Popen(
            command(run_dir, recipe=rlcd_recipe), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            output, _ = process.communicate(timeout=draw.uniform(0.4 * whole, 0.95 * whole))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            stages |= {path.name.split(".")[0] for path in run_dir.glob("*/partial/*")}
        else:
            assert process.returncode == 0, output.decode()
            assert artifacts(run_dir) == artifacts(finished)
            run_dir = tmp_path / f"killed-{kills}"  # it finished before the moment came: begin another
    subprocess.run(command(run_dir, recipe=rlcd_recipe), check=True, capture_output=True)
    assert stages, "no kill fell into the middle of a stage"
    assert artifacts(run_dir) == artifacts(finished)
