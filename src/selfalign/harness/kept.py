"""Answers that outlive a kill: a benchmark that goes on asks only for those that it lacks."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from selfalign.harness.model import TokenEngine
from selfalign.records import FinishReason, Message, Record
from selfalign.runs.files import hash_json
from selfalign.runs.rows import PartialRows


class Answer(Record):
    """What a model went on with, or how likely it found what was given."""

    key: str
    """Hash of all that was asked."""
    text: str | None = None
    finish_reason: FinishReason = "stop"
    logp: float | None = None
    """`None` where it is not finite."""
    greedy: bool = False


Computed = Iterator[tuple[int, dict[str, Any]]]
"""The place of what was asked, and the fields of its answer."""


class KeptEngine:
    """An engine whose answers are kept as they come; what is asked twice is computed once."""

    def __init__(self, engine: TokenEngine, rows: PartialRows[Answer]) -> None:
        """Take the engine, and the rows of its answers, which are open."""
        self.tokenizer = engine.tokenizer
        self.max_length = engine.max_length
        self._engine = engine
        self._rows = rows

    def render(self, messages: Sequence[Message]) -> str:
        """Return a prompt as text; see `TokenEngine`."""
        return self._engine.render(messages)

    def complete(self, prompts: Sequence[Sequence[int]], **limits: Any) -> Iterator[tuple[int, Answer]]:
        """Yield the place of each prompt with the likeliest words after it; see `TokenEngine`."""

        def compute(places: Sequence[int]) -> Computed:
            for number, reply in self._engine.complete([prompts[place] for place in places], **limits):
                yield number, {"text": reply.text, "finish_reason": reply.finish_reason}

        yield from self._answers([hash_json([list(prompt), limits]) for prompt in prompts], compute)

    def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Yield the place of each pair and its log-probability; see `TokenEngine`."""

        def compute(places: Sequence[int]) -> Computed:
            for number, (logp, greedy) in self._engine.score([pairs[place] for place in places]):
                yield number, {"logp": logp if math.isfinite(logp) else None, "greedy": greedy}

        keys = [hash_json([list(context), list(continuation)]) for context, continuation in pairs]
        for place, answer in self._answers(keys, compute):
            yield place, (math.nan if answer.logp is None else answer.logp, answer.greedy)

    def _answers(
        self, keys: Sequence[str], compute: Callable[[Sequence[int]], Computed]
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the kept answers, then those that are computed, each for all places that have its key."""
        places: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        missing = []
        for key, asking in places.items():
            if key in self._rows:
                answer = self._rows.read(key)
                yield from ((place, answer) for place in asking)
            else:
                missing.append(key)
        for number, found in compute([places[key][0] for key in missing]):
            answer = Answer(key=missing[number], **found)
            self._rows.append(answer)
            yield from ((place, answer) for place in places[answer.key])
