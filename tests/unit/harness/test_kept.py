"""Answers of a benchmark that outlive a kill."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfalign.harness.kept import Answer, KeptEngine
from selfalign.runs.rows import PartialRows

LIMITS = {"stop": (".",), "max_new_tokens": 8, "chat": False}


class Mortal:
    """An engine that answers so often, the last question first, and is killed then."""

    tokenizer, max_length = None, 100

    def __init__(self, life: int = 100) -> None:
        self.life = life
        self.asked: list[Any] = []

    def render(self, messages: Any) -> str:
        return f"{len(messages)} turns"

    def _answers(self, questions: Sequence[Any], answer: Any) -> Iterator[tuple[int, Any]]:
        for place in reversed(range(len(questions))):
            if len(self.asked) == self.life:
                raise KeyboardInterrupt
            self.asked.append(questions[place])
            yield place, answer(questions[place])

    def complete(self, prompts: Any, **limits: Any) -> Iterator[tuple[int, Any]]:
        says = f"{limits['max_new_tokens']}: "
        return self._answers(
            prompts, lambda ids: SimpleNamespace(text=f"{says}{ids}", finish_reason="length")
        )

    def score(self, pairs: Any) -> Iterator[tuple[int, Any]]:
        return self._answers(pairs, lambda pair: (-float(sum(map(sum, pair))), pair[1] == [0]))


def kept(path: Path) -> PartialRows[Answer]:
    return PartialRows(path / "answers.jsonl", Answer, lambda answer: answer.key)


PROMPTS = [[1], [2], [3], [1]]
PAIRS = [([1], [0]), ([1], [5]), ([1, 5], [0]), ([1], [0])]


def test_a_killed_benchmark_asks_only_for_what_it_lacks(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), kept(tmp_path) as rows:
        list(KeptEngine(Mortal(life=2), rows).complete(PROMPTS, **LIMITS))
    engine = Mortal()
    with kept(tmp_path) as rows:
        found = dict(KeptEngine(engine, rows).complete(PROMPTS, **LIMITS))
    assert engine.asked == [[1]]
    assert {place: reply.text for place, reply in found.items()} == {
        place: f"8: {prompt}" for place, prompt in enumerate(PROMPTS)
    }
    assert {reply.finish_reason for reply in found.values()} == {"length"}


def test_scores_are_kept_apart_by_where_the_continuation_begins(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), kept(tmp_path) as rows:
        list(KeptEngine(Mortal(life=1), rows).score(PAIRS))
    engine = Mortal()
    with kept(tmp_path) as rows:
        found = dict(KeptEngine(engine, rows).score(PAIRS))
    assert engine.asked == [([1], [5]), ([1], [0])]
    assert found == dict(Mortal().score(PAIRS))


@pytest.mark.parametrize("other", [{"stop": ("!",)}, {"max_new_tokens": 9}, {"chat": True}])
def test_a_reply_under_other_limits_is_another(tmp_path: Path, other: dict[str, Any]):
    engine = Mortal()
    with kept(tmp_path) as rows:
        for limits in (LIMITS, {**LIMITS, **other}, LIMITS):
            list(KeptEngine(engine, rows).complete([[1]], **limits))
    assert engine.asked == [[1], [1]]


@pytest.mark.parametrize("logp", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(tmp_path: Path, logp: float):
    broken = SimpleNamespace(tokenizer=None, max_length=9, score=lambda _: iter([(0, (logp, True))]))
    for engine in (broken, Mortal(life=0)):
        with kept(tmp_path) as rows:
            ((place, (found, greedy)),) = KeptEngine(engine, rows).score([([1], [2])])
        assert (place, math.isfinite(found), greedy) == (0, False, True)
