"""The memory benchmark: its path on few rows, and that it shows nothing where rows were lost or doubled."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_memory

from selfalign.records import Completion, Prompt
from selfalign.runs.files import read_rows

Lines = list[str]


def test_a_run_is_made_with_all_its_candidates_in_order(tmp_path: Path) -> None:
    job = bench_memory.make_run(tmp_path, 10, 1, seed=0)
    assert (job.prompts, job.candidates) == (3, 10)
    prompts = list(read_rows(tmp_path / "iteration-1" / "prompts.jsonl", Prompt))
    candidates = list(read_rows(tmp_path / "iteration-1" / "candidates.jsonl", Completion))
    assert [(c.prompt_id, c.sample) for c in candidates] == [
        (prompts[n // 4].prompt_id, n % 4) for n in range(10)
    ]
    assert len({c.text for c in candidates}) == 10


def test_the_quick_run_measures_and_counts_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "memory.json"
    monkeypatch.setattr(bench_memory, "QUICK_ROWS", 45)
    monkeypatch.setattr(sys, "argv", ["bench_memory.py", "--quick", "--samples", "2", "--json", str(target)])
    bench_memory.main()
    result = json.loads(target.read_text(encoding="utf-8"))
    counts = result["counts"]
    assert (counts["prompts"], counts["candidates"], counts["judgments"]) == (12, 45, 90)
    assert counts["pairs"] + counts["dropped"] == 12
    assert 0 < result["memory_before"] <= result["judging_peak"] <= result["peak"]
    assert "peak memory" in capsys.readouterr().out


def lost(lines: Lines) -> Lines:
    return lines[:-1]


def doubled(lines: Lines) -> Lines:
    return [*lines, lines[0]]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("judgments", lost, "was judged 0 times, not 1"),
        ("judgments", doubled, "was judged 2 times, not 1"),
        ("candidates", lost, "was judged, which is no candidate"),
        ("pairs", lost, "pairs and"),
        ("pairs", doubled, "pairs and"),
    ],
)
def test_nothing_is_shown_where_a_row_is_lost_or_doubled(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[Lines], Lines],
    said: str,
) -> None:
    measure_apart = bench_memory.measure_apart

    def damaging(job: bench_memory.Job) -> bench_memory.Measurement:
        measured = measure_apart(job)
        path = Path(job.root) / "iteration-1" / f"{name}.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
        return measured

    monkeypatch.setattr(bench_memory, "measure_apart", damaging)
    monkeypatch.setattr(sys, "argv", ["bench_memory.py", "--rows", "12"])
    with pytest.raises(SystemExit, match=rf"{said}.*; no figure is shown"):
        bench_memory.main()
    assert "peak memory, MB" not in capsys.readouterr().out


def test_a_measured_process_that_fails_is_told_with_its_last_word(tmp_path: Path) -> None:
    job = bench_memory.make_run(tmp_path, 8, 1, seed=0)
    (tmp_path / "iteration-1" / "candidates.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"ended with 1: .*candidates\.jsonl: no such file"):
        bench_memory.measure_apart(job)


@pytest.mark.parametrize("rows", ["0", "-1"])
def test_a_run_needs_rows(monkeypatch: pytest.MonkeyPatch, rows: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_memory.py", "--rows", rows])
    with pytest.raises(SystemExit) as left:
        bench_memory.main()
    assert left.value.code == 2
