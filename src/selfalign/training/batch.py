"""Token sequences, padded batches, and the log-probabilities of their completions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from selfalign.training.losses import token_logps

T = TypeVar("T")


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and its completion as token ids; the completion ends with the end of turn."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of tokens of both."""
        return len(self.prompt) + len(self.completion)


def completion_logps(model: Any, sequences: Sequence[TokenSequence]) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the completions' tokens under the model.

    Rows are padded on the left, so that completions end together and only their positions reach the
    vocabulary head.

    Returns:
        Log-probabilities `(B, T)` in float32 with T the longest completion, right-aligned, 0 where a row
        has no target; and the mask of targets `(B, T)`.
    """
    device = next(model.parameters()).device
    width = max(map(len, sequences))
    longest = max(len(sequence.completion) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    real = torch.zeros(len(sequences), width, dtype=torch.long)
    target = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence.prompt + sequence.completion)
        real[row, width - len(sequence) :] = 1
        target[row, longest - len(sequence.completion) :] = True
    ids, real, target = ids.to(device), real.to(device), target.to(device)
    logits = model(
        input_ids=ids,
        attention_mask=real,
        position_ids=(real.cumsum(-1) - 1).clamp(min=0),
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits
    logps = token_logps(logits[:, :-1], ids[:, -longest:])
    return logps.masked_fill(~target, 0.0), target


def micro_batches(
    items: Sequence[T], length: Callable[[T], int], rows: int, token_budget: int
) -> Iterator[list[T]]:
    """Split items into batches whose padded tokens stay within a budget, similar lengths together.

    Args:
        items: What to split.
        length: Longest sequence of an item, in tokens.
        rows: Sequences an item makes.
        token_budget: Rows times the longest length of a batch stays within it; a single item may exceed it.
    """
    batch: list[T] = []
    for item in sorted(items, key=length, reverse=True):
        if batch and (len(batch) + 1) * rows * length(batch[0]) > token_budget:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
