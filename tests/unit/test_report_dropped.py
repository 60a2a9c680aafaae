"""Examples of what filters dropped, and what a run took."""

from pathlib import Path
from typing import Any

import pytest

from selfalign.records import Completion, Judgment, Message, Prompt, prompt_id_of
from selfalign.report.dropped import Generation, PairRules, filter_of, refused_prompts, unpaired
from selfalign.report.overview import costs, costs_by_kind, kind_of, other_version, overview
from selfalign.report.problems import Problems
from selfalign.report.sample import EXAMPLES
from selfalign.runs.files import write_rows

BOUNDS = {"min_words": 3, "max_words": 9}
RULES = PairRules("best_worst", 0.5, keep_truncated=False, near_best=0.0, length_cost=0.0, seed=0)


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def refused(tmp_path: Path, replies: list[str], accepted: list[str]) -> dict[str, list[str]]:
    path = tmp_path / "generations.jsonl"
    write_rows(path, [Generation(key=f"0:{n}", text=text, truncated=False) for n, text in enumerate(replies)])
    ids = {prompt_id_of(user(text)) for text in accepted}
    problems = Problems(tmp_path)
    found = refused_prompts(path, ids, len(ids), BOUNDS, problems)
    assert list(problems) == []
    return {reason: [row.messages[0].content for row in rows] for reason, rows in found.items()}


def test_a_refused_prompt_is_told_with_the_reason_of_the_filter(tmp_path: Path) -> None:
    replies = ["write a short poem", "too short", "write one short poem", "describe a green tree"]
    assert refused(tmp_path, replies, ["write a short poem", "describe a green tree"]) == {
        "too_short": ["too short"],
        "near_duplicate": ["write one short poem"],
    }


def test_an_accepted_prompt_said_again_is_a_duplicate(tmp_path: Path) -> None:
    replies = ["write a short poem", "write a short poem", "describe a green tree"]
    found = refused(tmp_path, replies, ["write a short poem", "describe a green tree"])
    assert found == {"near_duplicate": ["write a short poem"]}


def test_what_came_after_the_last_accepted_prompt_may_be_left_over_and_is_no_example(tmp_path: Path) -> None:
    replies = ["write a short poem", "a prompt that nobody needed", "x"]
    assert refused(tmp_path, replies, ["write a short poem"]) == {"too_short": ["x"]}


def test_of_each_reason_there_are_a_few_examples(tmp_path: Path) -> None:
    assert len(refused(tmp_path, ["x"] * 50, [])["too_short"]) == EXAMPLES


def completion(prompt: Prompt, sample: int, text: str, reason: Any = "stop") -> Completion:
    return Completion(
        completion_id=f"{prompt.prompt_id}/{sample}", prompt_id=prompt.prompt_id, sample=sample, text=text,
        finish_reason=reason, num_tokens=5,
    )  # fmt: skip


def judgment(row: Completion, score: float | None) -> Judgment:
    return Judgment(
        judgment_id=row.completion_id, completion_id=row.completion_id, prompt_id=row.prompt_id, sample=0,
        score=score, reason=None if score is not None else "no_score", text="t", attempts=1,
    )  # fmt: skip


def test_a_prompt_without_a_pair_is_told_with_its_candidates_and_their_rewards() -> None:
    tied, cut, fine = (Prompt.of(user(text), source="s") for text in ("tied", "cut", "fine"))
    rows = [
        completion(tied, 0, "one"), completion(tied, 1, "two"),
        completion(cut, 0, "one", "length"), completion(cut, 1, "two"),
        completion(fine, 0, "one"), completion(fine, 1, "two"),
    ]  # fmt: skip
    scores = [3.0, 3.0, 5.0, None, 5.0, 1.0]
    judgments = {row.completion_id: [judgment(row, score)] for row, score in zip(rows, scores, strict=True)}
    found = unpaired([tied, cut, fine], rows, judgments, RULES)
    assert set(found) == {"equal_rewards", "fewer_than_two_finished"}
    assert found["equal_rewards"][0].texts == (
        ("reward 3.00, 5 tokens", "one"),
        ("reward 3.00, 5 tokens", "two"),
    )
    labels = [label for label, _ in found["fewer_than_two_finished"][0].texts]
    assert labels == ["reward 5.00, 5 tokens, cut off", "no reward, 5 tokens"]


def test_examples_that_do_not_fit_are_left_out_and_the_count_stays(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    write_rows(path, [Generation(key="0", text="x" * 300, truncated=False)])
    examples = refused_prompts(path, set(), 0, BOUNDS, Problems(tmp_path))
    (dropped,) = filter_of("h", {"too_short": 7, "keyword": 0}, examples, most_bytes=100).dropped
    assert (dropped.reason, dropped.count, dropped.examples) == ("too_short", 7, ())


def stage(name: str, seconds: float, **figures: Any) -> dict[str, Any]:
    return {"stage": name, "figures": figures, "seconds": seconds, "finished": "2031-02-03T04:05:06+00:00"}


STAGES = {
    made["stage"]: made
    for made in (
        stage("data/read", 0, rows=3),
        stage("iteration-1/candidates", 30, rows=4, tokens=1000),
        stage("iteration-1/judgments", 60, rows=4, tokens=50),
        stage("iteration-1/train", 10, steps=2, training_tokens=700),
    )
}


def test_costs_are_told_for_each_stage_and_each_kind_of_work() -> None:
    by_stage = {cost.name: (cost.part, cost.tokens, cost.made) for cost in costs(STAGES)}
    assert by_stage["iteration-1/candidates"] == ("30.0\N{NO-BREAK SPACE}%", 1000, "4 rows")
    assert by_stage["iteration-1/train"] == ("10.0\N{NO-BREAK SPACE}%", 700, "2 steps")
    assert by_stage["data/read"] == ("0.0\N{NO-BREAK SPACE}%", None, "3 rows")
    kinds = [(cost.name, cost.seconds, cost.tokens) for cost in costs_by_kind(STAGES)]
    assert kinds == [
        ("judging", 60, 50), ("generating", 30, 1000), ("training", 10, 700), ("data and pairs", 0, None),
    ]  # fmt: skip


def test_every_stage_of_the_methods_has_its_kind() -> None:
    for name in (
        "eft/examples",
        "rlcd/preference",
        "rlcd/outputs",
        "contrast/strength",
        "iteration-1/attacks",
    ):
        assert kind_of(name) != "benchmarks"
    assert kind_of("M1/gsm8k") == "benchmarks"


@pytest.mark.parametrize(
    "machine", [None, {"processor": "P", "cores": 1, "memory": 2**30, "accelerators": []}]
)
def test_the_machine_is_told_as_far_as_it_is_known(machine: Any) -> None:
    invocation = {
        "started": "2031-02-03T04:05:06+00:00",
        "selfalign": "0",
        "platform": "L",
        "machine": machine,
    }
    manifest = {
        "method": "rlcd", "seed": 0, "model": {"name": "m", "fingerprint": "f"}, "chat_template": None,
        "data": {}, "invocations": [invocation, invocation],
    }  # fmt: skip
    facts = dict(overview(manifest, STAGES).facts)
    assert facts["machine"] == ("L" if machine is None else "P, 1 core, 1.0 GiB; L")
    assert facts["time"] == "1 min 40 s in 4 finished stages, started 2 times"
    assert facts["tokens"] == "1,050 written by models, 700 trained on"
    assert "selfalign 0 made the run" in (other_version(manifest) or "")
