"""Judging candidates and pairing them: what the stages write is what the pure functions say of all rows."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from selfalign.config import SelfRewardingRecipe
from selfalign.errors import DataError, NothingToTrainError
from selfalign.judging import health, mean_rewards
from selfalign.pairs import charge_length, pair_health
from selfalign.pairs import make_pairs as pure_make_pairs
from selfalign.records import Completion, Judgment, Message, PreferencePair, Prompt, content_id
from selfalign.runs import Artifact, Run
from selfalign.runs.events import EventLog
from selfalign.runs.files import read_rows, write_rows
from selfalign.seeds import derive_seed
from selfalign.stages import judge_candidates, make_pairs, sample_candidates

Change = Callable[[list[Any]], object]


class Iteration:
    """The files of an iteration of a run with the scripted engine, and the stages that make them."""

    def __init__(self, root: Path, **recipe: Any) -> None:
        fixed = {"engine": {"kind": "scripted"}, "eft": {"target": "score"}}
        self.recipe = SelfRewardingRecipe.model_validate(fixed | recipe)
        self.run = Run(root, self.recipe, EventLog(root / "events.jsonl"))
        self.directory = root / "iteration-1"
        self.policy = Artifact(root / "policy", "policy")
        self.candidates = self.artifact("candidates")

    def artifact(self, name: str) -> Artifact:
        return Artifact(self.directory / f"{name}.jsonl", name)

    def write(self, name: str, rows: Sequence[BaseModel]) -> None:
        write_rows(self.directory / f"{name}.jsonl", rows)

    def rows(self, name: str, record: type[Any]) -> list[Any]:
        return list(read_rows(self.directory / f"{name}.jsonl", record))

    def judge(self) -> Artifact:
        return judge_candidates(self.run, 1, self.policy, self.artifact("prompts"), self.candidates)

    def pair(self) -> Artifact:
        return make_pairs(self.run, 1, self.artifact("prompts"), self.candidates, self.artifact("judgments"))


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt.of([Message(role="user", content=f"question {n}")], source="test") for n in range(count)]


def completions_of(prompts: Sequence[Prompt]) -> list[Completion]:
    """Return 0 to 4 completions of each prompt; every seventh of all has no text, every fifth is cut off."""
    draw = random.Random(5)  # noqa: S311 -- reproducible lengths, no secret
    completions = []
    for place, prompt in enumerate(prompts):
        for sample in range(place % 5):
            number = len(completions)
            length = draw.randint(1, 30)
            completions.append(
                Completion(
                    completion_id=content_id(prompt.prompt_id, str(sample)),
                    prompt_id=prompt.prompt_id,
                    sample=sample,
                    text=None if number % 7 == 0 else " ".join(["word"] * length),
                    finish_reason=(
                        "prompt_too_long" if number % 7 == 0 else "length" if number % 5 == 0 else "stop"
                    ),
                    num_tokens=length,
                )
            )
    return completions


@pytest.fixture
def iteration(tmp_path: Path) -> Callable[..., Iteration]:
    """Set up an iteration whose prompts and candidates are there."""

    def set_up(**recipe: Any) -> Iteration:
        found = Iteration(tmp_path, **recipe)
        prompts = prompts_of(60)
        found.write("prompts", prompts)
        found.write("candidates", completions_of(prompts))
        return found

    return set_up


@pytest.mark.parametrize("method", ["sampled", "expected", "pairwise"])
def test_judgments_and_figures_are_those_of_all_texts_together(iteration: Any, method: str):
    there = iteration(judge={"method": method})
    figures = there.judge().figures
    judgments = there.rows("judgments", Judgment)
    texts = {c.completion_id: c.text for c in there.rows("candidates", Completion) if c.text is not None}
    calls = there.recipe.judge.calls
    assert [j.completion_id for j in judgments] == [name for name in texts for _ in range(calls)]
    random.Random(1).shuffle(judgments)  # noqa: S311 -- an order, no secret
    expected = health(judgments, {name: len(text) for name, text in texts.items()})
    assert {name: figures[name] for name in expected} == expected
    assert figures["length_correlation"] is not None


PAIRINGS: list[dict[str, Any]] = [
    {},
    {"strategy": "all", "min_margin": 0.5},
    {"strategy": "best_random", "keep_truncated": True},
    {"length_cost": 0.05, "near_best": 0.5},
]


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
def test_pairs_and_figures_are_those_of_all_rows_together(iteration: Any, pairing: dict[str, Any]):
    there = iteration(pairs=pairing)
    there.judge()
    figures = there.pair().figures
    settings = there.recipe.pairs
    completions = there.rows("candidates", Completion)
    rewards = dict.fromkeys(c.completion_id for c in completions) | mean_rewards(
        there.rows("judgments", Judgment)
    )

    def select(cost: float, near_best: float) -> Any:
        return pure_make_pairs(
            there.rows("prompts", Prompt),
            completions,
            charge_length(rewards, completions, cost),
            strategy=settings.strategy,
            min_margin=settings.min_margin,
            keep_truncated=settings.keep_truncated,
            seed=derive_seed(there.recipe.seed, "iteration-1/pairs"),
            near_best=near_best,
        )

    made = select(settings.length_cost, settings.near_best)
    assert there.rows("pairs", PreferencePair) == made.pairs
    assert len(made.pairs) > 10
    tokens = sum(pair.chosen_tokens + pair.rejected_tokens for pair in made.pairs)
    expected = {"rows": len(made.pairs), "tokens": tokens, **pair_health(made.pairs, made.dropped)}
    if "length_cost" in pairing:
        without = select(0.0, 0.0)
        expected["uncontrolled"] = pair_health(without.pairs, without.dropped)
        assert without.pairs != made.pairs
    assert figures == expected


def swap_first_and_last(rows: list[Any]) -> None:
    rows[0], rows[-1] = rows[-1], rows[0]


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (swap_first_and_last, 2),
        (lambda rows: rows.append(rows[0]), 121),
        (lambda rows: rows.insert(5, rows[0].model_copy(update={"prompt_id": "unknown"})), 6),
    ],
)
def test_candidates_that_do_not_follow_their_prompts_are_never_judged(
    iteration: Any, change: Change, row: int
):
    there = iteration()
    candidates = there.rows("candidates", Completion)
    assert len(candidates) == 120
    change(candidates)
    there.write("candidates", candidates)
    with pytest.raises(DataError, match="belongs to prompt") as caught:
        there.judge()
    assert (caught.value.path, caught.value.row) == (there.directory / "candidates.jsonl", row)
    assert not (there.directory / "judgments.jsonl").exists()
    assert not (there.directory / "partial").exists()


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (swap_first_and_last, 2),
        (lambda rows: rows.append(rows[0]), 103),
        (lambda rows: rows.insert(5, rows[0].model_copy(update={"completion_id": "unknown"})), 6),
    ],
)
def test_judgments_that_do_not_follow_their_candidates_make_no_pairs(
    iteration: Any, change: Change, row: int
):
    there = iteration(judge={"samples": 1})
    there.judge()
    judgments = there.rows("judgments", Judgment)
    assert len(judgments) == 102
    change(judgments)
    there.write("judgments", judgments)
    with pytest.raises(DataError, match="belongs to completion") as caught:
        there.pair()
    assert (caught.value.path, caught.value.row) == (there.directory / "judgments.jsonl", row)
    assert not (there.directory / "pairs.jsonl").exists()


def test_where_no_pair_is_left_nothing_is_written(iteration: Any):
    there = iteration(pairs={"min_margin": 6.0})
    there.judge()
    with pytest.raises(
        NothingToTrainError, match=r"no pair is left after judging \(.*12 no_completions.*small_m"
    ):
        there.pair()
    assert not (there.directory / "pairs.jsonl").exists()


def test_candidates_are_counted_prompt_by_prompt(iteration: Any):
    script = """
    vocabulary = "word"
    [[rules]]
    match = '[02468]$'
    reply = 'always the same'
    [[rules]]
    match = ''
    reply = '{{ number(0, 1000000) }} {{ words(number(1, 3)) }}'
    """
    there = iteration(candidates={"n": 3})
    path = there.directory / "script.toml"
    path.write_text(script)
    there.run.recipe = there.recipe.model_copy(
        update={"engine": there.recipe.engine.model_copy(update={"script": str(path)})}
    )
    figures = sample_candidates(there.run, 1, there.policy, there.artifact("prompts")).figures
    rows = there.rows("candidates", Completion)
    assert [row.prompt_id for row in rows] == [p.prompt_id for p in prompts_of(60) for _ in range(3)]
    assert figures == {
        "rows": 180,
        "tokens": sum(len(row.text.split()) for row in rows),
        "mean_tokens": sum(len(row.text.split()) for row in rows) / 180,
        "mean_characters": sum(len(row.text) for row in rows) / 180,
        "finish_reasons": {"stop": 180},
        "prompts_with_identical_candidates": 30,
    }
