"""Direct preference optimisation against stored reference log-probabilities."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfalign.models.chat import Chat
from selfalign.records import PreferencePair, Record
from selfalign.training.batch import TokenSequence, completion_logps, micro_batches
from selfalign.training.losses import dpo_loss
from selfalign.training.trainer import Objective


class ReferenceLogps(Record):
    """Summed log-probabilities of a pair's completions under the reference."""

    pair_id: str
    chosen: float
    rejected: float


@dataclass(frozen=True)
class PairTokens:
    """A preference pair as token ids."""

    pair_id: str
    chosen: TokenSequence
    rejected: TokenSequence
    weight: float

    @property
    def length(self) -> int:
        """Return the number of tokens of the longer side."""
        return max(len(self.chosen), len(self.rejected))


def tokenize_pairs(
    pairs: Iterable[PreferencePair], chat: Chat, max_length: int
) -> tuple[list[PairTokens], int]:
    """Return the token ids of the pairs that fit on both sides, and how many did not."""
    fitting, skipped = [], 0
    for pair in pairs:
        prompt = tuple(chat.prompt_ids(pair.messages))
        tokens = PairTokens(
            pair.pair_id,
            TokenSequence(prompt, tuple(chat.completion_ids(pair.chosen))),
            TokenSequence(prompt, tuple(chat.completion_ids(pair.rejected))),
            pair.weight,
        )
        if tokens.length <= max_length:
            fitting.append(tokens)
        else:
            skipped += 1
    return fitting, skipped


def reference_logps(
    model: Any, pairs: Sequence[PairTokens], token_budget: int, autocast: torch.dtype
) -> Iterator[ReferenceLogps]:
    """Yield the reference log-probabilities of the pairs, in any order."""
    device = next(model.parameters()).device
    model.eval()
    for batch in micro_batches(pairs, lambda pair: pair.length, 2, token_budget):
        with torch.inference_mode(), torch.autocast(device.type, autocast, autocast != torch.float32):
            chosen, rejected = _pair_logps(model, batch)
        for pair, c, r in zip(batch, chosen.tolist(), rejected.tolist(), strict=True):
            yield ReferenceLogps(pair_id=pair.pair_id, chosen=c, rejected=r)


def dpo_objective(
    reference: Mapping[str, ReferenceLogps], beta: float, label_smoothing: float
) -> Objective[PairTokens]:
    """Return the objective: mean over a step's pairs of weight times DPO loss.

    Its metrics are named as in TRL: `rewards/chosen`, `rewards/rejected`, `rewards/margins`,
    `rewards/accuracies` (a tie is no success), `logps/chosen`, `logps/rejected`; each a mean over pairs.
    """

    def loss(model: Any, batch: Sequence[PairTokens]) -> tuple[Tensor, dict[str, float]]:
        chosen, rejected = _pair_logps(model, batch)
        known = [reference[pair.pair_id] for pair in batch]
        terms = dpo_loss(
            chosen,
            rejected,
            chosen.new_tensor([row.chosen for row in known]),
            rejected.new_tensor([row.rejected for row in known]),
            beta=beta,
            label_smoothing=label_smoothing,
        )
        margins = terms.rewards_chosen - terms.rewards_rejected
        sums = {
            "rewards/chosen": terms.rewards_chosen,
            "rewards/rejected": terms.rewards_rejected,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        weights = chosen.new_tensor([pair.weight for pair in batch])
        return (weights * terms.losses).sum(), {name: v.detach().sum().item() for name, v in sums.items()}

    return Objective(
        rows=2,
        length=lambda pair: pair.length,
        tokens=lambda pair: len(pair.chosen) + len(pair.rejected),
        weight=lambda _: 1.0,
        loss=loss,
    )


def _pair_logps(model: Any, pairs: Sequence[PairTokens]) -> tuple[Tensor, Tensor]:
    """Return the summed completion log-probabilities of both sides, each `(P,)`."""
    sequences = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    sums = completion_logps(model, sequences)[0].sum(-1)
    return sums[: len(pairs)], sums[len(pairs) :]
