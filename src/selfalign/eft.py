"""Evaluation fine-tuning data: examples that teach the model to judge as people do.

Out of human-ranked replies and the model's own judgments of them, keep the judgments that agree with
the human order. A tie or an unscored reply is never agreement, so a judge that always says the same
passes nothing.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import rankdata

from selfalign.judging import mean_rewards, representative
from selfalign.records import (
    JudgedReply,
    Judgment,
    Messages,
    RankedPrompt,
    RankedReply,
    RankingExample,
    SFTExample,
    content_id,
)

Rule = Literal["ranking", "per_reply", "none"]
Target = Literal["rationale", "score"]
Spread = Literal["label", "even"]


@dataclass(frozen=True)
class RankedSplit:
    """Ranked prompts in two parts that share no prompt."""

    train: list[RankedPrompt]
    evaluation: list[RankedPrompt]
    dropped: Counter[str]
    """Prompts in neither part, by reason."""


@dataclass(frozen=True)
class EFTSelection:
    """Examples in the order of the prompts and their replies, and the replies that gave none."""

    examples: list[SFTExample]
    dropped: Counter[str]
    """Replies without an example, by reason. Together with the examples these are all replies."""


def normalised(messages: Messages) -> str:
    """Return the key that says two prompts ask the same: their last user turn without its spelling.

    Unicode compatibility forms (NFKC), letter case and runs of white space make no difference, nor do
    earlier turns.

    Raises:
        ValueError: There is no user turn.

    Source: our choice, because a judge must not be measured on a question it was trained to answer, under
    whatever conversation it stands.
    """
    turns = [message.content for message in messages if message.role == "user"]
    if not turns:
        raise ValueError("a prompt needs a user turn")
    return " ".join(unicodedata.normalize("NFKC", turns[-1]).casefold().split())


def split_ranked(
    ranked: Sequence[RankedPrompt],
    ift_prompts: Iterable[Messages],
    *,
    evaluation_fraction: float,
    limit: int | None,
    seed: int,
) -> RankedSplit:
    """Split ranked prompts into train and evaluation, after dropping those that can't be used.

    Dropped, each under the first reason that holds: `ift_prompt` (its key, `normalised`, is that of an IFT
    prompt), `all_tied` (people preferred no reply to another), `duplicate_prompt` (an earlier prompt that
    was kept has its key), `over_limit`. What is left is put in an order hashed from `seed` and prompt ids;
    its head is the evaluation part, the rest is the train part, both in that order.

    Args:
        ranked: Prompts with human-ranked replies.
        ift_prompts: Messages of the IFT prompts, without completions.
        evaluation_fraction: Share of the evaluation part, 0 to 1, rounded to whole prompts. Strictly between
            0 and 1, and with two prompts or more, no part is empty.
        limit: The most prompts in both parts together; `None` is no limit.
        seed: Of the order.

    Source: 2401.10020, section 3.1.1 (a train and an evaluation part, neither overlapping the IFT data);
    hashing is our choice, because the parts then do not depend on the order of the file.
    """
    ift_keys = {normalised(messages) for messages in ift_prompts}
    kept: dict[str, RankedPrompt] = {}
    dropped: Counter[str] = Counter()
    for prompt in ranked:
        key = normalised(prompt.messages)
        if key in ift_keys:
            dropped["ift_prompt"] += 1
        elif len({reply.rank for reply in prompt.replies}) < 2:
            dropped["all_tied"] += 1
        elif key in kept:
            dropped["duplicate_prompt"] += 1
        else:
            kept[key] = prompt
    shuffled = sorted(kept.values(), key=lambda prompt: content_id(str(seed), prompt.prompt_id))
    prompts = shuffled[:limit]
    if len(prompts) < len(shuffled):
        dropped["over_limit"] = len(shuffled) - len(prompts)
    size = round(evaluation_fraction * len(prompts))
    if 0 < evaluation_fraction < 1 and len(prompts) > 1:
        size = min(max(size, 1), len(prompts) - 1)
    return RankedSplit(prompts[size:], prompts[:size], dropped)


def agreeing_replies(
    prompt: RankedPrompt, rewards: Mapping[str, float | None], rule: Rule
) -> tuple[RankedReply, ...]:
    """Return the replies on whose place the judge agrees with people, in the order of the prompt.

    A reply's place in the judge's ranking is the number of replies with a higher reward. It agrees if people
    gave it that place, where a human tie may take any place that its members share, and if no other reply
    has its reward. Places are defined among all replies: one unscored reply and none agree.

    Args:
        prompt: The human ranking.
        rewards: Reward of every reply by `reply_id`; `None` is unscored.
        rule: `per_reply` returns the replies that agree; `ranking` all of them if all agree, else none;
            `none` asks for no agreement and returns all.

    Raises:
        KeyError: A reply has no entry in `rewards`.

    Source: 2401.10020, section 3.1.1, for `ranking`; icip-cas/AutoAlign for `per_reply`. That ties and
    unscored replies never agree is our choice, because otherwise a constant judge passes.
    """
    if rule == "none":
        return prompt.replies
    scores = [rewards[reply.reply_id] for reply in prompt.replies]
    if None in scores:
        return ()
    values = np.array(scores, dtype=float)
    ranks = np.array([reply.rank for reply in prompt.replies])
    agreeing = tuple(
        reply
        for reply, value in zip(prompt.replies, values, strict=True)
        if np.sum(values == value) == 1
        and np.sum(ranks < reply.rank) <= np.sum(values > value) < np.sum(ranks <= reply.rank)
    )
    return agreeing if rule == "per_reply" or len(agreeing) == len(prompt.replies) else ()


def build_examples(
    ranked: Sequence[RankedPrompt],
    judgments: Iterable[Judgment],
    judge_prompts: Mapping[str, Messages],
    *,
    rule: Rule,
    target: Target,
    spread: Spread = "label",
    high: int = 5,
) -> EFTSelection:
    """Turn the judgments that agree with people into examples of judging.

    The target `rationale` is the whole text of the reply's representative judgment. The target `score` is
    a score line alone, with the score of `human_scores`.

    Replies without an example are counted under the first of: `unscored` (itself), `unscored_sibling`
    (another reply of the prompt), `tie` (another reply has its reward), `disagrees` (its place or, under
    `ranking`, the place of any reply of the prompt is not the human one), `no_rationale` (the judgment has a
    score without text), `fractional_score` (the judgment's score is no whole number).

    Args:
        ranked: Prompts with human-ranked replies.
        judgments: One or more of each reply, by `completion_id` = `reply_id`; others are ignored. The rule
            `none` with the target `score` needs none.
        judge_prompts: What the judge is asked about each reply, by `reply_id`.
        rule: See `agreeing_replies`.
        target: What the model learns to say.
        spread: See `human_scores`.
        high: The rubric's best score; targets made from human labels lie in 0 to `high`.

    Raises:
        KeyError: A reply has no judgment, or a kept one no judge prompt.
        ValueError: Two judgments of a reply have the same sample number.

    Source: 2401.10020, section 3.1.1, for `rationale`; icip-cas/AutoAlign for `score` and `per_reply`. The
    rule `none` is our choice, because a score line made of people's labels is right whatever the judge said.
    """
    judgments = list(judgments)
    rewards = mean_rewards(judgments)
    scores = human_scores(ranked, spread=spread, high=high)
    by_reply: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        by_reply.setdefault(judgment.completion_id, []).append(judgment)
    examples: list[SFTExample] = []
    dropped: Counter[str] = Counter()
    for prompt in ranked:
        agreeing = {reply.reply_id for reply in agreeing_replies(prompt, rewards, rule)}
        for reply in prompt.replies:
            if reply.reply_id not in agreeing:
                dropped[_disagreement(prompt, reply, rewards)] += 1
                continue
            score = scores[reply.reply_id]
            found = (score, f"Score: {score}") if target == "score" else _rationale(by_reply[reply.reply_id])
            if isinstance(found, str):
                dropped[found] += 1
                continue
            score, completion = found
            examples.append(
                SFTExample(
                    example_id=content_id(reply.reply_id, completion),
                    prompt_id=prompt.prompt_id,
                    messages=judge_prompts[reply.reply_id],
                    completion=completion,
                    kind="eft",
                    score=score,
                    reply_id=reply.reply_id,
                    source=prompt.source,
                )
            )
    return EFTSelection(examples, dropped)


def ranking_examples(
    ranked: Sequence[RankedPrompt], judge_prompts: Mapping[str, Messages]
) -> list[RankingExample]:
    """Return every ranked prompt as the judge is asked about its replies, with `human_scores`, spread evenly.

    Args:
        ranked: Prompts with human-ranked replies.
        judge_prompts: What the judge is asked about each reply, by `reply_id`.

    Raises:
        KeyError: A reply has no judge prompt.
    """
    scores = human_scores(ranked, spread="even")
    return [
        RankingExample(
            prompt_id=prompt.prompt_id,
            replies=tuple(
                JudgedReply(
                    reply_id=reply.reply_id,
                    messages=judge_prompts[reply.reply_id],
                    rank=reply.rank,
                    score=scores[reply.reply_id],
                    length=len(reply.text),
                )
                for reply in prompt.replies
            ),
            source=prompt.source,
        )
        for prompt in ranked
    ]


def human_scores(ranked: Sequence[RankedPrompt], *, spread: Spread, high: int = 5) -> dict[str, int]:
    """Return the whole score, 0 to `high`, that people gave each reply, by `reply_id`.

    Without a label it is the human place among the replies of the prompt, spread evenly from `high` for the
    best to 1 for the worst, halves rounded up; where all share one place, the middle.

    Args:
        ranked: Prompts with human-ranked replies.
        spread: `label` takes the quality label times `high`, rounded down. `even` takes the place of the
            label among those of all replies (equal labels share the mean place), so that each score is
            given about as often as any other.
        high: The rubric's best score.

    Source: icip-cas/AutoAlign for `label`. `even` is our choice, because labels crowd around 0.7, so that
    most scores are 3 and none is 5; places are, because trees without labels still order their replies.
    """
    labels = {r.reply_id: r.quality for prompt in ranked for r in prompt.replies if r.quality is not None}
    if spread == "even":
        shares = (rankdata(list(labels.values())) - 0.5) / max(len(labels), 1)
        scores = {key: int((high + 1) * share) for key, share in zip(labels, shares, strict=True)}
    else:
        scores = {key: min(max(int(high * quality), 0), high) for key, quality in labels.items()}
    for prompt in ranked:
        ranks = sorted({reply.rank for reply in prompt.replies})
        for reply in prompt.replies:
            if reply.reply_id not in labels:
                share = ranks.index(reply.rank) / (len(ranks) - 1) if len(ranks) > 1 else 0.5
                scores[reply.reply_id] = math.floor(high - share * (high - 1) + 0.5)
    return scores


def _disagreement(prompt: RankedPrompt, reply: RankedReply, rewards: Mapping[str, float | None]) -> str:
    """Return why a reply that doesn't agree does not, in the words of `build_examples`."""
    reward = rewards[reply.reply_id]
    others = [rewards[other.reply_id] for other in prompt.replies if other.reply_id != reply.reply_id]
    if reward is None:
        return "unscored"
    if None in others:
        return "unscored_sibling"
    return "tie" if reward in others else "disagrees"


def _rationale(judgments: Sequence[Judgment]) -> tuple[int, str] | str:
    """Return score and text of the representative judgment, or the reason why it is no target."""
    judgment = representative(judgments)
    if judgment is None or judgment.score is None or not judgment.text:
        return "no_rationale"
    if not judgment.score.is_integer():
        return "fractional_score"
    return int(judgment.score), judgment.text
