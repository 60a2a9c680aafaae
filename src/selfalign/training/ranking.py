"""Teaching a judge the human order of replies: the better reply is to have the higher expected score.

What is trained is what `judge.method: expected` reads, the mean over the probabilities of the scores behind
the start of a reply, so the model does not learn to say a score where it should answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfalign.config import Ranking
from selfalign.models.chat import Chat
from selfalign.models.choices import Spelling, spellings
from selfalign.models.packing import TokenSequence
from selfalign.records import JudgedReply, RankingExample, Record
from selfalign.training.trainer import Objective


class RankingTask(Record):
    """What a judge chooses its scores from, and how its order is compared with that of people."""

    reply_start: str
    """What stands before the score."""
    scores: tuple[str, ...]
    """How the scores are written, 0 first."""
    settings: Ranking


@dataclass(frozen=True)
class Preference:
    """Two replies of a prompt, by their places in it, the first preferred."""

    better: int
    worse: int
    weight: float


@dataclass(frozen=True)
class RankedTokens:
    """The judge prompts of up to R replies of a prompt, each with the S spellings of the scores."""

    sequences: tuple[TokenSequence, ...]
    """R x S, reply by reply."""
    preferences: tuple[Preference, ...]
    scores: tuple[int, ...]
    """Human score of each reply, `(R,)`."""


def tokenize_rankings(
    examples: Iterable[RankingExample], chat: Chat, task: RankingTask, max_length: int
) -> tuple[list[RankedTokens], int]:
    """Return the examples of which two replies fit that people did not tie, and how many replies did not fit.

    An example with many replies makes several items, whose replies are not compared with each other: all
    replies of an item are in memory at once.
    """
    spelled = spellings(chat, task.reply_start, task.scores)
    longest = max(len(ids) for _, ids in spelled)
    items: list[RankedTokens] = []
    too_long = 0
    for example in examples:
        asked: list[tuple[JudgedReply, tuple[int, ...]]] = []
        for reply in example.replies:
            ids = tuple(chat.prompt_ids(reply.messages, task.reply_start))
            if len(ids) + longest <= max_length:
                asked.append((reply, ids))
            else:
                too_long += 1
        for part in _parts(asked, task.settings.replies):
            replies = [reply for reply, _ in part]
            preferences = _preferences(replies, task.settings.longer_worse_weight)
            if preferences:
                sequences = tuple(TokenSequence(ids, score) for _, ids in part for _, score in spelled)
                items.append(RankedTokens(sequences, preferences, tuple(reply.score for reply in replies)))
    return items, too_long


def ranking_objective(chat: Chat, task: RankingTask) -> Objective[RankedTokens]:
    """Return the objective: how unlikely the human order is by the expected scores, plus the human scores.

    A pair (i, j), of which people preferred i, costs -log σ(E_i - E_j), the E being expected scores. A reply
    costs -log p(its human score), times `score_weight`, which keeps the scores on the rubric's scale. The
    mean is over the weights of both. Its metrics, means over prompts: `accuracy`, the share of pairs in
    order (a tie is none), and `score_nll`, that of a reply.

    Source: our choice, after the pairwise loss of reward models (2203.02155, equation 1), because a score
        line learned by itself says nothing of what sets two replies to one prompt apart.
    """
    spelled = spellings(chat, task.reply_start, task.scores)

    def loss(logps: Tensor, batch: Sequence[RankedTokens]) -> tuple[Tensor, dict[str, float]]:
        total = logps.new_zeros(())
        accuracy = score_nll = 0.0
        for item, own in zip(batch, torch.split(logps, [len(item.sequences) for item in batch]), strict=True):
            scores = score_logps(own, spelled, len(task.scores))
            expected = scores.exp() @ torch.arange(len(task.scores), dtype=scores.dtype, device=scores.device)
            margins = torch.stack([expected[pair.better] - expected[pair.worse] for pair in item.preferences])
            weights = logps.new_tensor([pair.weight for pair in item.preferences])
            nll = F.nll_loss(scores, torch.tensor(item.scores, device=scores.device), reduction="sum")
            total = total - (weights * F.logsigmoid(margins)).sum() + task.settings.score_weight * nll
            accuracy += (margins > 0).float().mean().item()
            score_nll += nll.item() / len(item.scores)
        return total, {"accuracy": accuracy, "score_nll": score_nll}

    def weight(item: RankedTokens) -> float:
        return sum(pair.weight for pair in item.preferences) + task.settings.score_weight * len(item.scores)

    return Objective(sequences=lambda item: item.sequences, weight=weight, loss=loss)


def score_logps(logps: Tensor, spelled: Sequence[Spelling], num_scores: int) -> Tensor:
    """Return the log-probability of each score among the scores, `(R, num_scores)`.

    Args:
        logps: Of the S spellings behind each of R judge prompts, `(R * S,)`.
        spelled: The spellings, none of which goes on from another.
        num_scores: How many scores there are.
    """
    by_spelling = logps.view(-1, len(spelled))
    places = torch.tensor([place for place, _ in spelled], device=logps.device)
    summed = [torch.logsumexp(by_spelling[:, places == place], 1) for place in range(num_scores)]
    return torch.stack(summed, 1).log_softmax(1)


def _parts(
    asked: Sequence[tuple[JudgedReply, tuple[int, ...]]], size: int
) -> Iterator[Sequence[tuple[JudgedReply, tuple[int, ...]]]]:
    """Deal replies, best first, into as few parts as hold `size` at most, so that each part has all kinds."""
    ordered = sorted(asked, key=lambda item: item[0].rank)
    number = -(-len(ordered) // size)
    return (ordered[part::number] for part in range(number))


def _preferences(replies: Sequence[JudgedReply], longer_worse_weight: float) -> tuple[Preference, ...]:
    """Return the pairs that people did not tie; together they weigh as the replies do, not their square."""
    return tuple(
        Preference(i, j, 2 / len(replies) * (longer_worse_weight if a.length < b.length else 1.0))
        for i, a in enumerate(replies)
        for j, b in enumerate(replies)
        if a.rank < b.rank
    )
