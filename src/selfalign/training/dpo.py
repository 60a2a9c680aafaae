"""Direct preference optimisation against stored reference log-probabilities."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfalign.config import DPO
from selfalign.models.chat import Chat
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence, micro_batches
from selfalign.records import PreferencePair, Record
from selfalign.training.losses import (
    PairLogps,
    PreferenceTerms,
    ipo_loss,
    length_normalised_loss,
    length_regularised_loss,
    sft_term,
    sigmoid_loss,
)
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
    def sequences(self) -> tuple[TokenSequence, TokenSequence]:
        """Return both sides, chosen first."""
        return self.chosen, self.rejected


def tokenize_pairs(
    pairs: Iterable[PreferencePair], chat: Chat, max_length: int
) -> tuple[list[PairTokens], int]:
    """Return the token ids of the pairs that fit on both sides, and how many did not."""
    fitting, skipped = [], 0
    for pair in pairs:
        prompt = tuple(chat.prompt_ids(pair.messages))
        chosen, rejected = (
            TokenSequence(prompt, tuple(chat.completion_ids(text))) for text in (pair.chosen, pair.rejected)
        )
        if max(len(chosen), len(rejected)) <= max_length:
            fitting.append(PairTokens(pair.pair_id, chosen, rejected, pair.weight))
        else:
            skipped += 1
    return fitting, skipped


def reference_logps(
    model: CompletionLogps, pairs: Sequence[PairTokens], token_budget: int, autocast: torch.dtype
) -> Iterator[ReferenceLogps]:
    """Yield the reference log-probabilities of the pairs, in any order."""
    model.eval()
    for batch in micro_batches(pairs, lambda pair: pair.sequences, token_budget):
        with model.inference(autocast):
            logps = model([sequence for pair in batch for sequence in pair.sequences]).tolist()
        for pair, chosen, rejected in zip(batch, logps[::2], logps[1::2], strict=True):
            yield ReferenceLogps(pair_id=pair.pair_id, chosen=chosen, rejected=rejected)


def dpo_objective(reference: Mapping[str, ReferenceLogps], settings: DPO) -> Objective[PairTokens]:
    """Return the objective: mean over a step's pairs of weight times loss.

    Its metrics are named as in TRL: `rewards/chosen`, `rewards/rejected`, `rewards/margins`,
    `rewards/accuracies` (a tie is no success), `logps/chosen`, `logps/rejected`; each a mean over pairs.
    """

    def loss(logps: Tensor, batch: Sequence[PairTokens]) -> tuple[Tensor, dict[str, float]]:
        known = [reference[pair.pair_id] for pair in batch]
        pairs = PairLogps(
            policy_chosen=logps[::2],
            policy_rejected=logps[1::2],
            reference_chosen=logps.new_tensor([row.chosen for row in known]),
            reference_rejected=logps.new_tensor([row.rejected for row in known]),
            chosen_tokens=logps.new_tensor([len(pair.chosen.completion) for pair in batch]),
            rejected_tokens=logps.new_tensor([len(pair.rejected.completion) for pair in batch]),
        )
        terms = _terms(pairs, settings)
        losses = terms.losses
        if settings.sft_weight:
            losses = losses + settings.sft_weight * sft_term(pairs)
        margins = terms.rewards_chosen - terms.rewards_rejected
        sums = {
            "rewards/chosen": terms.rewards_chosen,
            "rewards/rejected": terms.rewards_rejected,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": pairs.policy_chosen,
            "logps/rejected": pairs.policy_rejected,
        }
        weights = logps.new_tensor([pair.weight for pair in batch])
        return (weights * losses).sum(), {name: v.detach().sum().item() for name, v in sums.items()}

    return Objective(sequences=lambda pair: pair.sequences, weight=lambda _: 1.0, loss=loss)


def _terms(pairs: PairLogps, settings: DPO) -> PreferenceTerms:
    beta, smoothing = settings.beta, settings.label_smoothing
    match settings.loss:
        case "sigmoid":
            return sigmoid_loss(pairs, beta=beta, label_smoothing=smoothing)
        case "ipo":
            return ipo_loss(pairs, beta=beta)
        case "length_normalised":
            return length_normalised_loss(pairs, beta=beta, label_smoothing=smoothing)
        case "length_regularised":
            return length_regularised_loss(
                pairs, beta=beta, length_penalty=settings.length_penalty, label_smoothing=smoothing
            )
