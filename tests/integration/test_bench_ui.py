"""The benchmark of the live page: its path on few rows, and that it shows nothing where rows are missing."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_ui

from selfalign.records import Completion, Judgment, PreferencePair, Prompt
from selfalign.runs.files import read_rows

RECORDS = {"prompts": Prompt, "candidates": Completion, "judgments": Judgment, "pairs": PreferencePair}


def test_a_run_is_made_with_all_its_rows(tmp_path: Path) -> None:
    made = bench_ui.make_run(tmp_path, 30)
    for kind, record in RECORDS.items():
        rows = [
            row for t in (1, 2, 3) for row in read_rows(tmp_path / f"iteration-{t}" / f"{kind}.jsonl", record)
        ]
        assert len(rows) == getattr(made, kind)
        assert len({row.model_dump_json() for row in rows}) == len(rows)
    assert (made.prompts, made.candidates, made.judgments) == (6, 24, 72)


def test_the_quick_run_asks_every_question(tmp_path, monkeypatch, capsys) -> None:
    target = tmp_path / "ui.json"
    monkeypatch.setattr(bench_ui, "TIMES", 1)
    monkeypatch.setattr(sys, "argv", ["bench_ui.py", "--rows", "24", "--json", str(target)])
    bench_ui.main()
    result = json.loads(target.read_text(encoding="utf-8"))
    assert len(result["seconds"]) == len(bench_ui.QUESTIONS)
    assert result["memory"] > 0
    assert "memory of the server" in capsys.readouterr().out


def test_nothing_is_shown_where_the_page_lacks_rows(monkeypatch, capsys) -> None:
    make_run = bench_ui.make_run

    def losing(root: Path, rows: int) -> bench_ui.Made:
        made = make_run(root, rows)
        file = root / "iteration-1" / "candidates.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
        return made

    monkeypatch.setattr(bench_ui, "make_run", losing)
    monkeypatch.setattr(sys, "argv", ["bench_ui.py", "--rows", "24"])
    with pytest.raises(SystemExit, match=r"shows 23 candidates, not 24; no figure is shown"):
        bench_ui.main()
    assert "memory of the server" not in capsys.readouterr().out
