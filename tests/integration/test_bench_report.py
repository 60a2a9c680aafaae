"""The report benchmark: its path on few rows, and the run that it makes up."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_report
import big_run

from selfalign.records import Completion, Judgment, PreferencePair
from selfalign.runs.files import read_rows


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(big_run, "RANKED", 10)
    monkeypatch.setattr(big_run, "STEPS", 20)


def test_the_made_run_has_all_its_rows_and_its_pairs_follow_from_them(tmp_path: Path) -> None:
    big_run.make_big_run(tmp_path, 80)
    for number in (1, 2):
        where = tmp_path / f"iteration-{number}"
        candidates = {row.completion_id: row for row in read_rows(where / "candidates.jsonl", Completion)}
        judged = [row.completion_id for row in read_rows(where / "judgments.jsonl", Judgment)]
        assert len(candidates) == 40
        assert judged == [name for name in candidates for _ in range(big_run.SAMPLES)]
        for pair in read_rows(where / "pairs.jsonl", PreferencePair):
            assert candidates[pair.chosen_id].text == pair.chosen
            assert candidates[pair.rejected_id].prompt_id == pair.prompt_id


def test_the_quick_run_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["bench_report.py", "--candidates", "80", "--json", str(target)])
    bench_report.main()
    found = json.loads(target.read_text(encoding="utf-8"))
    assert found["candidates"] == 80
    assert 0 < found["page_bytes"] < 5_000_000
    assert found["peak_bytes"] > 10_000_000
    assert "240" in capsys.readouterr().out


def test_a_run_that_can_not_be_read_is_not_measured(tmp_path: Path) -> None:
    big_run.make_big_run(tmp_path, 80)
    (tmp_path / "iteration-1" / "pairs.jsonl").write_text('{"half a row')
    with pytest.raises(SystemExit, match=r"could not be read: iteration-1/pairs.jsonl"):
        bench_report.measure(tmp_path)
