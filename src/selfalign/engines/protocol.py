"""What every engine does: requests in, generations out, in any order, joined by key."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from selfalign.config import Sampling
from selfalign.records import FinishReason, Messages


@dataclass(frozen=True)
class Form:
    """What a reply has to be like, in the words of each kind of server that can hold a model to it."""

    pattern: str
    """Regular expression of the whole reply."""
    schema: Mapping[str, Any]
    """JSON schema of a reply that is JSON in its place."""


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to draw."""

    key: str
    """Names the request; unique within a call."""
    messages: Messages
    seed: int
    """Shapes the draw: same model, messages, sampling and seed give the same text."""
    reply_start: str = ""
    """Words that the assistant's turn already begins with; the generation goes on from them."""
    form: Form | None = None
    """What the reply is held to where the engine has a way; another engine draws it freely."""


@dataclass(frozen=True)
class Generation:
    """One completion drawn."""

    key: str
    text: str | None
    """Without the reply's given start; `None` where the prompt leaves no room in the context."""
    finish_reason: FinishReason
    """`stop` at the end of the turn, `length` at the token limit, or `prompt_too_long`."""
    num_tokens: int
    """New tokens, the end of turn not counted."""


@dataclass(frozen=True)
class ChoiceRequest:
    """The question how likely the assistant is to go on with each of several words."""

    key: str
    """Names the request; unique within a call."""
    messages: Messages
    reply_start: str
    """What the assistant's turn begins with, without a space at its end; the choice comes next."""
    choices: tuple[str, ...]
    """Words such as `0` to `5`; each counts with and without a space before it."""


@dataclass(frozen=True)
class Choice:
    """How likely each choice is."""

    key: str
    probabilities: tuple[float, ...] | None
    """Of each choice among all that the model could say, so that they add up to 1 or less; `None` where the
    prompt leaves no room in the context."""


class Engine(Protocol):
    """A model that generates."""

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generation]:
        """Yield one generation for each request, each as soon as it is finished, in any order.

        The order and the number of the requests do not shape the draws, beyond rounding in arithmetic
        that is done in batches.
        """
        ...

    def choose(self, requests: Sequence[ChoiceRequest]) -> Iterator[Choice]:
        """Yield the probabilities of the choices of each request, in any order; nothing is drawn."""
        ...
