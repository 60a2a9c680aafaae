"""Votes are blind, kept whole, counted once, and join the table of the models."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from selfalign.errors import DataError, RunError
from selfalign.records import Completion
from selfalign.report.benchmarks import read_table
from selfalign.report.problems import Problems
from selfalign.report.votes import held_out_answers, read_votes
from selfalign.runs.files import read_rows, write_rows
from selfalign.ui import votes
from selfalign.ui.votes import material_of, names_of_sides, pairs_of_models, vote


def poll_of(root, one, other, seed):
    return votes.poll_of(material_of(root, seed), one, other)


def give(root, choice, one="M1", other="M0"):
    poll = poll_of(root, one, other, seed=7)
    return vote(root, poll, poll.ballots[0].prompt_id, choice)


def test_the_later_model_is_compared_with_the_earlier_neighbours_first(make_run) -> None:
    assert pairs_of_models(held_out_answers(make_run())) == [("M1", "M0"), ("M2", "M1"), ("M2", "M0")]


def test_sides_depend_on_the_seed_alone_and_both_occur(make_run) -> None:
    root = make_run()
    sides = [[b.left for b in poll_of(root, "M1", "M0", seed).ballots] for seed in (0, 0, 1, 2, 3)]
    assert sides[0] == sides[1]
    assert {side for found in sides for side in found} == {"one", "other"}


def test_a_vote_names_what_was_preferred_and_where_it_stood(make_run) -> None:
    root = make_run()
    ballot = poll_of(root, "M1", "M0", 7).ballots[0]
    given = give(root, "left")
    assert given.preferred == given.left == ballot.left
    left, right = names_of_sides(given)
    assert {left, right} == {"M0", "M1"}
    assert ballot.sides[0].text.startswith(left)
    assert read_votes(root) == [given]
    assert give(root, "tie").preferred is None
    last = give(root, "right")
    assert last.preferred != last.left
    assert len(read_votes(root)) == 3


def test_a_prompt_is_voted_on_once_and_then_another_comes(make_run) -> None:
    root = make_run()
    poll = poll_of(root, "M1", "M0", 7)
    first = poll.ballots[0].prompt_id
    vote(root, poll, first, "tie")
    after = poll_of(root, "M1", "M0", 7)
    assert [b.prompt_id for b in after.ballots] == [b.prompt_id for b in poll.ballots[1:]]
    assert after.given == 1
    with pytest.raises(RunError, match="has been voted on"):
        vote(root, after, first, "tie")
    assert poll_of(root, "M2", "M0", 7).given == 0


def test_an_answer_that_changed_is_voted_on_again_and_the_old_vote_no_longer_counts(make_run) -> None:
    root = make_run()
    given = give(root, "left")
    file = root / "evaluation" / "M1" / "head_to_head_answers.jsonl"
    rows = [
        row.model_copy(update={"text": "new"}) if row.prompt_id == given.prompt_id else row
        for row in read_rows(file, Completion)
    ]
    write_rows(file, rows)
    poll = poll_of(root, "M1", "M0", 7)
    assert (len(poll.ballots), poll.given) == (4, 0)
    _, [*_, people], _ = read_table(root, Problems(root))
    assert people.over == "0"
    assert "1 on answers since changed" in people.note


def test_what_only_one_model_answered_is_not_voted_on(make_run) -> None:
    root = make_run()
    file = root / "evaluation" / "M1" / "head_to_head_answers.jsonl"
    rows = list(read_rows(file, Completion))
    silent = rows[1].model_copy(update={"text": None, "finish_reason": "prompt_too_long"})
    write_rows(file, [silent, *rows[2:]])
    assert len(poll_of(root, "M1", "M0", 7).ballots) == 2


@pytest.mark.parametrize("models", [("M0", "M1"), ("M1", "M1"), ("M1", "M9"), ("../M1", "M0")])
def test_models_without_answers_or_out_of_order_are_refused(make_run, models) -> None:
    with pytest.raises(RunError, match="no answers of"):
        poll_of(make_run(), *models, 7)


def test_votes_given_at_once_are_all_kept(make_run) -> None:
    root = make_run()
    poll = poll_of(root, "M1", "M0", 7)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda ballot: vote(root, poll, ballot.prompt_id, "tie"), poll.ballots))
    assert len(read_votes(root)) == 4


def test_a_vote_after_a_torn_one_stands_on_a_line_of_its_own(make_run) -> None:
    root = make_run()
    give(root, "tie")
    with (root / "votes.jsonl").open("a") as file:
        file.write('{"vote_id": "torn')
    with pytest.raises(DataError, match=r"votes.jsonl, row 2"):
        poll_of(root, "M1", "M0", 7)
    poll = poll_of(make_run("two"), "M1", "M0", 7)
    vote(root, poll, poll.ballots[1].prompt_id, "left")
    assert len((root / "votes.jsonl").read_text().splitlines()) == 3


def test_a_link_out_of_the_run_is_not_written_to(make_run, tmp_path) -> None:
    root = make_run()
    (root / "votes.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(RunError, match="leads out of the run"):
        give(root, "tie")
    assert not (tmp_path / "elsewhere.jsonl").exists()


def test_people_get_rows_of_their_own_in_the_table(make_run) -> None:
    root = make_run()
    for choice in ("left", "right", "tie", "tie"):
        give(root, choice)
    give(root, "tie", "M2", "M0")
    given = read_votes(root)
    wins = sum(v.preferred == "one" for v in given)
    losses = sum(v.preferred == "other" for v in given)
    models, rows, _ = read_table(root, Problems(root))
    assert models == ["M0", "M1", "M2"]
    assert [row.label for row in rows] == ["head to head (people)", "head to head (people) against M0"]
    assert rows[0].note == f"M1 against M0: {wins} wins, 2 ties, {losses} losses"
    assert rows[0].cells[0] is None
    assert rows[0].cells[1].startswith(f"{100 * (wins + 1) / 4:.1f} (")
    assert (rows[0].over, rows[1].over) == ("4", "1")
    assert rows[1].cells == (None, None, "50.0")


def test_an_rlcd_run_is_voted_on_by_its_own_answers(make_run, tmp_path) -> None:
    root = make_run()
    answers = root / "evaluation"
    for model, file in (("M0", "base_outputs"), ("M1", "policy_outputs")):
        rows = list(read_rows(answers / model / "head_to_head_answers.jsonl", Completion))
        write_rows(root / "rlcd" / f"{file}.jsonl", rows)
    (root / "rlcd" / "manifests").mkdir()
    (root / "rlcd" / "manifests" / "outputs.json").write_text("{}")
    answers.rename(tmp_path / "gone")
    assert read_table(root, Problems(root)) is None
    give(root, "left", "RLCD", "M0")
    models, [row], _ = read_table(root, Problems(root))
    assert (models, row.over) == (["M0", "RLCD"], "1")


def test_the_page_tells_whose_answers_they_were_after_the_vote_only(page, post, make_run) -> None:
    root = make_run()
    shown = page.get("/runs/one/vote?one=M1&other=M0").text
    [prompt_id] = re.findall(r'data-prompt="(\w+)"', shown)
    texts = re.findall(r'<div class="text" dir="auto">(M\d) says', shown)
    assert len(texts) == 2
    ids = {row.completion_id for given in held_out_answers(root).values() for row in given.values()}
    assert not any(completion_id in shown for completion_id in ids)
    answer = post("/runs/one/votes", {"one": "M1", "other": "M0", "prompt_id": prompt_id, "choice": "left"})
    assert answer.json() == {"left": texts[0], "right": texts[1]}
    assert prompt_id not in page.get("/runs/one/vote?one=M1&other=M0").text
    overview = page.get("/runs/one").text
    assert re.search(r'class="people">.*M1.*M0.*people', overview)
    again = post("/runs/one/votes", {"one": "M1", "other": "M0", "prompt_id": prompt_id, "choice": "left"})
    assert again.status_code == 409
    assert "has been voted on" in again.json()["error"]
    assert len(read_votes(root)) == 1


@pytest.mark.parametrize("body", [{}, [], {"one": "M1", "other": "M0", "prompt_id": "x", "choice": "both"}])
def test_a_vote_that_is_none_is_refused(post, make_run, body) -> None:
    root = make_run()
    assert post("/runs/one/votes", body).status_code == 422
    assert not (root / "votes.jsonl").exists()


def test_nothing_else_is_ever_written(page, post, make_run) -> None:
    root = make_run()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for part in ("", "/live", "/pairs?text=x", "/candidates", "/compare", "/vote", "/chat", "/prompt?id=x"):
        assert page.get(f"/runs/one{part}").status_code == 200
    post("/runs/one/votes", {"one": "M1", "other": "M0", "prompt_id": "x", "choice": "tie"})
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
