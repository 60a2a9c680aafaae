"""Rows are found by what a person asks for, whatever state their files are in."""

import json
from pathlib import Path

import pytest

from selfalign.errors import DataError
from selfalign.records import Prompt, RankedPrompt, RankedReply
from selfalign.runs.files import read_rows, write_rows
from selfalign.ui import rows as rows_module
from selfalign.ui.rows import Filter, Rows

pytest.importorskip("duckdb")


def listed(root: Path, kind: str, **wanted: object) -> list[tuple[object, ...]]:
    found, total = Rows(root.resolve()).select(kind, Filter.model_validate(wanted))  # type: ignore[arg-type]
    assert total == len(found)
    return [(row["place"], row["prompt"], row["score"], row["one"]) for row in found]


def test_candidates_carry_the_mean_of_their_scored_judgments_and_the_unscored_come_last(make_run) -> None:
    found, total = Rows(make_run()).select("candidates", Filter())
    assert total == 9
    assert [row["score"] for row in found] == [5, 5, 5, 3, 3, 3, None, None, None]
    assert [(row["scored"], row["judged"]) for row in found[::4]] == [(2, 2), (1, 2), (0, 0)]


@pytest.mark.parametrize(
    ("kind", "wanted", "count"),
    [
        ("prompts", {}, 3),
        ("prompts", {"text": "WATER"}, 1),
        ("prompts", {"margin_from": "2"}, 3),
        ("candidates", {"place": "iteration-2"}, 3),
        ("candidates", {"score_from": "4"}, 3),
        ("candidates", {"score_to": "4", "text": "sky"}, 1),
        ("candidates", {"length_from": "12"}, 0),
        ("candidates", {"text": "bad"}, 3),
        ("judgments", {"text": "so so"}, 3),
        ("judgments", {"score_from": "4", "place": "iteration-1"}, 4),
        ("pairs", {"margin_from": "2", "margin_to": "2"}, 3),
        ("pairs", {"margin_from": "2.1"}, 0),
        ("pairs", {"text": "how are"}, 1),
        ("pairs", {"text": "%"}, 0),
        ("pairs", {"score_from": "", "text": ""}, 3),
    ],
)
def test_a_filter_leaves_what_is_asked_for(make_run, kind, wanted, count) -> None:
    assert len(listed(make_run(), kind, **wanted)) == count


def test_rows_are_sorted_both_ways_and_cut_into_pages(make_run, monkeypatch) -> None:
    monkeypatch.setattr(rows_module, "PAGE", 2)
    rows = Rows(make_run())
    down = [rows.select("candidates", Filter(sort="length", page=page))[0] for page in range(1, 7)]
    up = [rows.select("candidates", Filter(sort="length", order="asc", page=page))[0] for page in range(1, 7)]
    lengths = [[row["length"] for page in pages for row in page] for pages in (down, up)]
    assert lengths == [[11] * 6 + [0] * 3, [0] * 3 + [11] * 6]
    assert len({row["id"] for page in down for row in page}) == 9
    assert rows.select("candidates", Filter(page=9)) == ([], 9)


def test_a_damaged_row_is_passed_over_and_named(make_run) -> None:
    root = make_run()
    file = root / "iteration-1" / "judgments.jsonl"
    lines = file.read_text().splitlines()
    lines[1], lines[2] = "{broken", json.dumps({"judgment_id": "x", "score": 1})
    file.write_text("\n".join(lines) + "\n")
    rows = Rows(root)
    assert rows.counts()["judgments"] == 10
    assert rows.damage() == [
        "iteration-1/judgments.jsonl, row 2: not a Judgment",
        "iteration-1/judgments.jsonl, row 3: not a Judgment",
    ]
    file.write_text("\n".join([*lines[:1], *lines[3:]]) + "\n")
    assert Rows(root).damage() == []


def test_many_damaged_rows_are_counted(make_run) -> None:
    root = make_run()
    (root / "iteration-2" / "pairs.jsonl").write_text("no\n" * 8)
    assert Rows(root).damage()[-1] == "iteration-2/pairs.jsonl: 3 more damaged rows"


def test_rows_of_a_stage_under_way_are_there_and_a_half_written_one_is_no_damage(make_run) -> None:
    root = make_run()
    file = root / "iteration-2" / "candidates.jsonl"
    shard = root / "iteration-2" / "partial" / "candidates.0123.candidates.jsonl.shards" / "000000.jsonl"
    shard.parent.mkdir(parents=True)
    shard.write_text(file.read_text()[:-20])
    file.unlink()
    rows = Rows(root)
    assert rows.under_way == ["candidates of iteration-2"]
    assert rows.counts()["candidates"] == 8
    assert rows.damage() == []


def test_replies_of_people_are_the_candidates_of_eft(make_run) -> None:
    root = make_run()
    replies = tuple(RankedReply(reply_id=f"r{rank}", text=f"reply {rank}", rank=rank) for rank in range(2))
    prompt = Prompt.of(next(iter(read_rows(root / "iteration-1" / "prompts.jsonl", Prompt))).messages, "x")
    ranked = RankedPrompt(prompt_id=prompt.prompt_id, messages=prompt.messages, replies=replies, source="x")
    write_rows(root / "data" / "ranked.jsonl", [ranked])
    (root / "eft").mkdir()
    found, total = Rows(root).select("candidates", Filter(place="eft", sort="length"))
    assert [row["one"] for row in found] == ["reply 0", "reply 1"]
    assert total == 2


def test_a_row_of_a_megabyte_is_cut_for_lists_and_whole_on_demand(make_run) -> None:
    root = make_run(harm="x" * 1_000_000)
    rows = Rows(root)
    found, _ = rows.select("candidates", Filter(sort="length"))
    assert found[0]["length"] > 1_000_000
    assert len(found[0]["one"]) == rows_module.OPENING
    text = rows.text("candidates", found[0]["id"], "text")
    assert text is not None
    assert len(text) == found[0]["length"]


def test_a_run_without_rows_has_none(tmp_path) -> None:
    rows = Rows(tmp_path)
    assert rows.select("pairs", Filter(text="x")) == ([], 0)
    assert rows.counts() == {"prompts": 0, "candidates": 0, "judgments": 0, "pairs": 0}
    assert rows.text("pairs", "x", "chosen") is None


def test_a_run_whose_name_looks_like_a_pattern_is_read_by_its_name(make_run) -> None:
    make_run("other")
    assert Rows(make_run("[o]*?'")).counts()["candidates"] == 9


def test_links_that_lead_out_of_the_run_are_not_followed(make_run, tmp_path) -> None:
    root = make_run()
    secret = tmp_path / "secret.jsonl"
    (root / "iteration-1" / "candidates.jsonl").rename(secret)
    (root / "iteration-1" / "candidates.jsonl").symlink_to(secret)
    assert Rows(root).counts()["candidates"] == 3


def test_a_text_that_rows_do_not_have_is_refused(make_run) -> None:
    with pytest.raises(DataError, match="pairs have no text 'score'; there is chosen, rejected"):
        Rows(make_run()).text("pairs", "x", "score")


def test_one_prompt_has_all_that_was_made_of_it(make_run) -> None:
    rows = Rows(make_run())
    prompt_id = rows.select("prompts", Filter(text="water"))[0][0]["id"]
    found = rows.of_prompt(prompt_id)
    assert {kind: len(made) for kind, made in found.items()} == {
        "prompts": 1, "candidates": 3, "judgments": 4, "pairs": 1
    }  # fmt: skip
    assert [row["sample"] for row in found["candidates"]] == [0, 1, 2]
