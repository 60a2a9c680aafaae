"""The generation benchmark's driver and what its worker reads. Its sides take minutes."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_generate
from bench_generate_worker import FILE, Job, Measurement, measure, read_prompts

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PLAN = bench_generate.Plan(bench_generate.SIDES, chunks=2, prompts=2, max_new_tokens=9)
JOBS = bench_generate._jobs(PLAN, "no data", "no model")
MEASURED = Measurement({"a": [9, 9, 1, 0], "b": [3, 3, 3, 2]}, 2.0, 10**9)


def test_sides_take_turns_chunk_by_chunk_and_ratios_are_ours_over_theirs():
    asked = []

    def measure(job: Job) -> Measurement:
        asked.append((job.side, job.first))
        return MEASURED if job.side == "ours" else replace(MEASURED, seconds=6.0)

    totals = bench_generate.compare(JOBS, measure)
    assert asked == [(side, first) for first in (0, 2) for side in bench_generate.SIDES]
    assert (totals[0].tokens, totals[0].seconds, totals[0].rate) == (60, 4.0, 15.0)
    assert bench_generate.ratios(totals) == dict.fromkeys(bench_generate.SIDES[1:], 3.0)
    assert bench_generate.table_of("title", totals).row_count == len(bench_generate.SIDES)


@pytest.mark.parametrize(
    "tokens",
    [
        {"a": [1] * 4},
        {"a": [1] * 4, "c": [1] * 4},
        {"a": [1] * 4, "b": [1] * 3},
        {"a": [1] * 4, "b": [10] * 4},
    ],
    ids=["a prompt less", "another prompt", "a completion less", "beyond the limit"],
)
def test_sides_that_did_other_work_are_refused(tokens: dict[str, list[int]]):
    other = replace(MEASURED, tokens=tokens)
    with pytest.raises(bench_generate.UnequalError, match="static 64"):
        bench_generate.compare(JOBS, lambda job: other if job.side == "static 64" else MEASURED)


def test_a_worker_that_dies_ends_the_run_with_the_last_line_it_said():
    with pytest.raises(SystemExit, match=r"ours ended with 1: .*no data"):
        bench_generate.measure_apart(JOBS[0][0])


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["bench_generate.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"user_oriented_instructions\.jsonl is missing"):
        bench_generate.main()


@pytest.mark.skipif(not (DATA / FILE).is_file(), reason=f"no {FILE} in the data directory")
def test_all_sides_answer_the_same_prompts(tiny_model: Path):
    measured = [
        measure(Job(side, 1, 3, 2, 3, str(DATA), str(tiny_model)))
        for side in ("ours", "one by one", "static 64")
    ]
    for one in measured:
        assert one.tokens.keys() == measured[0].tokens.keys()
        assert all(len(tokens) == 2 and max(tokens) <= 3 for tokens in one.tokens.values())
    assert len(read_prompts(Job("ours", 250, 9, 2, 3, str(DATA), ""))) == 2
