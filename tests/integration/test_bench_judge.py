"""The judge benchmark: whom it judges, what it trains on, that it refuses to time what differs, one run."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_judge
import bench_judge_data
import bench_judge_tables

from selfalign.balancing import score_counts
from selfalign.config import BaseRecipe, EngineSettings, Policy
from selfalign.data.readers import read_ranked
from selfalign.eft import normalised
from selfalign.models.load import load_chat
from selfalign.records import Message, RankedPrompt, RankedReply
from selfalign.stages.eft import judged_replies

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
JUDGES = bench_judge.methods(256)
RUBRIC = "{{ prompt }} {{ completion }}"


def prompt_of(name: str, *qualities: float) -> RankedPrompt:
    """Make a prompt whose replies are the longer the better."""
    ranks = sorted(set(qualities), reverse=True)
    replies = tuple(
        RankedReply(reply_id=f"{name}{i}", text=f"{name} " * int(9 * q + 1), rank=ranks.index(q), quality=q)
        for i, q in enumerate(qualities)
    )
    asked = (Message(role="user", content=name),)
    return RankedPrompt(prompt_id=name, messages=asked, replies=replies, source="test")


PROMPTS = [prompt_of(name, 0.1, 0.5, 0.9) for name in "abcdefgh"]


@pytest.fixture(scope="module")
def judged() -> dict[str, bench_judge.Outcome]:
    """Return what the scripted engine says of all replies."""
    recipe = BaseRecipe(engine=EngineSettings(kind="scripted"))
    parts = [judged_replies(PROMPTS[:5]), judged_replies(PROMPTS[5:])]
    return bench_judge.judge_in_turns(recipe, JUDGES, Path("no model"), parts)


def test_the_methods_are_the_default_judge_and_the_expected_score():
    assert JUDGES["sampled"] == bench_judge.Judge(retries=0)
    assert JUDGES["bare scores"].rubric == JUDGES["expected"].rubric
    assert (JUDGES["expected"].calls, JUDGES["expected"].rubric) == (1, "additive_score_only")


def test_every_reply_is_judged_once_by_the_expected_score_and_three_times_by_sampling(
    judged: dict[str, bench_judge.Outcome],
):
    bench_judge.check_same(judged_replies(PROMPTS), JUDGES, judged)
    counts = {name: len(outcome.judgments) for name, outcome in judged.items()}
    assert counts == {"expected": 24, "sampled": 72, "bare scores": 72}
    assert all(outcome.seconds > 0 for outcome in judged.values())


def test_the_methods_take_turns_and_the_last_of_a_part_begins_the_next(monkeypatch: pytest.MonkeyPatch):
    turns = []

    class Noted(bench_judge.Grader):
        def __call__(self, shard: Any) -> Any:
            name = next(name for name, judge in JUDGES.items() if judge == self._settings)
            turns.append((name, {task.item.prompt_id for task in shard}))
            return super().__call__(shard)

    monkeypatch.setattr(bench_judge, "Grader", Noted)
    recipe = BaseRecipe(engine=EngineSettings(kind="scripted"))
    parts = [judged_replies(PROMPTS[:1]), judged_replies(PROMPTS[1:2])]
    bench_judge.judge_in_turns(recipe, JUDGES, Path("no model"), parts)
    names = list(JUDGES)
    assert turns[3:] == [*((name, {"a"}) for name in names), *((name, {"b"}) for name in reversed(names))]


def test_a_reply_that_one_method_has_not_judged_is_refused(judged: dict[str, bench_judge.Outcome]):
    sampled = judged["sampled"]
    one = sampled.judgments[0]
    unseen = one.model_copy(update={"score": None, "reason": "prompt_too_long"})
    for others in ((), (unseen,)):
        broken = {**judged, "sampled": replace(sampled, judgments=(*others, *sampled.judgments[1:]))}
        with pytest.raises(bench_judge.UnequalError, match=f"sampled has judged {one.completion_id} 2 times"):
            bench_judge.check_same(judged_replies(PROMPTS), JUDGES, broken)


def test_a_judged_text_that_is_none_of_the_replies_is_refused(judged: dict[str, bench_judge.Outcome]):
    with pytest.raises(bench_judge.UnequalError, match="h0, which is none"):
        bench_judge.check_same(judged_replies(PROMPTS[:7]), JUDGES, judged)


def test_differences_are_those_of_the_accuracies_and_split_by_length():
    replies = judged_replies(PROMPTS)
    length = {reply.completion_id: float(len(reply.text)) for reply in replies}
    rewards = {"expected": length, "worst": {name: -value for name, value in length.items()}}
    rated = bench_judge.rate(PROMPTS, rewards)
    assert rated["expected"]["pairwise_accuracy"]["value"] == 1
    assert rated["worst"]["difference"]["value"] == 1
    assert rated["expected"]["pairwise_accuracy_longer_worse"]["reason"] is not None
    assert "difference" not in rated["expected"]
    assert bench_judge_tables.quality_table(rated).row_count == 2


def test_the_draw_is_of_whole_prompts_in_any_order_and_fills_up():
    def drawn(prompts: list[RankedPrompt], replies: int) -> tuple[list[RankedPrompt], list[RankedPrompt]]:
        return bench_judge_data.draw(prompts, replies, lambda prompt: prompt.prompt_id != "a", seed=0)

    mixed = [*PROMPTS, prompt_of("two", 0.2, 0.6), prompt_of("tied", 0.5, 0.5)]
    measured, others = drawn(mixed, 11)
    assert sum(len(prompt.replies) for prompt in measured) == 11
    assert "a" in {prompt.prompt_id for prompt in others}
    assert "tied" not in {prompt.prompt_id for prompt in measured + others}
    assert drawn(mixed[::-1], 11) == (measured, others)


def test_examples_have_every_score_equally_often_as_far_as_there_are_replies(tiny_model: Path):
    chat = load_chat(tiny_model, Policy())
    prompts = [prompt_of("a", 0.0, 0.2, 0.4, 0.55, 0.7, 1.0), *(prompt_of(n, 0.0, 0.4, 0.9) for n in "bcd")]
    examples = bench_judge_data.judge_examples(prompts, chat, RUBRIC, 12, 10_000)
    assert score_counts(examples) == {"0": 3, "1": 1, "2": 3, "3": 1, "4": 1, "5": 3}
    assert {example.completion for example in examples} == {f"Score: {score}" for score in range(6)}
    assert bench_judge_data.judge_examples(prompts, chat, RUBRIC, 12, 10) == []


def test_real_prompts_are_on_one_side_only():
    if not DATA.exists():
        pytest.skip("the shared data is not here")
    ranked, _ = read_ranked(str(DATA / bench_judge_data.FILE), language=None)
    measured, others = bench_judge_data.draw(ranked, 200, lambda _: True, seed=0)
    keys = Counter(normalised(prompt.messages) for prompt in measured + others)
    assert set(keys.values()) == {1}
    assert sum(len(prompt.replies) for prompt in measured) == 200


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["bench_judge.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"tuning\.jsonl is missing"):
        bench_judge.main()


def test_a_quick_run_shows_the_model_as_it_is_and_after_eft(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if not DATA.exists():
        pytest.skip("the shared data is not here")
    target, model = tmp_path / "judge.json", tiny_recipe.parent / "model"
    monkeypatch.setattr(bench_judge, "QUICK", bench_judge.Plan(6, 2, 4096, 4, 0))
    longer = bench_judge_data.TRAIN.model_copy(update={"max_length": 2048, "batch_size": 6})
    monkeypatch.setattr(bench_judge_data, "TRAIN", longer)  # a byte is a token of this model
    words = f"bench_judge.py --data {DATA} --quick --eft 1 --model {model} --json {target}"
    monkeypatch.setattr(sys, "argv", words.split())
    bench_judge.main()
    shown = capsys.readouterr().out
    assert "Quick: too few" in shown
    assert "1 of 0, 1 of 1, 1 of 2, 1 of 3, 1 of 4, 1 of 5" in " ".join(shown.split())
    as_it_is, after = json.loads(target.read_text(encoding="utf-8"))["groups"]
    assert (as_it_is["training"], after["training"]["steps"]) == (None, 1)
    for group in (as_it_is, after):
        assert group["cost"]["expected"]["judgments"] == 6
        assert group["cost"]["sampled"]["judgments"] == 18
        assert group["quality"].keys() == {*JUDGES, "length", "likelihood"}
    assert as_it_is["rewards"]["expected"] != after["rewards"]["expected"]
    assert as_it_is["rewards"]["length"] == after["rewards"]["length"]
