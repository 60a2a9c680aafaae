"""Log-probabilities of completions under a model that does not train."""

from collections.abc import Sequence
from pathlib import Path

import torch

from selfalign.config import Policy
from selfalign.models.load import compute_dtype, load_chat, load_model, pick_device
from selfalign.records import Messages
from selfalign.training.batch import TokenSequence, completion_logps


class Scorer:
    """A loaded model that scores completions."""

    def __init__(self, model: Path, policy: Policy) -> None:
        """Load the model in float32; products are in the computing type, as in training."""
        device = pick_device(policy)
        self._chat = load_chat(model, policy)
        self._model = load_model(model, policy, torch.float32).eval()
        self._device = device
        self._autocast = compute_dtype(policy, device)

    def mean_logps(self, texts: Sequence[tuple[Messages, str]]) -> list[float]:
        """Return the mean log-probability a token of each completion, its end of turn included."""
        sequences = [
            TokenSequence(tuple(self._chat.prompt_ids(messages)), tuple(self._chat.completion_ids(text)))
            for messages, text in texts
        ]
        enabled = self._autocast != torch.float32
        with torch.inference_mode(), torch.autocast(self._device.type, self._autocast, enabled):
            logps, targets = completion_logps(self._model, sequences)
        return (logps.sum(-1) / targets.sum(-1)).tolist()
