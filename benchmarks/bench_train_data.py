"""What the training benchmark trains on: token ids of real pairs, and of judge examples made from them.

Every draw depends on its seed and on the rows alone, so both sides of a comparison make the same one.
"""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from selfalign.data.readers import read_ranked
from selfalign.judging import judge_messages, load_rubric
from selfalign.models.chat import Chat
from selfalign.models.packing import TokenSequence
from selfalign.records import RankedPrompt
from selfalign.training.dpo import PairTokens

DEMO = "preference_demo/dpo_en_demo.json"
HH = "hh_rlhf/harmless-base/test.jsonl.gz"
FILES = (DEMO, HH)

MAX_LENGTH = 1024
"""Where TRL cuts by default; nothing longer is drawn, so that both sides train on whole sequences."""

JUDGMENTS = (
    "The answer keeps to the request and gives the user what was asked for, in an order that is easy to "
    "follow. It treats most of the points, though one of them in a single clause, and its ending says again "
    "what the beginning said.\nScore: 4",
    "Most of this is about the request and some of it can be used. Two things that the user asked for are "
    "left out, and one statement stands there without a reason or an example, so the user would have to ask "
    "again before going on.\nScore: 2",
    "Everything that was asked is answered, in plain words and without anything beside the point. The steps "
    "build on each other, each comes with its reason, and a user could act on them right away.\nScore: 5",
)
"""The judgments of every candidate, as long as the rubric asks for; only their lengths matter here."""


def draw_pairs(data: Path, chat: Chat, count: int, max_length: int, seed: int) -> list[PairTokens]:
    """Draw preference pairs, the first half from one file and the rest from the other."""
    return [
        pair
        for file, size in ((DEMO, count - count // 2), (HH, count // 2))
        for pair in islice(_pairs(_shuffled(data / file, seed), chat, max_length), size)
    ]


def draw_chosen(data: Path, chat: Chat, count: int, max_length: int, seed: int) -> list[TokenSequence]:
    """Draw prompts with their chosen completions: those of the pairs that the same seed gives."""
    return [pair.chosen for pair in draw_pairs(data, chat, count, max_length, seed)]


def draw_judge_examples(
    data: Path, chat: Chat, count: int, max_length: int, seed: int
) -> list[TokenSequence]:
    """Draw judge examples: 12 a prompt, three judgments of each of four candidates, in this order.

    A prompt's candidates are its own two answers and those of the next prompt, which a judge meets too:
    answers to something else. The last prompt drawn may have fewer than 12.
    """
    return list(islice(_judge_examples(_shuffled(data / DEMO, seed), chat, max_length), count))


def _shuffled(file: Path, seed: int) -> list[RankedPrompt]:
    prompts, _ = read_ranked(str(file), language=None)
    prompts.sort(key=lambda prompt: prompt.prompt_id)
    random.Random(seed).shuffle(prompts)  # noqa: S311 -- no secret
    return prompts


def _pairs(prompts: list[RankedPrompt], chat: Chat, max_length: int) -> Iterator[PairTokens]:
    for prompt in prompts:
        ids = tuple(chat.prompt_ids(prompt.messages))
        chosen, rejected = (
            TokenSequence(ids, tuple(chat.completion_ids(reply.text))) for reply in prompt.replies
        )
        if max(len(chosen), len(rejected)) <= max_length:
            yield PairTokens(prompt.prompt_id, chosen, rejected, weight=1.0)


def _judge_examples(prompts: list[RankedPrompt], chat: Chat, max_length: int) -> Iterator[TokenSequence]:
    rubric = load_rubric("additive")
    judgments = [tuple(chat.completion_ids(text)) for text in JUDGMENTS]
    for prompt, other in zip(prompts[::2], prompts[1::2], strict=False):
        candidates = [
            tuple(chat.prompt_ids(judge_messages(rubric, prompt.messages, reply.text)))
            for reply in (*prompt.replies, *other.replies)
        ]
        if max(map(len, candidates)) + max(map(len, judgments)) <= max_length:
            yield from (
                TokenSequence(candidate, judgment) for candidate in candidates for judgment in judgments
            )
