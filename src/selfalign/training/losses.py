"""The losses, as pure functions of log-probabilities."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """What the losses need of P preference pairs, all `(P,)` in float32.

    Log-probabilities are natural logarithms, summed over the tokens of a completion.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    """Tokens of the completion, the end of turn included, so at least 1."""
    rejected_tokens: Tensor


@dataclass(frozen=True)
class PreferenceTerms:
    """The loss of each pair and the implicit rewards that it compares, all `(P,)`."""

    losses: Tensor
    rewards_chosen: Tensor
    """Above `rewards_rejected` exactly where the policy prefers the chosen one in the loss's own terms."""
    rewards_rejected: Tensor


def sigmoid_loss(pairs: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> PreferenceTerms:
    """Return the DPO loss: how unlikely the rewards make the preference that was seen.

    loss = -(1 - e) log σ(rc - rr) - e log σ(rr - rc), where r = beta log(π / ρ) is the implicit reward
    of the chosen (rc) or rejected (rr) completion and e the label smoothing.

    Args:
        pairs: The log-probabilities.
        beta: Strength of the pull to the reference, above 0.
        label_smoothing: Probability that the labels of a pair are swapped, in [0, 0.5).

    Source: 2305.18290, equation 7; label smoothing as in conservative DPO (Mitchell, 2023).
    """
    chosen, rejected = _log_ratios(pairs)
    return _logistic(beta * chosen, beta * rejected, label_smoothing)


def ipo_loss(pairs: PairLogps, *, beta: float) -> PreferenceTerms:
    """Return the IPO loss: the squared distance of the log-ratio gap from a fixed goal.

    loss = (h - 1 / (2 beta))², where h = log(π / ρ) of the chosen minus that of the rejected completion,
    each averaged over its own tokens. The implicit reward is beta times that average: the loss is 0 at a
    margin of 1/2, and grows again beyond it.

    Args:
        pairs: The log-probabilities.
        beta: τ of the paper, above 0; the goal of h is 1 / (2 beta) nats a token.

    Source: 2310.12036, equation 17. The paper does not write the average over tokens; TRL takes it as what
        its authors ran. Without it one goal would hold for all lengths, which long completions meet sooner.
    """
    chosen, rejected = _mean_log_ratios(pairs)
    losses = (chosen - rejected - 1 / (2 * beta)) ** 2
    return PreferenceTerms(losses, beta * chosen, beta * rejected)


def length_normalised_loss(pairs: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> PreferenceTerms:
    """Return the DPO loss of rewards per token, which many tokens alone can't make large.

    The loss is that of `sigmoid_loss` with r = beta log(π / ρ) / |y|: each completion's log-ratio is
    averaged over its own |y| tokens.

    Args:
        pairs: The log-probabilities.
        beta: Above 0; larger than for summed log-ratios by about the length of a completion (Tulu 3: 5).
        label_smoothing: As in `sigmoid_loss`.

    Source: 2411.15124, section 5 (length-normalised DPO), after the reward per token of 2405.14734.
    """
    chosen, rejected = _mean_log_ratios(pairs)
    return _logistic(beta * chosen, beta * rejected, label_smoothing)


def length_regularised_loss(
    pairs: PairLogps, *, beta: float, length_penalty: float, label_smoothing: float = 0.0
) -> PreferenceTerms:
    """Return the R-DPO loss: DPO whose policy pays for each token.

    The best policy for a reward of r - a |y| has beta log(π / ρ) = r - a |y| up to a constant of the
    prompt, so the labels, which reward the answer with its length, are explained by
    r = beta log(π / ρ) + a |y|. The loss is that of `sigmoid_loss` with this r as the implicit reward.
    A pair whose chosen completion is the longer one thus needs a smaller log-ratio gap (its length
    explains a part of the preference) and pulls less; one whose chosen completion is shorter pulls more.
    Where policy and reference agree, r already favours the longer completion.

    Args:
        pairs: The log-probabilities.
        beta: As in `sigmoid_loss`.
        length_penalty: a, reward that a token costs, at least 0; at 0 the loss is `sigmoid_loss`.
        label_smoothing: As in `sigmoid_loss`.

    Source: 2403.19159 (R-DPO).
    """
    chosen, rejected = _log_ratios(pairs)
    return _logistic(
        beta * chosen + length_penalty * pairs.chosen_tokens,
        beta * rejected + length_penalty * pairs.rejected_tokens,
        label_smoothing,
    )


def sft_term(pairs: PairLogps) -> Tensor:
    """Return the negative log-likelihood per token of each chosen completion, `(P,)`.

    term = -log π(chosen) / |chosen|, to be added to a preference loss with a weight. Each pair counts the
    same, however long.

    Source: 2404.19733, equation 1 (the NLL term).
    """
    return -pairs.policy_chosen / pairs.chosen_tokens


def _log_ratios(pairs: PairLogps) -> tuple[Tensor, Tensor]:
    return pairs.policy_chosen - pairs.reference_chosen, pairs.policy_rejected - pairs.reference_rejected


def _mean_log_ratios(pairs: PairLogps) -> tuple[Tensor, Tensor]:
    chosen, rejected = _log_ratios(pairs)
    return chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens


def _logistic(rewards_chosen: Tensor, rewards_rejected: Tensor, label_smoothing: float) -> PreferenceTerms:
    margins = rewards_chosen - rewards_rejected
    losses = -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)
    return PreferenceTerms(losses, rewards_chosen, rewards_rejected)
