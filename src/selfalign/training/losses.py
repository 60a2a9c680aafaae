"""The losses, as pure functions of log-probabilities."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target token, in float32.

    Args:
        logits: `(..., V)`, any float type.
        targets: `(...)`, token ids.

    Returns:
        `(...)`, natural logarithms.
    """
    logits = logits.float()
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


@dataclass(frozen=True)
class DPOTerms:
    """The loss of each pair and what it is made of, all `(P,)`."""

    losses: Tensor
    rewards_chosen: Tensor
    """Implicit reward: beta times the policy's log-ratio to the reference."""
    rewards_rejected: Tensor


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> DPOTerms:
    """Return the sigmoid DPO loss of each pair.

    loss = -(1 - e) log σ(m) - e log σ(-m), where m = beta ((πc - ρc) - (πr - ρr)) and e is the label
    smoothing: the probability that the labels of a pair are swapped.

    Args:
        policy_chosen: Summed log-probability of the chosen completion under the policy, `(P,)`.
        policy_rejected: The same of the rejected completion.
        reference_chosen: The same under the reference.
        reference_rejected: The same under the reference.
        beta: Strength of the pull to the reference, above 0.
        label_smoothing: In [0, 0.5).

    Source: 2305.18290, equation 7; label smoothing as in conservative DPO (Mitchell, 2023).
    """
    rewards_chosen = beta * (policy_chosen - reference_chosen)
    rewards_rejected = beta * (policy_rejected - reference_rejected)
    margins = rewards_chosen - rewards_rejected
    losses = -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)
    return DPOTerms(losses, rewards_chosen, rewards_rejected)
