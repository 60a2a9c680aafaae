"""Comparing two completions of a prompt: the question, asked in both orders, and what the answers say.

A judge that compares tends to take the answer that stands first. So every pair is asked both ways round, and
where the two answers name different completions the pair is a tie.
"""

from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Literal

from selfalign.judging import conversation_of, fence, rendered
from selfalign.records import Message, Messages, Record

LETTERS = ("A", "B")
REPLY_START = "Better answer:"


class Comparison(Record):
    """What a judge said of two completions of one prompt."""

    comparison_id: str
    prompt_id: str
    one_id: str
    other_id: str
    one_first: float | None
    """Probability of the one, out of both, where it stands first; `None` if not answered."""
    one_second: float | None
    """The same where it stands second."""

    @property
    def winner(self) -> Literal["one", "other", "tie"] | None:
        """Return who is better in both orders; a tie where they disagree, `None` without two answers."""
        if self.one_first is None or self.one_second is None:
            return None
        if min(self.one_first, self.one_second) > 0.5:
            return "one"
        return "other" if max(self.one_first, self.one_second) < 0.5 else "tie"

    @property
    def by_place(self) -> bool:
        """Say whether the answers to both orders name the same place, whichever completion stood there."""
        if self.one_first is None or self.one_second is None:
            return False
        return (self.one_first - 0.5) * (self.one_second - 0.5) < 0


def compare_messages(messages: Messages, first: str, second: str) -> Messages:
    """Return the one user message that asks which of two completions is better; see `judge_messages`."""
    text = rendered(
        (resources.files("selfalign") / "prompts" / "pairwise.jinja").read_text(encoding="utf-8"),
        prompt=fence("request", conversation_of(messages)),
        first=fence("answer-A", first),
        second=fence("answer-B", second),
    )
    return (Message(role="user", content=text),)


def first_share(probabilities: tuple[float, ...] | None) -> float | None:
    """Return the probability of the first letter among the two; `None` where neither would be said."""
    if probabilities is None or sum(probabilities) == 0:
        return None
    return probabilities[0] / sum(probabilities)


def win_shares(comparisons: Iterable[Comparison]) -> Mapping[str, float]:
    """Return the share of its answered comparisons that each completion wins, a tie counting half.

    A completion without an answered comparison is left out.
    """
    points: dict[str, list[float]] = {}
    for comparison in comparisons:
        if (winner := comparison.winner) is not None:
            won = {"one": 1.0, "tie": 0.5, "other": 0.0}[winner]
            points.setdefault(comparison.one_id, []).append(won)
            points.setdefault(comparison.other_id, []).append(1 - won)
    return {completion_id: sum(found) / len(found) for completion_id, found in points.items()}
