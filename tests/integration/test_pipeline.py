"""Whole runs: what they leave, how they join, and how they stop."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfalign.models.source import find_model
from selfalign.records import Completion, Judgment, PreferencePair, Prompt
from selfalign.runs.files import read_json, read_rows

SILENT_JUDGE = """\
vocabulary = "one two three four five six seven eight nine ten"
[[rules]]
match = '(?s)Score:.*zebra'
reply = 'Score: 3'
[[rules]]
match = 'Score:'
reply = 'Score: {{ number(0, 5) }}'
[[rules]]
match = '(?s)1\\..*2\\.'
reply = 'Tell us about {{ words(4) }} and {{ words(4) }} today.'
[[rules]]
match = ''
reply = 'A zebra said {{ words(8) }}.'
"""


def rows(path: Path) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def test_a_run_leaves_everything_it_promises(finished_run: Path):
    for name in ("recipe.yaml", "recipe.resolved.json", "manifest.json", "events.jsonl", "report.html"):
        assert (finished_run / name).is_file(), name
    for place in ("sft", "eft", "iteration-1", "iteration-2"):
        assert (finished_run / place / "model" / "model.safetensors").is_file()
        assert (finished_run / place / "model" / "tokenizer.json").is_file()
        assert read_json(finished_run / place / "metrics.json")["evaluate"]["rows"] > 0
        assert not list((finished_run / place).glob("partial/*"))
    for iteration in (1, 2):
        folder = finished_run / f"iteration-{iteration}"
        for name in ("prompts", "candidates", "judgments", "pairs"):
            assert (folder / f"{name}.jsonl").stat().st_size > 0


def test_every_model_loads_as_an_ordinary_one(finished_run: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for place in ("sft", "eft", "iteration-1", "iteration-2"):
        model = AutoModelForCausalLM.from_pretrained(finished_run / place / "model")
        tokenizer = AutoTokenizer.from_pretrained(finished_run / place / "model")
        turns = [{"role": "user", "content": "Hello"}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert model(**ids).logits.isfinite().all()


def test_rows_join_by_key_through_all_stages(finished_run: Path):
    for folder in finished_run.glob("iteration-*"):
        prompts = {p.prompt_id: p for p in read_rows(folder / "prompts.jsonl", Prompt)}
        candidates = {c.completion_id: c for c in read_rows(folder / "candidates.jsonl", Completion)}
        scores: dict[str, list[float]] = {}
        for judgment in read_rows(folder / "judgments.jsonl", Judgment):
            assert candidates[judgment.completion_id].prompt_id == judgment.prompt_id
            if judgment.score is not None:
                scores.setdefault(judgment.completion_id, []).append(judgment.score)
        assert len(candidates) == 4 * len(prompts)
        for pair in read_rows(folder / "pairs.jsonl", PreferencePair):
            assert pair.messages == prompts[pair.prompt_id].messages
            for side, text, reward in (
                (pair.chosen_id, pair.chosen, pair.reward_chosen),
                (pair.rejected_id, pair.rejected, pair.reward_rejected),
            ):
                assert candidates[side].prompt_id == pair.prompt_id
                assert candidates[side].text == text
                assert reward == pytest.approx(sum(scores[side]) / len(scores[side]))
            assert pair.margin > 0


def test_no_prompt_is_on_two_sides(finished_run: Path):
    ids = {name: {row["prompt_id"] for row in rows(finished_run / "data" / f"{name}.jsonl")}
           for name in ("ift", "ranked", "held_out")}  # fmt: skip
    assert not ids["ift"] & ids["held_out"]
    assert not ids["ranked"] & ids["held_out"]
    learned = {row["prompt_id"] for row in rows(finished_run / "eft" / "examples.jsonl")}
    assert learned <= ids["ranked"]


def test_prompts_of_later_iterations_are_new(finished_run: Path):
    first = {row["prompt_id"] for row in rows(finished_run / "iteration-1" / "prompts.jsonl")}
    second = {row["prompt_id"] for row in rows(finished_run / "iteration-2" / "prompts.jsonl")}
    assert first
    assert second
    assert not first & second


def test_the_reference_is_the_policy_before_training(finished_run: Path):
    """At the first step policy and reference are one model: every margin is 0 and the loss is log 2."""
    for folder in finished_run.glob("iteration-*"):
        first = next(rows(folder / "training.jsonl"))
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
        assert first["loss"] == pytest.approx(0.693147, abs=1e-4)


def test_a_second_command_finds_everything_done(command, finished_run: Path, tiny_recipe: Path):
    before = {path: path.stat().st_mtime_ns for path in finished_run.glob("*/model/*")}
    plan = subprocess.run(
        command(finished_run, "--dry-run", "--json"), check=True, capture_output=True, text=True
    )
    assert {stage["state"] for stage in json.loads(plan.stdout)} == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.glob("*/model/*")}


@pytest.fixture(scope="module")
def own_run(command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run that tests may change."""
    run_dir = tmp_path_factory.mktemp("own") / "run"
    subprocess.run(command(run_dir), check=True, capture_output=True)
    return run_dir


def test_a_changed_recipe_is_refused_and_update_redoes_what_it_touches(
    own_run: Path, tiny_recipe: Path, call, capsys
):
    words = ("run", tiny_recipe, "dpo.beta=0.3", "--run-dir", own_run)
    judgments = (own_run / "iteration-1" / "judgments.jsonl").read_bytes()
    assert call(*words) == 2
    message = capsys.readouterr().err
    assert "iteration-1/train" in message
    assert "beta: 0.1 -> 0.3" in message
    assert "--update" in message
    old = (own_run / "iteration-1" / "model" / "model.safetensors").read_bytes()
    assert call(*words, "--update") == 0
    assert (own_run / "iteration-1" / "judgments.jsonl").read_bytes() == judgments
    assert (own_run / "iteration-1" / "model" / "model.safetensors").read_bytes() != old
    kept = [path.read_bytes() for path in own_run.glob("stale/*iteration-1-train/model/model.safetensors")]
    assert kept == [old]


def test_more_iterations_go_on_without_redoing_any(own_run: Path, tiny_recipe: Path, call, capsys):
    words = ("run", tiny_recipe, "dpo.beta=0.3", "num_iterations=3", "--run-dir", own_run)
    before = (own_run / "iteration-2" / "model" / "model.safetensors").stat().st_mtime_ns
    assert call(*words) == 0
    assert (own_run / "iteration-3" / "model" / "model.safetensors").is_file()
    assert (own_run / "iteration-2" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_no_pair_left_stops_the_run_and_says_how_to_go_on(tiny_recipe: Path, tmp_path: Path, call, capsys):
    script = tmp_path / "script.toml"
    script.write_text(SILENT_JUDGE)
    run_dir = tmp_path / "run"
    words = ("run", tiny_recipe, f"engine.script={script}", "--run-dir", run_dir)
    assert call(*words) == 2
    message = capsys.readouterr().err
    assert "no pair is left" in message
    assert "equal_rewards" in message
    assert "Traceback" not in message
    assert not (run_dir / "iteration-1" / "pairs.jsonl").exists()
    assert (run_dir / "iteration-1" / "judgments.jsonl").exists()
    assert not (run_dir / "iteration-1" / "model").exists()


def test_training_that_diverges_saves_no_model(tiny_recipe: Path, tmp_path: Path, call, capsys):
    run_dir = tmp_path / "run"
    words = ("run", tiny_recipe, "sft.learning_rate=1e30", "sft.epochs=3", "--run-dir", run_dir)
    assert call(*words) == 2
    assert "not finite" in capsys.readouterr().err
    assert not (run_dir / "sft" / "model").exists()


def test_a_full_disk_is_said_plainly_and_the_run_goes_on_later(
    tiny_recipe: Path, tmp_path: Path, call, monkeypatch, capsys
):
    import selfalign.stages.pairs as stage

    run_dir = tmp_path / "run"
    real = stage.write_rows

    def full(path: Path, records: object) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(stage, "write_rows", full)
    assert call("run", tiny_recipe, "--run-dir", run_dir) == 2
    message = capsys.readouterr().err
    assert "No space left" in message
    assert "run again" in message
    assert not (run_dir / "iteration-1" / "pairs.jsonl").exists()
    monkeypatch.setattr(stage, "write_rows", real)
    assert call("run", tiny_recipe, "--run-dir", run_dir) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_how_to_go_on(command, tmp_path: Path, number: int, code: int):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (run_dir / "sft" / "manifests" / "train.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == code
    assert "The same command goes on" in message
    assert "Traceback" not in message
    assert (run_dir / "sft" / "model" / "model.safetensors").is_file()


def test_a_second_process_is_refused(command, tmp_path: Path):
    run_dir = tmp_path / "run"
    first = subprocess.Popen(command(run_dir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run_dir / ".holder.json").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.run(command(run_dir), capture_output=True, text=True, check=False)
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert f"pid {first.pid} on " in second.stderr


@pytest.mark.parametrize(
    "overrides",
    [
        [f"{part}.lora={{rank: 4, alpha: 8}}" for part in ("sft", "eft.train", "dpo.train")],
        ["dpo.train.lora={rank: 4, alpha: 8}", "eft.training=sequential"],
        ["eft.target=rationale", "eft.max_length_correlation=0.02", "pairs.strategy=all", "judge.samples=1"],
        ["judge.method=expected", "pairs.near_best=0.5", "pairs.length_cost=0.01"],
        ["judge.method=expected_after_rationale", "judge.attacked_prompts=0"],
        ["judge.method=pairwise"],
        ["eft={target: ranking, agreement: none, training: sequential}", "judge.method=expected"],
        ["dpo.train.validation={fraction: 0.2, every: 2}", "dpo.learning_rates=[1e-3]", "sft.dropout=0.1"],
    ],
    ids=[
        "lora",
        "lora-over-full",
        "rationale-and-all-pairs",
        "expected",
        "after-rationale",
        "pairwise",
        "ranking",
        "validation",
    ],
)  # fmt: skip
def test_other_choices_run_to_the_end(overrides: list[str], tiny_recipe: Path, tmp_path: Path, call, capsys):
    run_dir = tmp_path / "run"
    assert call("run", tiny_recipe, *overrides, "--run-dir", run_dir) == 0, capsys.readouterr().err
    model = run_dir / "iteration-2" / "model"
    if "lora" in overrides[0]:
        assert (model / "adapter_model.safetensors").is_file()
        assert not (model / "model.safetensors").exists()
        assert call("merge", model, tmp_path / "merged") == 0
        model = tmp_path / "merged"
    assert (model / "model.safetensors").is_file()


def test_a_fixed_generator_writes_the_prompts(tiny_recipe: Path, tiny_model: Path, tmp_path: Path, call):
    run_dir = tmp_path / "run"
    words = ("run", tiny_recipe, f"prompts.generator={tiny_model}", "num_iterations=1", "--run-dir", run_dir)
    assert call(*words) == 0
    parts = read_json(run_dir / "iteration-1" / "manifests" / "prompts.json")["parts"]
    assert parts["input generator"] == find_model(str(tiny_model)).fingerprint


def test_a_fixed_judge_judges_and_is_measured(tiny_recipe: Path, tmp_path: Path, call):
    run_dir = tmp_path / "run"
    model = tiny_recipe.parent / "model"
    assert call("run", tiny_recipe, f"judge.model={model}", "num_iterations=1", "--run-dir", run_dir) == 0
    for where in ("eft", "iteration-1"):
        parts = read_json(run_dir / where / "manifests" / "judgments.json")["parts"]
        assert parts["input judge"] == find_model(str(model)).fingerprint
    assert read_json(run_dir / "judge" / "judge_quality.json")["judge"]["parse_rate"] > 0
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "fixed judge" in page
    assert "Attacks on the judge" in page


def test_the_local_engine_runs_the_loop_too(tiny_recipe: Path, tmp_path: Path, call, capsys):
    """A random model can't judge, so the run must stop for want of agreeing judgments, and say so."""
    run_dir = tmp_path / "run"
    words = (
        "run",
        tiny_recipe,
        "engine.kind=transformers",
        "judge.sampling.max_new_tokens=4",
        "--run-dir",
        run_dir,
    )
    assert call(*words) == 2
    message = capsys.readouterr().err
    assert "none of" in message
    assert "agrees with the human order" in message
