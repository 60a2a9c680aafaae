"""Supervised fine-tuning on completions only."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from selfalign.models.chat import Chat
from selfalign.records import SFTExample
from selfalign.training.batch import TokenSequence, completion_logps
from selfalign.training.trainer import Objective


def tokenize_examples(
    examples: Iterable[SFTExample], chat: Chat, max_length: int
) -> tuple[list[TokenSequence], int]:
    """Return the token sequences of the examples that fit, and how many did not."""
    sequences = [
        TokenSequence(tuple(chat.prompt_ids(e.messages)), tuple(chat.completion_ids(e.completion)))
        for e in examples
    ]
    fitting = [sequence for sequence in sequences if len(sequence) <= max_length]
    return fitting, len(sequences) - len(fitting)


def sft_objective() -> Objective[TokenSequence]:
    """Return the objective: mean negative log-likelihood of the completions' tokens in a step."""
    return Objective(
        rows=1,
        length=len,
        tokens=len,
        weight=lambda sequence: len(sequence.completion),
        loss=_loss,
    )


def _loss(model: Any, batch: Sequence[TokenSequence]) -> tuple[Tensor, dict[str, float]]:
    logps, _ = completion_logps(model, batch)
    return -logps.sum(), {}
