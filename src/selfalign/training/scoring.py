"""Log-probabilities of completions under a model that does not train."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from selfalign.config import Policy
from selfalign.models.load import compute_dtype, load_chat, load_model, pick_device
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence, micro_batches
from selfalign.records import Messages


class Score(NamedTuple):
    """What a model gives a completion."""

    logp: float
    """Summed log-probability of its tokens."""
    tokens: int

    @property
    def mean(self) -> float:
        """Return the mean log-probability a token."""
        return self.logp / self.tokens


class Scorer:
    """A loaded model that scores completions."""

    def __init__(self, model: Path, policy: Policy, token_budget: int) -> None:
        """Load the model in float32; products are in the computing type, as in training.

        Args:
            model: A model directory.
            policy: Device and precision.
            token_budget: Tokens of a forward pass, at most.
        """
        self._chat = load_chat(model, policy)
        self._model = CompletionLogps(load_model(model, policy, torch.float32)).eval()
        self._autocast = compute_dtype(policy, pick_device(policy))
        self._token_budget = token_budget

    def score(self, texts: Sequence[tuple[Messages, str]]) -> list[Score]:
        """Return the log-probability of each completion after its prompt, end of turn included."""
        sequences = [
            TokenSequence(tuple(self._chat.prompt_ids(messages)), tuple(self._chat.completion_ids(text)))
            for messages, text in texts
        ]
        scores: dict[int, Score] = {}
        for batch in micro_batches(range(len(sequences)), lambda i: (sequences[i],), self._token_budget):
            with self._model.inference(self._autocast):
                logps = self._model([sequences[i] for i in batch]).tolist()
            scores |= {i: Score(p, len(sequences[i].completion)) for i, p in zip(batch, logps, strict=True)}
        return [scores[i] for i in range(len(sequences))]
