"""Supervised fine-tuning on completions only."""

from collections.abc import Iterable

from selfalign.models.chat import Chat
from selfalign.models.packing import TokenSequence
from selfalign.records import SFTExample
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
        sequences=lambda sequence: (sequence,),
        weight=lambda sequence: len(sequence.completion),
        loss=lambda logps, _: (-logps.sum(), {}),
    )
