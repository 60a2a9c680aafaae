"""The records that pass between stages: one JSON object a line, joined by key.

Every record has an id and the ids of its parents. Ids of prompts and replies are derived from
content, so that the same prompt has the same id in every run; nothing ever parses an id. What is
missing is `None` and comes with a reason.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "prompt_too_long"]


class Record(BaseModel):
    """Base of all records: frozen, strict about unknown fields, and without NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


Messages = tuple[Message, ...]


def content_id(*parts: str) -> str:
    """Return 16 hexadecimal digits that depend on nothing but the parts and their order."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


def prompt_id_of(messages: Sequence[Message]) -> str:
    """Return the id of a prompt: a hash of its roles and contents."""
    return content_id(*(part for message in messages for part in (message.role, message.content)))


class Prompt(Record):
    """Messages that end with a user turn and wait for a completion."""

    prompt_id: str
    messages: Messages
    source: str
    """Where it came from: a file and row, or the generation that made it."""

    @classmethod
    def of(cls, messages: Sequence[Message], source: str) -> "Prompt":
        """Make a prompt whose id is derived from its messages."""
        return cls(prompt_id=prompt_id_of(messages), messages=tuple(messages), source=source)


class RankedReply(Record):
    """A human-ranked or human-rated reply to a prompt."""

    reply_id: str
    text: str
    rank: int
    """Place among the replies of the prompt, 0 the best; equal places are a human tie."""
    quality: float | None = None
    """Human quality label in [0, 1], where the source has one."""


class RankedPrompt(Record):
    """A prompt with two or more replies in human order."""

    prompt_id: str
    messages: Messages
    replies: tuple[RankedReply, ...]
    source: str


class SFTExample(Record):
    """A prompt and the completion to learn."""

    example_id: str
    prompt_id: str
    messages: Messages
    completion: str
    kind: Literal["ift", "eft"]
    score: int | None = None
    """The score that an EFT target states."""
    reply_id: str | None = None
    """The reply that an EFT target judges."""
    source: str


class JudgedReply(Record):
    """A human-ranked reply as a judge is asked about it."""

    reply_id: str
    messages: Messages
    """The judge prompt."""
    rank: int
    """Place among the replies of the prompt, 0 the best; equal places are a human tie."""
    score: int
    """The human score, on the rubric's scale."""
    length: int
    """Characters of the reply."""


class RankingExample(Record):
    """A prompt's replies whose human order a judge is to learn."""

    prompt_id: str
    replies: tuple[JudgedReply, ...]
    source: str


class Completion(Record):
    """One sampled answer of the policy to a prompt: a candidate."""

    completion_id: str
    prompt_id: str
    sample: int
    """Number of the sample, 0 to N - 1."""
    text: str | None
    """`None` where nothing could be generated; `finish_reason` says why."""
    finish_reason: FinishReason
    num_tokens: int
    """New tokens, the end-of-turn token not counted."""


class Judgment(Record):
    """One judge call on one completion or human reply."""

    judgment_id: str
    completion_id: str
    """The completion, or the human reply, that was judged."""
    prompt_id: str
    sample: int
    """Number of the judgment, 0 to K - 1."""
    score: float | None
    """In the rubric's range; `None` where the judgment is unscored."""
    reason: str | None
    """Why it is unscored; `None` where it has a score."""
    text: str | None
    """The judge's whole reply: rationale and score line."""
    attempts: int
    """Judge calls made, retries included."""
    mass: float | None = None
    """Probability that the judge goes on with a score at all; `None` where the score was sampled."""

    @model_validator(mode="after")
    def _score_or_reason(self) -> "Judgment":
        if (self.score is None) == (self.reason is None):
            raise ValueError("a judgment has either a score or a reason for having none")
        return self


class Contrast(Record):
    """A prompt and the principle pair drawn for it."""

    contrast_id: str
    prompt_id: str
    messages: Messages
    language: str
    """Language of the principles."""
    group: str
    positive: str
    """System message that asks for better behaviour."""
    negative: str
    """System message that asks for worse."""


class PreferencePair(Record):
    """Two completions of one prompt, the first preferred."""

    pair_id: str
    prompt_id: str
    messages: Messages
    chosen_id: str
    rejected_id: str
    chosen: str
    rejected: str
    reward_chosen: float | None
    """The judge's reward; `None` for a pair that no judge made, as in RLCD."""
    reward_rejected: float | None
    margin: float | None
    """reward_chosen - reward_rejected."""
    chosen_tokens: int
    rejected_tokens: int
    weight: float = 1.0
    """Factor of this pair's loss."""
    contrast_id: str | None = None
    """The contrast that an RLCD pair comes from."""
