"""What the judge benchmark judges and trains on: human-rated replies, and no prompt for both."""

from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any

from selfalign.balancing import score_counts
from selfalign.config import Policy, Train
from selfalign.eft import split_ranked
from selfalign.judging import SCORES, judge_messages, load_rubric
from selfalign.models.chat import Chat
from selfalign.records import Message, RankedPrompt, SFTExample, content_id
from selfalign.runs import Work
from selfalign.runs.events import EventLog
from selfalign.runs.files import write_rows
from selfalign.training.job import TrainingJob
from selfalign.training.launch import train_job

FILE = "oasst2_quality_flat/oasst2_evaluation_fine_tuning.jsonl"
TRAIN = Train(learning_rate=3e-5, warmup_ratio=0.1, batch_size=8, max_length=1024)


def draw(
    ranked: Sequence[RankedPrompt], replies: int, fits: Callable[[RankedPrompt], bool], seed: int
) -> tuple[list[RankedPrompt], list[RankedPrompt]]:
    """Draw prompts to judge, and return the others too.

    Prompts are whole, and people preferred one reply of each to another. Prompts that ask the same are one.

    Args:
        ranked: In any order.
        replies: Of the prompts to judge together, at most; prompts that don't fill it up are passed over.
        fits: Says whether all replies of a prompt can be judged.
        seed: Of the draw.
    """
    measured: list[RankedPrompt] = []
    others: list[RankedPrompt] = []
    for prompt in split_ranked(ranked, [], evaluation_fraction=0, limit=None, seed=seed).train:
        left = replies - len(prompt.replies)
        if left >= 0 and left != 1 and fits(prompt):  # no prompt has one reply
            measured.append(prompt)
            replies = left
        else:
            others.append(prompt)
    return measured, others


def judge_examples(
    prompts: Sequence[RankedPrompt], chat: Chat, rubric: str, count: int, max_length: int
) -> list[SFTExample]:
    """Return examples of judging replies by their score line alone, as many of each score as of any other.

    Scores with too few replies give all they have, and the others more. The score is the sixth of [0, 1] that
    the human quality is in, counted from 0.

    Args:
        prompts: With rated replies; the first come first.
        chat: Counts the tokens.
        rubric: Template text.
        count: Examples wanted; there are fewer where too few fit.
        max_length: Tokens of prompt and completion; longer examples are passed over.

    Source: our choice of the score, because all six then occur; five times the quality, rounded down, never
    is 5 on these replies, whose best mean label is 0.92.
    """
    buckets: dict[int, list[SFTExample]] = {score: [] for score in range(len(SCORES))}
    for prompt in prompts:
        for reply in prompt.replies:
            if reply.quality is None:
                continue
            score = min(int(len(SCORES) * reply.quality), len(SCORES) - 1)
            if len(buckets[score]) == count:  # it can give no more
                continue
            asked, line = judge_messages(rubric, prompt.messages, reply.text), f"Score: {score}"
            if len(chat.prompt_ids(asked)) + len(chat.completion_ids(line)) <= max_length:
                buckets[score].append(_example(prompt, reply.reply_id, asked, score, line))
    in_turn = chain.from_iterable(zip_longest(*buckets.values()))
    return [example for example in in_turn if example is not None][:count]


def train_judge(
    start: Path,
    policy: Policy,
    prompts: Sequence[RankedPrompt],
    chat: Chat,
    rubric: str,
    steps: int,
    to: Path,
) -> tuple[Path, dict[str, Any]]:
    """Train a model to judge into the directory `to`; return its own directory and how it went.

    Args:
        start: The model directory to start from.
        policy: Device and precision.
        prompts: With rated replies.
        chat: Of that model.
        rubric: Name of a rubric.
        steps: Of `TRAIN.batch_size` examples each, at most.
        to: An empty directory.
    """
    count = steps * TRAIN.batch_size
    examples = judge_examples(prompts, chat, load_rubric(rubric), count, TRAIN.max_length)
    write_rows(to / "examples.jsonl", examples)
    job = TrainingJob(
        start=start,
        policy=policy,
        settings=TRAIN,
        data=(to / "examples.jsonl",),
        learning_rate=TRAIN.learning_rate,
        seed=0,
    )
    clock = perf_counter()
    figures = train_job(job, Work("eft/train", to, "train", EventLog(to / "events.jsonl")))
    return to / "model", {
        "seconds": perf_counter() - clock,
        "scores": score_counts(examples),
        **figures,
    }


def _example(
    prompt: RankedPrompt, reply_id: str, asked: tuple[Message, ...], score: int, line: str
) -> SFTExample:
    return SFTExample(
        example_id=content_id(reply_id, line),
        prompt_id=prompt.prompt_id,
        messages=asked,
        completion=line,
        kind="eft",
        score=score,
        reply_id=reply_id,
        source=prompt.source,
    )
