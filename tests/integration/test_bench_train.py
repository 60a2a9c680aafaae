"""The training benchmark's driver: what it shows, and when it refuses to. Its workers take minutes."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_train
from bench_train_worker import Job, Measurement

JOBS = [Job(side, "float32", "sft", 4, 2, 320, 0, "no data", "no model") for side in bench_train.SIDES]
MEASURED = Measurement({"loss": 2.0}, 1000, 4.0, None, 3 * 10**9, 2 * 10**9, None, None)


def test_sides_take_turns_and_ratios_are_ours_over_theirs():
    asked = []

    def measure(job: Job) -> Measurement:
        asked.append(job.side)
        return MEASURED if job.side == "ours" else replace(MEASURED, seconds=8.0, peak_bytes=6 * 10**9)

    results = bench_train.compare(JOBS, 2, measure)
    assert asked == [*bench_train.SIDES, *bench_train.SIDES]
    assert results[0].summary(4).items_per_second == 1.0
    assert bench_train.ratios(results, 4) == {
        "TRL defaults": {"speed": 2.0, "memory": 0.25},
        "TRL tuned": {"speed": 2.0, "memory": 0.25},
    }


@pytest.mark.parametrize("loss", [2.0001, float("nan")])
def test_unequal_figures_of_the_first_batch_are_refused_with_both_values(loss: float):
    other = replace(MEASURED, check={"loss": loss})
    with pytest.raises(bench_train.UnequalError, match=rf"loss .* 2\.0 \(ours\) but {loss} \(TRL tuned\)"):
        bench_train.compare(JOBS, 1, lambda job: other if job.side == "TRL tuned" else MEASURED)


def test_a_side_that_fails_is_not_measured_again_and_the_others_are_shown():
    asked = []

    def measure(job: Job) -> Measurement | str:
        asked.append(job.side)
        return "no memory" if job.side == "TRL defaults" else MEASURED

    results = bench_train.compare(JOBS, 2, measure)
    assert asked.count("TRL defaults") == 1
    assert [result.failure for result in results] == [None, "no memory", None]
    assert bench_train.ratios(results, 4).keys() == {"TRL tuned"}
    assert bench_train.table_of("title", results, 4).row_count == 4


def test_a_worker_that_dies_gives_the_last_line_it_said():
    assert "no model" in bench_train.measure_apart(JOBS[0])


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["bench_train.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"dpo_en_demo\.json is missing"):
        bench_train.main()


def test_a_precision_that_the_processor_lacks_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(bench_train, "compute_dtype", lambda *_: torch.float32)
    precisions, skipped = bench_train._precisions(None, quick=True)
    assert precisions == ["float32"]
    assert "bfloat16" in skipped
    with pytest.raises(SystemExit, match="bfloat16"):
        bench_train._precisions(["bfloat16"], quick=False)
