"""The page as a whole, on run directories made with the same pure functions as the stages use."""

import json
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from fake_run import HARMLESS, HOSTILE, STAGES, FakeRun, Page

from selfalign.report import write_report
from selfalign.report.problems import Problems


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return FakeRun(tmp_path / "my run").until(STAGES[-1]).root


def page_of(root: Path) -> Page:
    """Return the page of a run in which everything can be read."""
    problems = Problems(root)
    path = write_report(root, problems)
    assert list(problems) == []
    return Page(path.read_text(encoding="utf-8"))


def values(page: Page, attribute: str) -> Iterator[str | None]:
    return (value for _, name, value in page.attributes if name == attribute)


def test_a_finished_run_tells_everything_in_order(finished: Path) -> None:
    page = page_of(finished)
    expected = (
        "my run", "self rewarding from model name", "2031-02-03 04:05 UTC", "selfalign 9.8.7",
        "Finished: 21 stages took 31.5 s", "Warnings", "warning sft/evaluate",
        "Overview", "Some Processor, 2 cores, 8.0 GiB; 2 × Some Accelerator; Some System",
        "31.5 s in 21 finished stages", "written by models, 160 trained on", "training",
        "How well the models judge",
        "SFT baseline", "M1", "M2", "M3", "length alone", "How to read", "Iterations", "Scores",
        "Rewards", "Margins", "Lengths in tokens", "Judge health",
        "wanted", "500", "accepted", "dropped: near duplicate",
        "finish reason: stop", "unscored: no score", "Training", "rewards/margins", "rewards/accuracies",
        "Data and EFT", "1,234", "dropped: orphan", "dropped: score balance", "Pairs to browse",
        "6 of 6 shown", "+3.00", "Chosen", "Rejected", "rationale", "What was dropped", "Iteration 1",
        "Generated prompts", "near duplicate", "prompt 0", "too short", "A", "Judgments without a score",
        "no score", "The run",
        "iteration-2/evaluate", "ift data", "d1", "num_iterations: 2",
    )  # fmt: skip
    place = 0
    for words in expected:
        assert words in page.text[place:], words
        place = page.text.index(words, place)


def test_the_page_loads_nothing_and_runs_nothing(finished: Path) -> None:
    page = page_of(finished)
    assert {"script", "link", "iframe", "object", "embed", "img", "form", "base"}.isdisjoint(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "style")]
    assert all(value and value.startswith("#") for value in values(page, "href"))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", "content", policy) in page.attributes
    css = write_report(finished).read_text().partition("<style>")[2].partition("</style>")[0]
    assert len(css) > 1000
    assert "url(" not in css
    assert "@import" not in css


def test_the_page_is_well_formed_for_readers_and_screen_readers(finished: Path) -> None:
    page = page_of(finished)
    headings = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    ids = list(values(page, "id"))
    assert len(ids) == len(set(ids))
    assert {str(value)[1:] for value in values(page, "href")} <= set(ids)
    charts = page.tags.count("svg")
    assert charts == 3 + 4 * 2 + 4 + 2 + 2 * 3 + 1
    assert page.tags.count("desc") == charts


def test_hostile_text_stays_text_wherever_it_stands(tmp_path: Path) -> None:
    hostile_name = "<script>alert('1')\"\u202e&amp;"
    benign = page_of(FakeRun(tmp_path / "benign").until(STAGES[-1]).root)

    def say(kind: str, key: str) -> str:
        return f"{HOSTILE} {kind} {key}"

    root = FakeRun(tmp_path / hostile_name, say).until(STAGES[-1]).root
    html = write_report(root).read_text(encoding="utf-8")
    hostile = Page(html)
    assert hostile.tags == benign.tags
    assert [name for _, name, _ in hostile.attributes] == [name for _, name, _ in benign.attributes]
    assert "<script" not in html.lower()
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", html)
    for kind in ("prompt", "answer", "rationale", "model", "data", "warning"):
        assert f"{HARMLESS} {kind}" in hostile.text, kind
    assert "<script>alert('1')\"⟨U+202E⟩&amp;" in hostile.text


def test_a_run_directory_whose_name_is_no_text_can_be_reported(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"run-\xff")
    try:
        run = FakeRun(root)
    except OSError:
        pytest.skip("the file system takes no such name")
    assert "run-⟨U+DCFF⟩" in page_of(run.root).text


@pytest.mark.parametrize("last", STAGES)
def test_an_unfinished_run_shows_what_it_has(tmp_path: Path, last: str) -> None:
    run = FakeRun(tmp_path / "run").until(last)
    page = page_of(run.root)
    assert ("Finished: " in page.text) == (last == STAGES[-1])
    table = page.text.partition("time taken")[2].partition("Versions")[0]
    assert [stage for stage in STAGES if stage in table] == list(STAGES[: STAGES.index(last) + 1])


@pytest.mark.parametrize(
    "stage",
    ["sft/evaluate", "eft/train", "iteration-1/candidates", "iteration-1/judgments", "iteration-2/pairs"],
)
def test_files_of_an_unfinished_stage_are_not_read(tmp_path: Path, stage: str) -> None:
    root = FakeRun(tmp_path / "run").until(STAGES[STAGES.index(stage) - 1]).root
    before = page_of(root).text
    directory, _, name = stage.partition("/")
    file = {"train": "training.jsonl", "evaluate": "judge_quality.json"}.get(name, f"{name}.jsonl")
    (root / directory).mkdir(exist_ok=True)
    (root / directory / file).write_text('{"half a row')
    assert page_of(root).text == before


def test_an_empty_directory_gives_a_page_that_says_so(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    for words in (
        "No stage is finished yet",
        "No model has been measured yet",
        "No pairs have been made yet",
    ):
        assert words in page.text


def test_a_constant_judge_is_undefined_with_a_reason_and_never_zero(tmp_path: Path) -> None:
    page = page_of(FakeRun(tmp_path / "run", constant=True).until("sft/evaluate").root)
    for reason in ("rewards or ranks are constant in every prompt", "no reply has the perfect reward"):
        assert reason in page.text


def test_why_a_run_stopped_is_said_until_it_goes_on(tmp_path: Path) -> None:
    root = FakeRun(tmp_path / "run").until("eft/judgments").root
    stopped = '{"event": "run_stopped", "reason": "NothingToTrainError", "message": "eft: <none> agrees"}\n'
    (root / "events.jsonl").write_text('{"event": "run_started"}\n' + stopped)
    assert "The run stopped. NothingToTrainError: eft: <none> agrees" in page_of(root).text
    with (root / "events.jsonl").open("a") as events:
        events.write('{"event": "run_started"}\n')
    assert "The run stopped" not in page_of(root).text


def test_many_long_texts_stay_below_five_megabytes(tmp_path: Path) -> None:
    def say(kind: str, key: str) -> str:
        return f"{key} " + '"' * (1_000_000 if key in ("0", "name", "rubric") else 5_000)

    path = write_report(FakeRun(tmp_path / "run", say, prompts=60).until(STAGES[-1]).root)
    assert path.stat().st_size < 5_000_000
    page = Page(path.read_text(encoding="utf-8"))
    shown = [int(number) for number in re.findall(r"(\d+) of 60 shown", page.text)]
    assert len(shown) == 2
    assert all(5 <= number < 40 for number in shown)
    assert "more characters)" in page.text


def test_of_many_pairs_forty_are_shown(tmp_path: Path) -> None:
    page = page_of(FakeRun(tmp_path / "run", prompts=50).until("iteration-1/pairs").root)
    assert "40 of 50 shown" in page.text
    recipe_and_legend, reasons = 2, 3
    assert page.tags.count("details") == 40 + recipe_and_legend + reasons


def test_the_page_depends_on_the_run_alone_and_not_on_the_order_of_rows(finished: Path) -> None:
    before = write_report(finished).read_bytes()
    for path in finished.rglob("*.jsonl"):
        if path.name not in ("training.jsonl", "generations.jsonl"):  # whose order says when
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(reversed(lines)))
    path = write_report(finished)
    assert path == finished / "report.html"
    assert path.read_bytes() == before
    assert not list(finished.glob(".*tmp*"))


def test_a_run_that_its_gate_has_ended_is_finished(tmp_path: Path) -> None:
    root = FakeRun(tmp_path / "run").until("iteration-1/evaluate").root
    recipe = json.loads((root / "recipe.resolved.json").read_text())
    recipe["gate"] = {"max_fall": {"pairwise_accuracy": 0.05}, "otherwise": "stop"}
    (root / "recipe.resolved.json").write_text(json.dumps(recipe))
    assert "Not finished yet: " in page_of(root).text
    gate = {
        "stage": "iteration-1/gate", "parts": {}, "figures": {"accepted": False},
        "warnings": ["M2 is not accepted"], "seconds": 0.1, "finished": "2031-02-03T04:06:07+00:00",
    }  # fmt: skip
    (root / "iteration-1/manifests/gate.json").write_text(json.dumps(gate))
    page = page_of(root)
    assert "Finished: " in page.text
    assert "M2 is not accepted" in page.text
