"""Reports of runs that are incomplete, being written, of another version, or damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import pytest
import test_report_rlcd
from fake_run import Page

from selfalign.report import write_report
from selfalign.report.problems import Problems
from selfalign.runs.files import read_json, write_json


def reported(root: Path) -> tuple[list[str], str]:
    """Return the problems that the page tells on top, as the command line gets them, and its whole text."""
    problems = Problems(root)
    page = Page(write_report(root, problems).read_text(encoding="utf-8"))
    told = list(problems)
    notice = page.text.partition("Not all of the run could be read")[2].partition("Overview")[0]
    assert all(" ".join(problem.split()) in " ".join(notice.split()) for problem in told[:20])
    return told, page.text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return fake_run.FakeRun(tmp_path / "run").until(fake_run.STAGES[-1]).root


@pytest.fixture
def rlcd(tmp_path: Path) -> Path:
    return test_report_rlcd.FakeRun(tmp_path / "rlcd").until(test_report_rlcd.STAGES[-1]).root


def damage(path: Path, row: int, text: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[row - 1] = text
    path.write_text("".join(lines), encoding="utf-8")


ROWS = [
    "data/held_out.jsonl",
    "sft/held_out_judgments.jsonl",
    *(f"iteration-1/{name}.jsonl" for name in ("generations", "prompts", "candidates", "judgments", "pairs")),
    "iteration-2/training.jsonl",
]


@pytest.mark.parametrize("file", ROWS)
@pytest.mark.parametrize("text", ['{"half a ro\n', "\x00\n", '{"another": "version"}\n', "[]\n"])
def test_a_damaged_row_is_named_and_the_others_are_shown(run: Path, file: str, text: str) -> None:
    damage(run / file, 2, text)
    told, page = reported(run)
    assert told[0].startswith(f"{file}, row 2: not a")
    assert len(told) == 2  # and that another version made the run
    for words in (
        "Finished",
        "M3",
        "Margins",
        "Iteration 2: 6 of 6 shown",
        "Generated prompts",
        "num_iterations",
    ):
        assert words in page, words


def test_many_damaged_rows_of_a_file_are_told_together(run: Path) -> None:
    path = run / "iteration-1/judgments.jsonl"
    path.write_text("{}\n" * 5000)
    told, _ = reported(run)
    assert len(told) == 2
    assert told[0].startswith("iteration-1/judgments.jsonl, row 1: ")
    assert told[0].endswith("the row is left out; so are 4,999 more rows of this file")


RLCD_ROWS = [
    *(f"contrast/{name}.jsonl" for name in ("contrasts", "completions", "pairs", "held_out_pairs")),
    *("rlcd/base_outputs.jsonl", "rlcd/policy_outputs.jsonl", "rlcd/training.jsonl", "data/held_out.jsonl"),
]


@pytest.mark.parametrize("file", RLCD_ROWS)
def test_a_damaged_row_of_an_rlcd_run_is_named(rlcd: Path, file: str) -> None:
    damage(rlcd / file, 1, '{"half a ro\n')
    told, page = reported(rlcd)
    assert told[0].startswith(f"{file}, row 1: not a")
    for words in ("What training did", "Contrast strength", "Pairs to browse", "Answers before and after"):
        assert words in page, words


@pytest.mark.parametrize("file", [*ROWS, "sft/judge_quality.json"])
def test_a_missing_file_is_named_and_the_rest_is_shown(run: Path, file: str) -> None:
    (run / file).unlink()
    told, page = reported(run)
    assert any(problem.startswith(f"{file}: ") for problem in told)
    assert "M3" in page
    assert "Judge health" in page


@pytest.mark.parametrize("directory", ["data", "sft", "eft", "iteration-1", "iteration-2"])
def test_a_missing_directory_leaves_the_others(run: Path, directory: str) -> None:
    shutil.rmtree(run / directory)
    told, page = reported(run)
    assert "Overview" in page
    assert all("not shown" not in problem for problem in told)


@pytest.mark.parametrize("name", ["manifest.json", "recipe.resolved.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"method": []}', '{"gate": 3, "invocations": []}'])
def test_a_run_without_its_manifest_or_recipe_is_shown(run: Path, name: str, text: str) -> None:
    if text:
        (run / name).write_text(text)
    else:
        (run / name).unlink()
    told, page = reported(run)
    assert told != []
    assert "M3" in page
    assert "Iteration 2: 6 of 6 shown" in page


OTHER_OUTPUTS = {
    "stage": "iteration-1/pairs", "figures": {}, "warnings": [], "seconds": 1, "finished": "", "outputs": [3],
}  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '{"stage": "iteration-1/pairs"}', json.dumps(OTHER_OUTPUTS)]
)
def test_a_damaged_manifest_of_a_stage_is_named_and_the_stage_left_out(run: Path, text: str) -> None:
    (run / "iteration-1/manifests/pairs.json").write_text(text)
    told, page = reported(run)
    assert told[0].startswith("iteration-1/manifests/pairs.json: ")
    assert "Iteration 1: 6 of 6 shown" not in page
    assert "Iteration 2: 6 of 6 shown" in page


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = read_json(path)
    change(value)
    write_json(path, value)


def test_a_stage_of_a_version_that_counted_less_is_shown_with_what_it_counted(run: Path) -> None:
    for path in run.glob("*/manifests/*.json"):
        changed(path, lambda manifest: manifest["figures"].clear())
    told, page = reported(run)
    assert any("another shape" in problem for problem in told)
    assert told[-1].startswith("selfalign 9.8.7 made the run")
    for words in ("Overview", "M3", "Iteration 2: 6 of 6 shown", "rewards/margins", "The run"):
        assert words in page, words


@pytest.mark.parametrize("stage", fake_run.STAGES)
def test_no_figure_of_a_stage_is_needed_for_a_page(run: Path, stage: str) -> None:
    path = run / f"{stage.replace('/', '/manifests/')}.json"
    for name in read_json(path)["figures"]:
        before = path.read_bytes()
        changed(path, lambda manifest, name=name: manifest["figures"].pop(name))  # type: ignore[misc]
        _, page = reported(run)
        assert "The run" in page
        path.write_bytes(before)


def test_files_that_are_being_written_are_no_problem(tmp_path: Path) -> None:
    root = fake_run.FakeRun(tmp_path / "run").until("iteration-1/candidates").root
    before, _ = reported(root)
    (root / "iteration-1/partial").mkdir()
    (root / "iteration-1/partial/judgments.abc.judgments.jsonl").write_text('{"half a ro')
    (root / "iteration-1/.judgments.jsonl.12.tmp").write_text('{"half a ro')
    (root / "events.jsonl").write_text('{"event": "run_started"}\n7\n{"event": "run_sto')
    assert before == reported(root)[0] == []


def test_rows_that_were_cut_off_after_the_stage_are_told(run: Path) -> None:
    path = run / "iteration-1/candidates.jsonl"
    manifest = run / "iteration-1/manifests/candidates.json"
    size = path.stat().st_size
    changed(manifest, lambda value: value.update(outputs={path.name: {"size": size, "sha256": ""}}))
    assert reported(run)[0] == []
    path.write_bytes(path.read_bytes()[:-100])
    told, _ = reported(run)
    assert told[0] == "iteration-1/candidates.jsonl: was changed after iteration-1/candidates had made it"
    assert told[1].startswith("iteration-1/candidates.jsonl, row 24: not a Completion")


@pytest.mark.parametrize("measure", [None, {}, {"value": "high"}, 3])
def test_a_measure_of_another_shape_leaves_its_model_out(run: Path, measure: Any) -> None:
    changed(run / "eft/judge_quality.json", lambda quality: quality["judge"].update(tie_rate=measure))
    told, page = reported(run)
    assert told[0].startswith("M1 as a judge: not shown")
    assert "M3" in page
