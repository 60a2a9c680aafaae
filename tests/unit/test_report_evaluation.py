"""The page of an evaluation: gains and losses with paired intervals, on results written here."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fake_run import Page

from selfalign.config import EvaluationRecipe
from selfalign.evaluation.means import mean_measure
from selfalign.evaluation.results import TaskResult
from selfalign.report import write_report
from selfalign.report.gains import read_benchmarks
from selfalign.report.problems import Problems
from selfalign.runs.files import write_json

MODELS = ("M0", "M1", "M2")
QUESTIONS = 400
MANIFEST = {
    "method": "evaluation", "seed": 0, "model": {"name": "m", "fingerprint": "f"}, "chat_template": None,
    "data": {}, "invocations": [{"started": "2031-02-03T04:05:06+00:00", "selfalign": "9.8.7"}],
}  # fmt: skip


def finish(root: Path, model: str, task: str, result: TaskResult, rows: list[Any], file: str) -> None:
    write_json(root / model / f"{task}.json", result.model_dump(mode="json"))
    (root / model / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    manifest = {
        "stage": f"{model}/{task}", "parts": {}, "outputs": {}, "figures": {"rows": len(rows)},
        "warnings": [], "seconds": 60.0, "finished": "2031-02-03T04:06:07+00:00",
    }  # fmt: skip
    write_json(root / model / "manifests" / f"{task}.json", manifest)


def answered(task: str, model: str, shares: dict[str, float]) -> list[float]:
    """Return which questions a model answers; easy ones are easy for every model."""
    hard = random.Random(task)  # noqa: S311 -- reproducible, no secret
    return [float(hard.random() < shares[model]) for _ in range(QUESTIONS)]


def evaluation(root: Path, models: tuple[str, ...] = MODELS) -> Path:
    """Write an evaluation in which MMLU falls, GSM8K rises, MBPP stays, and MT-Bench has no rows."""
    shares = {
        "mmlu": {"M0": 0.6, "M1": 0.57, "M2": 0.5},
        "gsm8k": {"M0": 0.2, "M1": 0.25, "M2": 0.3},
        "mbpp": {"M0": 0.4, "M1": 0.4, "M2": 0.4},
    }
    plan = {"models": list(models), "tasks": [*shares, "mt_bench", "gpqa"], "not_run": {"gpqa": "no data"}}
    write_json(root / "plan.json", plan)
    recipe = EvaluationRecipe.model_validate({"method": "evaluation", "tasks": ["mmlu"]})
    write_json(root / "recipe.resolved.json", recipe.model_dump(mode="json"))
    write_json(root / "manifest.json", MANIFEST)
    for model in models:
        for task, share in shares.items():
            scores = answered(task, model, share)
            measure = mean_measure(scores, undefined="", seed=0)
            result = TaskResult(task=task, model=model, metric="acc", measures={"acc": measure})
            if task == "mbpp":
                status = {0.0: "failed", 1.0: "passed"}
                rows = [{"problem": f"p{n}", "status": status[score]} for n, score in enumerate(scores)]
                finish(root, model, task, result, rows, f"{task}_verdicts.jsonl")
            else:
                rows = [
                    {"id": n, "subject": None, "verdicts": {"acc": score}} for n, score in enumerate(scores)
                ]
                finish(root, model, task, result, rows, f"{task}_samples.jsonl")
        points = {"value": 5.0 + models.index(model), "low": None, "high": None, "n": 80, "reason": "none"}
        result = TaskResult(
            task="mt_bench", model=model, metric="all", unit="points", measures={"all": points}
        )
        finish(root, model, "mt_bench", result, [], "mt_bench_grades.jsonl")
    return root


def test_gains_and_losses_have_paired_intervals_and_verdicts(tmp_path: Path) -> None:
    problems = Problems(tmp_path)
    found = read_benchmarks(evaluation(tmp_path / "e"), problems)
    assert list(problems) == []
    assert found is not None
    verdicts = {task: cell.verdict for task, cell in found.whole.items()}
    assert verdicts == {"mmlu": "lost", "gsm8k": "gained", "mbpp": "open", "mt_bench": "open"}
    assert found.whole["mbpp"].text == "±0.0 (±0.0 to ±0.0)"
    assert found.whole["mt_bench"].text == "+2.00"
    assert found.said == "1 of 4 benchmarks lost, 1 gained, 2 open."
    assert set(found.steps) == {(task, model) for task in verdicts for model in ("M1", "M2")}


def test_a_paired_interval_is_narrower_than_those_of_the_two_values(tmp_path: Path) -> None:
    found = read_benchmarks(evaluation(tmp_path / "e"), Problems(tmp_path))
    assert found is not None
    change = found.whole["gsm8k"].text
    low, high = (float(end) for end in change.partition("(")[2].rstrip(")").split(" to "))
    unpaired = 2 * 1.96 * 100 * (2 * 0.25 * 0.75 / QUESTIONS) ** 0.5
    assert 0 < high - low < 0.7 * unpaired


def test_rows_that_do_not_give_the_headline_are_not_paired(tmp_path: Path) -> None:
    root = evaluation(tmp_path / "e")
    path = root / "M2" / "mmlu_samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-100]))
    found = read_benchmarks(root, Problems(root))
    assert found is not None
    assert "(" not in found.whole["mmlu"].text
    assert found.whole["mmlu"].verdict == "open"
    assert "(" in found.steps["mmlu", "M1"].text


def test_the_page_shows_gains_beside_losses(tmp_path: Path) -> None:
    root = evaluation(tmp_path / "e")
    page = Page(write_report(root).read_text(encoding="utf-8"))
    for words in ("From M0 to M2: 1 of 4 benchmarks lost", "▼ lost", "▲ gained", "○ open", "Not run", "GPQA"):
        assert words in page.text, words
    assert page.tags.count("svg") == 2
    assert "| MMLU |" in (root / "table.md").read_text(encoding="utf-8")


def test_an_evaluation_of_one_model_has_no_changes(tmp_path: Path) -> None:
    page = Page(write_report(evaluation(tmp_path / "e", ("M0",))).read_text(encoding="utf-8"))
    assert "MMLU" in page.text
    assert "▼ lost" not in page.text


@pytest.mark.parametrize("text", ["{", "[]", '{"models": 3}'])
def test_a_damaged_plan_is_named_and_the_rest_is_shown(tmp_path: Path, text: str) -> None:
    root = evaluation(tmp_path / "e")
    (root / "plan.json").write_text(text)
    problems = Problems(root)
    page = Page(write_report(root, problems).read_text(encoding="utf-8"))
    assert "plan.json" in next(iter(problems))
    assert "plan.json" in page.text.partition("Not all of the run could be read")[2].partition("Overview")[0]
    assert "M0/mmlu" in page.text


WITHOUT_HEADLINE = '{"task": "mmlu", "model": "M1", "metric": "acc", "measures": {}}'


@pytest.mark.parametrize("text", ['{"task": "mmlu"}', WITHOUT_HEADLINE])
def test_a_damaged_result_is_named_and_left_out(tmp_path: Path, text: str) -> None:
    root = evaluation(tmp_path / "e")
    (root / "M1" / "mmlu.json").write_text(text)
    problems = Problems(root)
    found = read_benchmarks(root, problems)
    assert found is not None
    assert "M1/mmlu.json" in next(iter(problems))
    mmlu = found.rows[0]
    assert mmlu.cells[1] is None
    assert mmlu.cells[0] is not None
