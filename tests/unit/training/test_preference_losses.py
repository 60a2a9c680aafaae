import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfalign.models.token_logps import token_logps
from selfalign.training.losses import (
    PairLogps,
    PreferenceTerms,
    ipo_loss,
    length_normalised_loss,
    length_regularised_loss,
    sft_term,
    sigmoid_loss,
)

Loss = Callable[[PairLogps], PreferenceTerms]

LOSSES: Mapping[str, Loss] = {
    "sigmoid": partial(sigmoid_loss, beta=0.5),
    "ipo": partial(ipo_loss, beta=0.5),
    "length_normalised": partial(length_normalised_loss, beta=2.0),
    "length_regularised": partial(length_regularised_loss, beta=0.5, length_penalty=0.25),
}
"""The losses at the settings of the hand maths below."""

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
logistic_losses = pytest.mark.parametrize(
    "loss", [loss for name, loss in LOSSES.items() if name != "ipo"], ids=[n for n in LOSSES if n != "ipo"]
)


def pairs_of(*columns: float | list[float], dtype: torch.dtype = torch.float64) -> PairLogps:
    """Columns in the order of the fields: policy, reference, tokens, each chosen before rejected."""
    return PairLogps(*(torch.tensor(column, dtype=dtype).reshape(-1) for column in columns))


def one_pair() -> PairLogps:
    """Log-ratio of chosen -12 + 13 = 1 over 4 tokens, of rejected -9 + 7 = -2 over 2 tokens."""
    return pairs_of(-12, -9, -13, -7, 4, 2)


def swapped(pairs: PairLogps) -> PairLogps:
    return PairLogps(
        pairs.policy_rejected,
        pairs.policy_chosen,
        pairs.reference_rejected,
        pairs.reference_chosen,
        pairs.rejected_tokens,
        pairs.chosen_tokens,
    )


@st.composite
def some_pairs(draw: st.DrawFn) -> PairLogps:
    logps, tokens = st.floats(-300, 0), st.integers(1, 400)
    rows = draw(st.lists(st.tuples(logps, logps, logps, logps, tokens, tokens), min_size=1, max_size=4))
    return pairs_of(*(list(column) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize(
    ("name", "chosen", "rejected", "expected"),
    [
        ("sigmoid", 0.5, -1.0, 0.2014133),
        ("ipo", 0.125, -0.5, 0.0625),
        ("length_normalised", 0.5, -2.0, 0.0788897),
        ("length_regularised", 1.5, -0.5, 0.1269280),
    ],
)
def test_losses_and_rewards_by_hand(name: str, chosen: float, rejected: float, expected: float):
    """Log-ratios 1 and -2, over 4 and 2 tokens.

    sigmoid, beta 1/2: rewards 0.5 and -1, margin 1.5, log(1 + exp(-1.5)) = 0.2014133
    ipo, beta 1/2: averages 1/4 and -1, h = 1.25, goal 1 / (2 * 1/2) = 1, 0.25² = 0.0625;
        rewards are half the averages, 0.125 and -0.5
    length-normalised, beta 2: rewards 2/4 and -4/2, margin 2.5, log(1 + exp(-2.5)) = 0.0788897
    length-regularised, beta 1/2, 1/4 a token: rewards 0.5 + 1 and -1 + 0.5, margin 2,
        log(1 + exp(-2)) = 0.1269280
    """
    terms = LOSSES[name](one_pair())
    assert terms.rewards_chosen.item() == chosen
    assert terms.rewards_rejected.item() == rejected
    assert terms.losses.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "by_chosen", "by_rejected"),
    [
        ("sigmoid", -0.0912128, 0.0912128),
        ("ipo", 0.125, -0.25),
        ("length_normalised", -0.0379291, 0.0758582),
        ("length_regularised", -0.0596015, 0.0596015),
    ],
)
def test_gradients_by_hand(name: str, by_chosen: float, by_rejected: float):
    """The pair and margins of the test above; derivatives by the policy's summed log-probabilities.

    sigmoid: -+ beta σ(-1.5) = 0.5 * 0.1824255 = 0.0912128
    ipo: +- 2 (h - 1) / |y| = 0.5 / 4 and -0.5 / 2: beyond the goal, so the chosen one is pushed down
    length-normalised: -+ beta σ(-2.5) / |y| = 2 * 0.0758582 / 4 and / 2
    length-regularised: -+ beta σ(-2) = 0.5 * 0.1192029 = 0.0596015
    """
    pairs = one_pair()
    pairs.policy_chosen.requires_grad_()
    pairs.policy_rejected.requires_grad_()
    LOSSES[name](pairs).losses.sum().backward()
    assert pairs.policy_chosen.grad is not None
    assert pairs.policy_rejected.grad is not None
    assert pairs.policy_chosen.grad.item() == pytest.approx(by_chosen, abs=1e-7)
    assert pairs.policy_rejected.grad.item() == pytest.approx(by_rejected, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sigmoid", 0.3514133), ("length_normalised", 0.3288897), ("length_regularised", 0.3269280)],
)
def test_label_smoothing_by_hand(name: str, expected: float):
    """As -log σ(-m) = m - log σ(m), smoothing e adds e times the margin to the loss.

    e = 0.1: 0.2014133 + 0.15, 0.0788897 + 0.25, 0.1269280 + 0.2
    """
    terms = partial(LOSSES[name], label_smoothing=0.1)(one_pair())
    assert terms.losses.item() == pytest.approx(expected, abs=1e-7)


def test_sft_term_by_hand():
    """-(-12) / 4 = 3; its derivative by the chosen log-probability is -1 / 4."""
    pairs = one_pair()
    pairs.policy_chosen.requires_grad_()
    term = sft_term(pairs)
    term.sum().backward()
    assert term.tolist() == [3.0]
    assert pairs.policy_chosen.grad is not None
    assert pairs.policy_chosen.grad.tolist() == [-0.25]


@every_loss
@given(pairs=some_pairs())
def test_the_label_order_with_the_lower_loss_is_the_one_the_rewards_prefer(loss: Loss, pairs: PairLogps):
    terms, other = loss(pairs), loss(swapped(pairs))
    margins = terms.rewards_chosen - terms.rewards_rejected
    clear = margins.abs() > 1e-6
    torch.testing.assert_close((other.losses > terms.losses)[clear], (margins > 0)[clear])
    torch.testing.assert_close(other.rewards_chosen, terms.rewards_rejected, rtol=0, atol=0)
    torch.testing.assert_close(other.rewards_rejected, terms.rewards_chosen, rtol=0, atol=0)


@logistic_losses
@given(pairs=some_pairs(), smoothing=st.floats(0, 0.49))
def test_label_smoothing_mixes_both_label_orders(loss: Loss, pairs: PairLogps, smoothing: float):
    mixture = (1 - smoothing) * loss(pairs).losses + smoothing * loss(swapped(pairs)).losses
    torch.testing.assert_close(partial(loss, label_smoothing=smoothing)(pairs).losses, mixture)


def test_smoothed_loss_is_least_where_the_preference_has_the_certainty_of_the_labels():
    """With swap probability e the loss is least at σ(margin) = 1 - e; for 1/5 the margin is log 4."""
    pairs = pairs_of(math.log(4), 0, 0, 0, 1, 1)
    pairs.policy_chosen.requires_grad_()
    sigmoid_loss(pairs, beta=1.0, label_smoothing=0.2).losses.backward()
    assert pairs.policy_chosen.grad is not None
    assert pairs.policy_chosen.grad.item() == pytest.approx(0, abs=1e-12)


@every_loss
@given(pairs=some_pairs())
def test_the_loss_of_a_pair_does_not_depend_on_its_batch(loss: Loss, pairs: PairLogps):
    together = loss(pairs)
    for place in range(len(pairs.policy_chosen)):
        alone = loss(PairLogps(*(getattr(pairs, field.name)[place : place + 1] for field in fields(pairs))))
        for field in fields(alone):
            torch.testing.assert_close(getattr(alone, field.name)[0], getattr(together, field.name)[place])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sigmoid", math.log(2)), ("ipo", 1.0), ("length_normalised", math.log(2))],
)
def test_a_policy_that_is_the_reference_has_no_reward_and_the_loss_of_ignorance(name: str, expected: float):
    """-log σ(0) = log 2; for ipo the squared goal (1 / (2 * 1/2))² = 1."""
    terms = LOSSES[name](pairs_of([-3, -40], [-9, -2], [-3, -40], [-9, -2], [2, 30], [5, 1]))
    assert terms.rewards_chosen.tolist() == terms.rewards_rejected.tolist() == [0, 0]
    assert terms.losses.tolist() == pytest.approx([expected, expected])


@every_loss
@pytest.mark.parametrize("size", [1e5, -1e5])
def test_loss_and_gradient_of_huge_log_ratios_are_finite_in_float32(loss: Loss, size: float):
    pairs = pairs_of(size, -size, 0, 0, 1, 4000, dtype=torch.float32)
    pairs.policy_chosen.requires_grad_()
    terms = loss(pairs)
    terms.losses.sum().backward()
    assert pairs.policy_chosen.grad is not None
    assert terms.losses.dtype == torch.float32
    assert torch.isfinite(terms.losses).all()
    assert torch.isfinite(pairs.policy_chosen.grad).all()


def test_losses_per_token_can_prefer_what_summed_log_ratios_do_not():
    """Chosen 4 nats over 8 tokens, 1/2 each; rejected 2 nats over 2 tokens, 1 each."""
    pairs = pairs_of(-6, -3, -10, -5, 8, 2)
    prefers = {
        name: (terms.rewards_chosen > terms.rewards_rejected).item()
        for name, terms in ((name, loss(pairs)) for name, loss in LOSSES.items())
    }
    assert prefers == {
        "sigmoid": True,
        "ipo": False,
        "length_normalised": False,
        "length_regularised": True,
    }


def test_ipo_loss_is_zero_at_its_goal_and_grows_on_both_sides():
    """beta 1/4: the goal is 2 nats a token; chosen 5 tokens with 10 nats reach it, 1/2 is the margin.

    5 and 15 nats are one nat a token away on either side: loss 1.
    """
    terms = ipo_loss(pairs_of([-5, 0, 5], [-7] * 3, [-10] * 3, [-7] * 3, [5] * 3, [3] * 3), beta=0.25)
    assert terms.losses.tolist() == [1, 0, 1]
    assert terms.rewards_chosen.tolist() == [0.25, 0.5, 0.75]


@given(pairs=some_pairs(), tokens=st.integers(1, 400))
def test_length_normalising_equal_lengths_divides_beta_by_the_length(pairs: PairLogps, tokens: int):
    same = torch.full_like(pairs.chosen_tokens, tokens)
    terms = length_normalised_loss(replace(pairs, chosen_tokens=same, rejected_tokens=same), beta=3.0)
    expected = sigmoid_loss(pairs, beta=3.0 / tokens)
    torch.testing.assert_close(terms.losses, expected.losses)
    torch.testing.assert_close(terms.rewards_chosen, expected.rewards_chosen)


@given(pairs=some_pairs(), smoothing=st.floats(0, 0.49))
def test_a_length_penalty_of_zero_is_the_sigmoid_loss(pairs: PairLogps, smoothing: float):
    terms = length_regularised_loss(pairs, beta=0.1, length_penalty=0.0, label_smoothing=smoothing)
    expected = sigmoid_loss(pairs, beta=0.1, label_smoothing=smoothing)
    for field in fields(terms):
        assert torch.equal(getattr(terms, field.name), getattr(expected, field.name))


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_the_implicit_reward_of_the_best_penalised_policy_is_the_true_reward(penalty: float):
    """Over three completions, π = ρ exp((r - a |y|) / beta) / Z maximises E[r - a |y|] - beta KL(π, ρ).

    Its implicit rewards must differ by the differences of r: this fixes the sign of the length term.
    """
    beta = 0.4
    reward = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    tokens = torch.tensor([5.0, 40.0, 12.0], dtype=torch.float64)
    reference = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    policy = torch.log_softmax(reference + (reward - penalty * tokens) / beta, 0)
    c, r = torch.tensor([1, 2, 1]), torch.tensor([0, 0, 2])
    terms = length_regularised_loss(
        PairLogps(policy[c], policy[r], reference[c], reference[r], tokens[c], tokens[r]),
        beta=beta,
        length_penalty=penalty,
    )
    torch.testing.assert_close(terms.rewards_chosen - terms.rewards_rejected, reward[c] - reward[r])


@given(pairs=some_pairs())
def test_length_regularised_loss_is_dpo_against_a_reference_that_favours_short_answers(pairs: PairLogps):
    """beta KL(π, ρ) + a E|y| is beta KL(π, ρ'), ρ' proportional to ρ exp(-a |y| / beta); here 0.02 / 0.1."""
    shorter = replace(
        pairs,
        reference_chosen=pairs.reference_chosen - 0.2 * pairs.chosen_tokens,
        reference_rejected=pairs.reference_rejected - 0.2 * pairs.rejected_tokens,
    )
    terms = length_regularised_loss(pairs, beta=0.1, length_penalty=0.02)
    torch.testing.assert_close(terms.losses, sigmoid_loss(shorter, beta=0.1).losses)


def test_length_regularised_loss_pulls_more_where_the_chosen_one_is_shorter():
    """Policy is reference; 10 against 30 tokens and the reverse, 0.05 each: margins -1 and 1.

    The derivatives by the chosen log-probability are -0.1 σ(1) and -0.1 σ(-1).
    """
    pairs = pairs_of([-20, -20], [-20, -20], [-20, -20], [-20, -20], [10, 30], [30, 10])
    pairs.policy_chosen.requires_grad_()
    length_regularised_loss(pairs, beta=0.1, length_penalty=0.05).losses.sum().backward()
    assert pairs.policy_chosen.grad is not None
    assert pairs.policy_chosen.grad.tolist() == pytest.approx([-0.0731059, -0.0268941], abs=1e-7)


BETA = 0.3


@pytest.fixture
def trl_case(tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    """Make a TRL trainer for a loss, and return its loss of rows, the rows, and our pairs of rows."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    policy = copy.deepcopy(reference)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    texts = [("ask", "a long answer", "no"), ("a longer question", "x", "many more words"), ("q", "ab", "ba")]
    dataset = datasets.Dataset.from_list(
        [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in texts]
    )

    def make(**settings: Any) -> tuple[Callable[..., Tensor], list[Any], Callable[..., PairLogps]]:
        trainer = trl.DPOTrainer(
            model=copy.deepcopy(policy),
            ref_model=copy.deepcopy(reference),
            args=trl.DPOConfig(
                output_dir=str(tmp_path),
                beta=BETA,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                max_length=None,
                **settings,
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
        )

        def theirs(rows: list[Any]) -> Tensor:
            return trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows)).detach()

        @torch.no_grad()
        def pairs(rows: list[Any]) -> PairLogps:
            batch = trainer.data_collator(rows)
            mask = batch["completion_mask"][:, 1:]

            def sums(model: Any) -> tuple[Tensor, Tensor]:
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                logps = (token_logps(logits[:, :-1], batch["input_ids"][:, 1:]) * mask).sum(1)
                return logps[: len(rows)], logps[len(rows) :]

            tokens = mask.sum(1).float()
            return PairLogps(*sums(policy), *sums(reference), tokens[: len(rows)], tokens[len(rows) :])

        return theirs, list(trainer.train_dataset), pairs

    return make


@pytest.mark.parametrize(
    ("loss_type", "loss"),
    [("sigmoid", sigmoid_loss), ("ipo", ipo_loss), ("sigmoid_norm", length_normalised_loss)],
)
def test_losses_are_those_of_trl(trl_case: Callable[..., Any], loss_type: str, loss: Callable[..., Any]):
    theirs, rows, pairs = trl_case(loss_type=[loss_type])
    losses = loss(pairs(rows), beta=BETA).losses
    assert (losses - losses[0]).abs().max() > 1e-2  # so that the pairs tell the losses apart
    torch.testing.assert_close(losses.mean(), theirs(rows), rtol=1e-5, atol=0)
    for ours, row in zip(losses, rows, strict=True):
        torch.testing.assert_close(ours, theirs([row]), rtol=1e-5, atol=0)


def test_label_smoothing_is_that_of_trl(trl_case: Callable[..., Any]):
    """TRL smooths no paired sigmoid loss, but its sorted one, which for a single pair has nothing to sort."""
    theirs, rows, pairs = trl_case(loss_type=["aot"], label_smoothing=0.1)
    for row in rows:
        ours = sigmoid_loss(pairs([row]), beta=BETA, label_smoothing=0.1).losses
        torch.testing.assert_close(ours[0], theirs([row]), rtol=1e-5, atol=0)


def test_sft_term_added_to_the_sigmoid_loss_is_iterative_rpo_in_trl(trl_case: Callable[..., Any]):
    """In a batch TRL averages the term over tokens, not pairs, so that equality holds pair by pair."""
    theirs, rows, pairs = trl_case(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.7])
    for row in rows:
        pair = pairs([row])
        ours = sigmoid_loss(pair, beta=BETA).losses + 0.7 * sft_term(pair)
        torch.testing.assert_close(ours[0], theirs([row]), rtol=1e-5, atol=0)
