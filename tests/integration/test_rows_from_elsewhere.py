"""Runs into which prompts, candidates, judgments or pairs come from elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfalign.records import Completion, Judgment, PreferencePair, Prompt, RankedPrompt
from selfalign.runs.files import read_json, read_rows

UltraFeedback = dict[str, Any]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ultrafeedback(number: int) -> list[UltraFeedback]:
    """Rows with four rated completions each, the third of them the best and the last the worst."""
    return [
        {
            "source": "made up",
            "instruction": f"Name {i} rivers.",
            "completions": [
                {
                    "model": str(n),
                    "response": f"River {i}.{n}",
                    "overall_score": score,
                    "critique": f"because {n}",
                }
                for n, score in enumerate((3.0, 4.5, 9.0, 1.0))
            ],
        }
        for i in range(number)
    ]


@pytest.fixture
def short(tiny_recipe: Path):
    """Words that run one iteration of the tiny recipe from a model that is M1 already."""
    return ("run", tiny_recipe, "num_iterations=1", "start=M1")


def test_rated_candidates_from_elsewhere_become_pairs(call, short, tmp_path: Path):
    file = write(tmp_path / "rated.jsonl", ultrafeedback(8))
    words = (
        *short,
        f"imports.candidates=[{file}]",
        f"imports.judgments=[{file}]",
        "report_to=[tensorboard]",
        "--run-dir",
        tmp_path / "run",
    )
    assert call(*words) == 0
    place = tmp_path / "run" / "iteration-1"
    prompts = list(read_rows(place / "prompts.jsonl", Prompt))
    assert [prompt.messages[-1].content for prompt in prompts] == [f"Name {i} rivers." for i in range(8)]
    candidates = list(read_rows(place / "candidates.jsonl", Completion))
    assert [(c.sample, c.text, c.num_tokens) for c in candidates[:4]] == [
        (n, f"River 0.{n}", 9) for n in range(4)
    ]
    assert [j.text for j in read_rows(place / "judgments.jsonl", Judgment)][:2] == ["because 0", "because 1"]
    pairs = list(read_rows(place / "pairs.jsonl", PreferencePair))
    assert [(p.chosen, p.rejected, p.margin) for p in pairs] == [
        (f"River {i}.2", f"River {i}.3", 8.0) for i in range(8)
    ]
    assert not (place / "attacks.jsonl").exists()
    assert not (tmp_path / "run" / "sft").exists()
    assert (place / "model" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    reported = EventAccumulator(str(tmp_path / "run" / "tracking" / "figures")).Reload()
    assert [(s.step, s.value) for s in reported.Scalars("pairs/mean_margin")] == [(2, 8.0)]
    assert [s.step for s in reported.Scalars("evaluate/pairwise_accuracy")] == [1, 2]


def test_pairs_from_elsewhere_train_one_iteration_and_the_next_makes_its_own(
    call, tiny_recipe, tmp_path: Path
):
    rows = [{"prompt": f"Q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(6)]
    file = write(tmp_path / "pairs.jsonl", rows)
    words = ("run", tiny_recipe, "start=M1", f"imports.pairs=[{file}]", "--run-dir", tmp_path / "run")
    assert call(*words) == 0
    first, second = (tmp_path / "run" / f"iteration-{t}" for t in (1, 2))
    pairs = list(read_rows(first / "pairs.jsonl", PreferencePair))
    assert [(p.messages[-1].content, p.chosen, p.rejected, p.margin) for p in pairs] == [
        (f"Q {i}", f"good {i}", f"bad {i}", None) for i in range(6)
    ]
    assert not (first / "candidates.jsonl").exists()
    assert (second / "candidates.jsonl").is_file()
    assert read_json(first / "metrics.json")["pairs"]["from"] == str(file)


def test_a_changed_file_makes_its_iteration_stale(call, short, tmp_path: Path, capsys):
    file = write(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "b"}] * 1)
    words = (*short, f"imports.pairs=[{file}]", "--run-dir", tmp_path / "run")
    assert call(*words) == 0
    write(file, [{"prompt": "Q", "chosen": "b", "rejected": "a"}])
    capsys.readouterr()
    assert call(*words) == 2
    message = capsys.readouterr().err
    assert "iteration-1/pairs: from changed" in message
    assert call(*words, "--update") == 0
    (pair,) = read_rows(tmp_path / "run" / "iteration-1" / "pairs.jsonl", PreferencePair)
    assert (pair.chosen, pair.rejected) == ("b", "a")


def test_scores_of_own_candidates_may_come_later_and_join_by_key(call, short, tmp_path: Path, capsys):
    scores = tmp_path / "scores.jsonl"
    run = tmp_path / "run"
    words = (*short, f"imports.judgments=[{scores}]", "--run-dir", run)
    assert call(*words) == 2
    assert "selfalign export RUN --what candidates" in capsys.readouterr().err
    assert call("export", run, tmp_path / "out", "--what", "candidates") == 0
    exported = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert {row["score"] for row in exported} == {None}
    named = [
        {"completion_id": row["completion_id"], "score": len(row["completion"][0]["content"])}
        for row in exported
    ]
    write(scores, named[::-1])  # the order says nothing
    assert call(*words) == 0
    texts = {c.completion_id: c.text for c in read_rows(run / "iteration-1" / "candidates.jsonl", Completion)}
    for judgment in read_rows(run / "iteration-1" / "judgments.jsonl", Judgment):
        assert judgment.score == len(str(texts[judgment.completion_id]))


def test_a_bad_row_is_refused_before_anything_is_trained(call, tiny_recipe, tmp_path: Path, capsys):
    file = write(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "b"}, {"prompt": "Q"}])
    run = tmp_path / "run"
    assert call("run", tiny_recipe, f"imports.pairs=[{file}]", "--run-dir", run) == 2
    assert f'{file}, row 2: "chosen" or "rejected" is missing' in capsys.readouterr().err
    assert not (run / "sft").exists()


def test_prompts_that_judges_are_measured_on_are_left_out(call, short, finished_run: Path, tmp_path: Path):
    held_out = list(read_rows(finished_run / "data" / "held_out.jsonl", RankedPrompt))
    asked = [prompt.messages[-1].content for prompt in held_out]
    rows = [{"prompt": text.upper(), "chosen": "a", "rejected": "b"} for text in asked]
    file = write(tmp_path / "pairs.jsonl", [*rows, {"prompt": "fresh", "chosen": "a", "rejected": "b"}])
    assert call(*short, f"imports.pairs=[{file}]", "--run-dir", tmp_path / "run") == 0
    figures = read_json(tmp_path / "run" / "iteration-1" / "metrics.json")["pairs"]
    assert figures["dropped"] == {"held_out": len(held_out)}
    assert figures["rows"] == 1
