from pathlib import Path

import pytest

from selfalign.records import Completion
from selfalign.runs import Work
from selfalign.runs.events import EventLog
from selfalign.runs.files import write_rows
from selfalign.stages.candidates import candidate_figures


def warnings_of(folder: Path, texts: list[str]) -> list[str]:
    work = Work("iteration-1/candidates", folder, "candidates", EventLog(folder / "events.jsonl"))
    rows = [
        Completion(
            completion_id=f"{number}", prompt_id=f"{number // 2}", sample=number % 2, text=text,
            finish_reason="stop", num_tokens=3,
        )
        for number, text in enumerate(texts)
    ]  # fmt: skip
    write_rows(folder / "candidates.jsonl", rows)
    figures = candidate_figures(work)
    assert figures["rows"] == len(texts)
    return work.warnings


@pytest.mark.parametrize("line", ["Score: 3", "**Score:** 4", " score: 2/5\n"])
def test_a_model_that_judges_where_it_should_answer_is_warned_of(line: str, tmp_path: Path) -> None:
    [warning] = warnings_of(tmp_path, [line, "Water boils at 100 degrees."])
    assert warning.startswith("1 of 2 candidates are nothing but a score")
    assert "eft.training=joint" in warning


def test_an_answer_that_states_a_score_is_an_answer(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, ["The match ended.\nScore: 3", "I don't know the result."]) == []


def test_a_few_score_lines_are_no_reason_to_warn(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, ["Score: 3", *(f"answer {number}" for number in range(19))]) == []
