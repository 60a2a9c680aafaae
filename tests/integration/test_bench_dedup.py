"""The near-duplicate benchmark: its quick path on few texts, and that it refuses to time what differs."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_dedup

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PLAN = bench_dedup.Plan(grown=400, checked=40, sizes=(100, 200, 400), all_pairs_up_to=200, rounds=1)
PROMPTS = {
    "Name three red fruits. Say where they grow.": "a",
    "List the steps of making tea. Be brief.": "a",
    "写一首关于春天的诗。再写一首关于秋天的诗。": "b",
    "解释量子力学的基本原理。举一个例子。": "b",
}


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a quick run on few texts up; return where it writes its figures."""
    if not DATA.exists():
        pytest.skip("the shared data is not here")
    target = tmp_path / "dedup.json"
    monkeypatch.setattr(bench_dedup, "QUICK", PLAN)
    monkeypatch.setattr(
        sys, "argv", ["bench_dedup.py", "--data", str(DATA), "--quick", "--json", str(target)]
    )
    return target


def test_the_quick_run_checks_decisions_and_shows_every_size(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_dedup.main()
    result = json.loads(quick.read_text(encoding="utf-8"))
    assert result["check"]["duplicates"] > 5
    assert [row["texts"] for row in result["rows"]] == [100, 200, 400]
    assert [row["all_pairs_seconds"] is None for row in result["rows"]] == [False, False, True]
    assert "exponent" in capsys.readouterr().out


def test_no_time_is_shown_where_decisions_differ(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_dedup, "all_pairs", lambda texts: [None, *texts[:-1]])
    with pytest.raises(SystemExit, match=r"first near duplicate of .* no time is shown"):
        bench_dedup.main()
    assert "texts/s" not in capsys.readouterr().out
    assert not quick.exists()


def test_all_three_ways_find_the_same_first_duplicates_in_every_language() -> None:
    texts = bench_dedup.grow(PROMPTS, 60, seed=0)
    found = bench_dedup.ours(texts)
    assert found == bench_dedup.all_pairs(texts) == bench_dedup.by_rouge_score(texts)
    assert any(text and text.isascii() for text in found)
    assert any(text and not text.isascii() for text in found)


def test_grown_texts_are_distinct_keep_all_prompts_and_depend_on_the_seed_alone() -> None:
    texts = bench_dedup.grow(PROMPTS, 60, seed=0)
    assert len(set(texts)) == 60
    assert set(PROMPTS) < set(texts)
    assert texts == bench_dedup.grow(PROMPTS, 60, seed=0) != bench_dedup.grow(PROMPTS, 60, seed=1)


def test_the_exponent_of_all_pairs_would_be_two() -> None:
    small, large = (bench_dedup.Row(n, n**2 / 1e6, 0, None) for n in (1000, 4000))
    assert bench_dedup.exponent(small, large) == pytest.approx(2)


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_dedup.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"gsm8k/test\.jsonl"):
        bench_dedup.main()
