"""The table of an evaluation, from results that are written here by hand."""

from pathlib import Path
from typing import Any

from selfalign.evaluation.results import LABELS, TaskResult
from selfalign.report.benchmarks import as_markdown, benchmark_rows, read_table
from selfalign.report.problems import Problems
from selfalign.runs.files import write_json


def measure(value: float | None, low: float | None = None, high: float | None = None, n: int = 20) -> Any:
    reason = "nothing was asked" if value is None else None
    return {"value": value, "low": low, "high": high, "n": n, "reason": reason}


def result(task: str, model: str, value: float | None, **more: Any) -> TaskResult:
    measures = {"acc": measure(value, *((value - 0.1, value + 0.1) if value is not None else ()))}
    return TaskResult(task=task, model=model, **{"metric": "acc", "measures": measures, **more})


def test_shares_are_shown_in_per_cent_with_interval_and_change() -> None:
    found = {("mmlu", "M0"): result("mmlu", "M0", 0.25), ("mmlu", "M1"): result("mmlu", "M1", 0.5)}
    [row] = benchmark_rows(["M0", "M1"], found)
    assert row.label == "MMLU"
    assert row.cells == ("25.0 (15.0–35.0)", "50.0 (40.0–60.0)")
    assert (row.change, row.over) == ("+25.0", "20")


def test_the_change_is_from_the_first_model_to_the_last() -> None:
    values = {"M0": 0.5, "M1": 0.9, "M2": 0.4}
    found = {("gsm8k", name): result("gsm8k", name, value) for name, value in values.items()}
    assert benchmark_rows(list(values), found)[0].change == "-10.0"


def test_points_are_shown_as_they_are() -> None:
    found = {
        ("mt_bench", "model"): result(
            "mt_bench", "model", None, unit="points", measures={"acc": measure(7.25)}
        )
    }
    [row] = benchmark_rows(["model"], found)
    assert row.cells == ("7.25",)
    assert row.change is None


def test_a_model_that_is_not_measured_yet_or_scored_nothing_has_an_empty_cell_and_no_change() -> None:
    found = {("mmlu", "M0"): result("mmlu", "M0", 0.25), ("gsm8k", "M0"): result("gsm8k", "M0", None)}
    rows = benchmark_rows(["M0", "M1"], found)
    assert [row.cells for row in rows] == [("25.0 (15.0–35.0)", None), (None, None)]
    assert [row.change for row in rows] == [None, None]


def test_ifeval_has_a_row_for_each_of_its_measures() -> None:
    measures = {"prompt strict": measure(0.2), "instruction loose": measure(0.4)}
    found = {("ifeval", "model"): result("ifeval", "model", None, metric="prompt strict", measures=measures)}
    rows = benchmark_rows(["model"], found)
    assert [(row.label, row.cells) for row in rows] == [
        ("IFEval prompt strict", ("20.0",)),
        ("IFEval instruction loose", ("40.0",)),
    ]


def test_each_note_stands_once() -> None:
    found = {
        ("mmlu", name): result("mmlu", name, 0.5, notes=("20 of 14,042 questions",)) for name in ("M0", "M1")
    }
    assert benchmark_rows(["M0", "M1"], found)[0].note == "20 of 14,042 questions"


def test_a_note_that_is_not_of_all_models_says_of_which() -> None:
    said = {"M0": ("20 questions", "3 cut off"), "M1": ("20 questions", "5 cut off"), "M2": ("20 questions",)}
    said["M3"] = ("20 questions", "3 cut off")
    found = {("mmlu", name): result("mmlu", name, 0.5, notes=notes) for name, notes in said.items()}
    [row] = benchmark_rows([*said, "M4"], found)
    assert row.note == "20 questions; M0, M3: 3 cut off; M1: 5 cut off"


def test_markdown_keeps_its_columns_whatever_a_name_holds() -> None:
    found = {("mmlu", "a|b\nc"): result("mmlu", "a|b\nc", 0.5)}
    text = as_markdown(["a|b\nc"], benchmark_rows(["a|b\nc"], found), {"gpqa": "no | data"})
    head, rule, mmlu, gpqa = text.splitlines()
    assert head == "| benchmark | a\\|b c | questions | note |"
    assert rule.count("---") == 4
    assert mmlu == "| MMLU | 50.0 (40.0–60.0) | 20 |  |"
    assert gpqa == "| GPQA | not run |  | no \\| data |"


def test_the_table_of_a_run_is_that_of_its_evaluation_and_holds_what_is_done(tmp_path: Path) -> None:
    place = tmp_path / "evaluation"
    plan = {"models": ["M0", "M1"], "tasks": ["mmlu", "gpqa"], "not_run": {"gpqa": "no data"}}
    write_json(place / "plan.json", plan)
    for name in ("M0", "M1"):
        write_json(place / name / "mmlu.json", result("mmlu", name, 0.5).model_dump(mode="json"))
    write_json(place / "M0" / "manifests" / "mmlu.json", {})
    table = read_table(tmp_path, Problems(tmp_path))
    assert table is not None
    models, [row], not_run = table
    assert models == ["M0", "M1"]
    assert row.cells == ("50.0 (40.0–60.0)", None)
    assert not_run == {"gpqa": "no data"}


def test_a_run_that_was_never_evaluated_has_no_table(tmp_path: Path) -> None:
    assert read_table(tmp_path, Problems(tmp_path)) is None


def test_every_benchmark_of_a_recipe_has_a_label() -> None:
    from typing import get_args

    from selfalign.config.evaluation import Task

    assert set(get_args(Task)) == set(LABELS)
