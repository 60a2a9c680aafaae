import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfalign.models.chat import Chat
from selfalign.records import Message, PreferencePair
from selfalign.training.dpo import dpo_objective, reference_logps, tokenize_pairs
from selfalign.training.losses import dpo_loss, token_logps

WORDS = ("amber", "bridge", "cedar", "dolphin", "ember", "falcon", "granite", "harbor", "ivory", "jungle")


def pair_of(name: str, messages: tuple[Message, ...], chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(
        pair_id=name,
        prompt_id=name,
        messages=messages,
        chosen_id=f"{name} c",
        rejected_id=f"{name} r",
        chosen=chosen,
        rejected=rejected,
        reward_chosen=4.0,
        reward_rejected=1.0,
        margin=3.0,
        chosen_tokens=1,
        rejected_tokens=1,
    )


def make_pairs(count: int) -> list[PreferencePair]:
    """Pairs of unequal lengths; the second has a system turn and an answer before."""
    draw = np.random.default_rng(0)

    def some(most: int) -> str:
        return " ".join(draw.choice(WORDS, draw.integers(1, most + 1)))

    pairs = []
    for number in range(count):
        messages: tuple[Message, ...] = (Message(role="user", content=some(8)),)
        if number == 1:
            before = [Message(role=role, content=some(4)) for role in ("system", "user", "assistant")]
            messages = (*before, *messages)
        pairs.append(pair_of(f"pair {number}", messages, some(10), some(3)))
    return pairs


def nudged(model: Any, size: float = 0.02) -> Any:
    """A copy with every weight moved a little, so that policy and reference differ."""
    moved = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=noise))
    return moved


def test_token_logps_are_the_gathered_log_softmax():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 3, 6], [2, 2, 5]])
    expected = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(token_logps(logits, targets), expected)


def test_token_logps_are_float32_and_finite_for_large_half_precision_logits():
    logits = torch.tensor([[120.0, 120.0, -120.0]], dtype=torch.bfloat16)
    logps = token_logps(logits.expand(2, 3), torch.tensor([0, 2]))
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, torch.tensor([-math.log(2), -240 - math.log(2)]), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 0.3868710), (0.1, 0.4618710)])
def test_dpo_loss_by_hand(smoothing: float, expected: float):
    """Equation 7 with beta 1/2.

    reward of chosen   = 1/2 (-1 + 1.5) = 0.25
    reward of rejected = 1/2 (-2 + 1)   = -0.5
    margin             = 0.75
    -log σ(0.75)  = log(1 + exp(-0.75)) = 0.3868710
    -log σ(-0.75) = 0.75 + 0.3868710    = 1.1368710
    smoothing 0.1: 0.9 * 0.3868710 + 0.1 * 1.1368710 = 0.4618710
    """
    terms = dpo_loss(
        *(torch.tensor([value]) for value in (-1.0, -2.0, -1.5, -1.0)), beta=0.5, label_smoothing=smoothing
    )
    assert terms.rewards_chosen.item() == pytest.approx(0.25)
    assert terms.rewards_rejected.item() == pytest.approx(-0.5)
    assert terms.losses.item() == pytest.approx(expected, abs=1e-6)


def test_dpo_loss_is_log_2_where_policy_and_reference_agree():
    chosen, rejected = torch.tensor([-3.0, -40.0]), torch.tensor([-9.0, -2.0])
    terms = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1, label_smoothing=0.2)
    torch.testing.assert_close(terms.losses, torch.full((2,), math.log(2)))


def test_dpo_gradient_by_hand():
    """The derivative by the chosen log-probability is -beta σ(-margin), by the rejected one its opposite.

    margin = 0.1 ((-5 + 4) - (-2 + 3)) = -0.2, σ(0.2) = 0.5498340, so 0.0549834.
    """
    chosen, rejected = torch.tensor([-5.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    dpo_loss(chosen, rejected, torch.tensor([-4.0]), torch.tensor([-3.0]), beta=0.1).losses.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.0549834, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.0549834, abs=1e-6)


def test_smoothed_dpo_loss_is_least_where_the_preference_has_the_labels_certainty():
    """With swap probability e the loss is least at σ(margin) = 1 - e, that is margin = log((1 - e) / e)."""
    best = math.log(0.8 / 0.2)
    chosen = torch.tensor([best], requires_grad=True)
    dpo_loss(
        chosen, torch.zeros(1), torch.zeros(1), torch.zeros(1), beta=1.0, label_smoothing=0.2
    ).losses.backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(0, abs=1e-6)


def test_dpo_loss_of_a_hopeless_pair_stays_finite():
    huge = torch.tensor([1e5])
    terms = dpo_loss(-huge, huge, huge, -huge, beta=1.0, label_smoothing=0.1)
    assert torch.isfinite(terms.losses).all()


def test_an_untrained_policy_has_no_margin(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    items, _ = tokenize_pairs(make_pairs(3), Chat(AutoTokenizer.from_pretrained(tiny_model)), 1024)
    known = {row.pair_id: row for row in reference_logps(model, items, 4096, torch.float32)}
    loss, sums = dpo_objective(known, 0.1, 0.0).loss(model, items)
    assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-5)
    assert sums["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert sums["logps/chosen"] == pytest.approx(sum(row.chosen for row in known.values()), rel=1e-6)
    assert sums["logps/rejected"] == pytest.approx(sum(row.rejected for row in known.values()), rel=1e-6)


def test_an_exact_tie_is_no_success(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    chat = Chat(AutoTokenizer.from_pretrained(tiny_model))
    items, _ = tokenize_pairs(
        [pair_of("tie", (Message(role="user", content="x"),), "same", "same")], chat, 64
    )
    known = {row.pair_id: row for row in reference_logps(model, items, 4096, torch.float32)}
    known["tie"] = known["tie"].model_copy(update={"rejected": known["tie"].chosen})
    assert dpo_objective(known, 0.1, 0.0).loss(model, items)[1]["rewards/accuracies"] == 0.0


def trl_trainer(
    pairs: list[PreferencePair], model: Any, reference: Any, tokenizer: Any, beta: float, directory: Path
) -> Any:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "prompt": [message.model_dump() for message in pair.messages],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]
    settings = trl.DPOConfig(
        output_dir=str(directory),
        beta=beta,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        max_length=None,
    )
    return trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def gradients(loss: Any, model: Any) -> Mapping[str, Any]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_gradients_and_metrics_are_those_of_trl(tiny_model: Path, tmp_path: Path, smoothing: float):
    """TRL's sigmoid loss knows no label smoothing; by definition it is a mixture of both label orders.

    TRL learns the newline that chatml writes after a turn. The end of turn is where we stop learning,
    so the last newline is taken out of the template here, and the ids are compared first.
    """
    beta, pairs = 0.3, make_pairs(4)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        r"'<|im_end|>\n'", r"'<|im_end|>' + ('\n' if not loop.last or add_generation_prompt else '')"
    )
    reference = AutoModelForCausalLM.from_pretrained(tiny_model)
    ours = nudged(reference)
    theirs = copy.deepcopy(ours)
    items, _ = tokenize_pairs(pairs, Chat(tokenizer), 1024)

    trainer = trl_trainer(pairs, theirs, copy.deepcopy(reference), tokenizer, beta, tmp_path)
    rows = list(trainer.train_dataset)
    for item, row in zip(items, rows, strict=True):
        assert list(item.chosen.prompt) == row["prompt_ids"]
        assert list(item.chosen.completion) == row["chosen_ids"]
        assert list(item.rejected.completion) == row["rejected_ids"]
    theirs.train()
    their_loss = trainer.compute_loss(theirs, trainer.data_collator(rows))
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    if smoothing:
        swapped = [{**r, "chosen_ids": r["rejected_ids"], "rejected_ids": r["chosen_ids"]} for r in rows]
        swapped_loss = trainer.compute_loss(theirs, trainer.data_collator(swapped))
        their_loss = (1 - smoothing) * their_loss + smoothing * swapped_loss

    known = {row.pair_id: row for row in reference_logps(reference, items, 300, torch.float32)}
    total, sums = dpo_objective(known, beta, smoothing).loss(ours.train(), items)
    our_loss = total / len(items)

    torch.testing.assert_close(our_loss, their_loss, rtol=1e-5, atol=0)
    their_gradients = gradients(their_loss, theirs)
    for name, gradient in gradients(our_loss, ours).items():
        error = (gradient - their_gradients[name]).norm() / their_gradients[name].norm()
        assert error < 1e-3, name
    for name, value in sums.items():
        assert value / len(items) == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), name
