"""Structured judgments: a rationale, then a score from 0 to 5, whatever the judge would rather say."""

import random
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from selfalign.config import Sampling
from selfalign.engines import Form
from selfalign.judging import ParsedScore, parse_score

_SCORE_TOKENS = 16
"""Tokens that the score line takes at most."""
_CHARACTERS_PER_TOKEN = 3
_LAST_LINE = re.compile(r"(?:^|\n)\W*score\s*:[^\n]*\Z", re.IGNORECASE)


class Answer(BaseModel):
    """A short rationale, then the score."""

    model_config = ConfigDict(extra="forbid")

    rationale: str
    score: Literal[0, 1, 2, 3, 4, 5]


def judge_form(max_new_tokens: int) -> Form:
    """Return the form of a judge's reply: a rationale and the score line, or that line alone.

    A server can be told to end the rationale at a number of characters, not of tokens. Prose has more
    characters a token than are counted here, so that its score comes before the token limit; what has fewer
    may be cut, and `Grader` ends it.

    Source: our choice: without a bound SmolLM2-135M went on to the limit in 15 of 16 replies, with it in 1.
    """
    room = max(0, _CHARACTERS_PER_TOKEN * (max_new_tokens - _SCORE_TOKENS))
    return Form(rf"([\s\S]{{0,{room}}}\n)?Score: [0-5]", Answer.model_json_schema())


def read_answer(answer: str, *, truncated: bool) -> tuple[str, ParsedScore]:
    """Return an answer in JSON as text that ends in a score line, and its score.

    Text that is no JSON, as of an API that takes the schema and ignores it, is read like any reply. JSON of
    another form or without its end has no score, since its words may quote one.

    Args:
        answer: Of an API that was asked for an `Answer`.
        truncated: Whether the token limit ended it.
    """
    if not answer.lstrip().startswith("{"):
        return answer, parse_score(answer, truncated=truncated)
    try:
        found = Answer.model_validate_json(answer)
    except ValidationError:
        return answer, ParsedScore(None, "truncated" if truncated else "no_score")
    rationale = _LAST_LINE.sub("", found.rationale.strip())
    return f"{rationale}\nScore: {found.score}".lstrip(), ParsedScore(float(found.score), None)


def draw_score(probabilities: Sequence[float], sampling: Sampling, seed: int) -> int | None:
    """Draw a score in the way in which a reply's tokens are drawn, from the scores alone.

    Args:
        probabilities: Of the scores 0, 1, 2, ... among all that the judge could say.
        sampling: Temperature and nucleus of the judge's replies.
        seed: Shapes the draw.

    Returns:
        The score; `None` where the judge says none at all.
    """
    import torch

    from selfalign.engines.sampling import sample

    if sum(probabilities) == 0:
        return None
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    uniform = torch.tensor([random.Random(seed).random()])  # noqa: S311 -- a reproducible draw, no secret
    return int(sample(logits, uniform, sampling.temperature, sampling.top_p))
