import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)

from selfalign.config import DPO
from selfalign.models.chat import Chat
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence
from selfalign.models.source import EMBEDDED, find_model
from selfalign.models.token_logps import token_logps
from selfalign.records import Message, PreferencePair
from selfalign.training.dpo import (
    PairTokens,
    ReferenceLogps,
    dpo_objective,
    reference_logps,
    tokenize_pairs,
)
from selfalign.training.losses import (
    PairLogps,
    PreferenceTerms,
    ipo_loss,
    length_normalised_loss,
    length_regularised_loss,
    sigmoid_loss,
)
from selfalign.training.trainer import Objective

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
ARCHITECTURES = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "gemma2": partial(Gemma2Config, head_dim=8, sliding_window=16),
    "mistral": partial(MistralConfig, sliding_window=24),
    "phi3": Phi3Config,
}
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


def gathered(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]


def logits_and_targets(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 40 tokens, scaled so that some probabilities are near 0 and some near 1."""
    draw = torch.Generator().manual_seed(0)
    return 5 * torch.randn(rows, 40, generator=draw), torch.randint(40, (rows,), generator=draw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 32, 33, 100])
def test_token_logps_are_the_gathered_log_softmax_with_its_gradient(rows: int, dtype: torch.dtype):
    logits, targets = logits_and_targets(rows)
    ours, theirs = (logits.to(dtype).requires_grad_() for _ in range(2))
    found, expected = token_logps(ours, targets), gathered(theirs, targets)
    torch.testing.assert_close(found, expected.float())
    scales = torch.linspace(-2, 3, rows)
    (scales * found).sum().backward()
    (scales * expected).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_token_logps_of_bfloat16_logits_are_exact_and_only_their_gradient_is_rounded():
    logits, targets = logits_and_targets(70)
    ours = logits.bfloat16().requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    found, expected = token_logps(ours, targets), gathered(theirs, targets)
    torch.testing.assert_close(found, expected.float())
    found.sum().backward()
    expected.sum().backward()
    assert ours.grad is not None
    assert ours.grad.dtype == torch.bfloat16
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=2**-8, atol=1e-6)


def test_token_logps_leave_the_logits_as_they_were():
    logits, targets = logits_and_targets(40)
    before = logits.clone()
    token_logps(logits.requires_grad_(), targets).sum().backward()
    assert torch.equal(logits, before)


def test_token_logps_are_float32_and_finite_for_large_half_precision_logits():
    logits = torch.tensor([[120.0, 120.0, -120.0]], dtype=torch.bfloat16)
    logps = token_logps(logits.expand(2, 3), torch.tensor([0, 2]))
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, torch.tensor([-math.log(2), -240 - math.log(2)]), rtol=0, atol=2e-5)


def objective_of(model: CompletionLogps, items: list[PairTokens], settings: DPO) -> Objective[PairTokens]:
    """The objective with the model as the reference."""
    known = {row.pair_id: row for row in reference_logps(model, items, 300, torch.float32)}
    return dpo_objective(known, settings)


def loss_of(model: CompletionLogps, items: list[PairTokens], objective: Objective[PairTokens]) -> Any:
    return objective.loss(model([side for item in items for side in objective.sequences(item)]), items)


def test_reference_logps_are_those_of_each_pair_by_name_whatever_the_budget(tiny_model: Path):
    model = CompletionLogps(AutoModelForCausalLM.from_pretrained(tiny_model))
    items, _ = tokenize_pairs(make_pairs(5), Chat(AutoTokenizer.from_pretrained(tiny_model)), 1024)
    with torch.no_grad():
        expected = {item.pair_id: model(item.sequences).tolist() for item in items}
    for budget in (1, 300, 4096):
        rows = list(reference_logps(model, items, budget, torch.float32))
        assert len(rows) == 5
        found = {row.pair_id: [row.chosen, row.rejected] for row in rows}
        assert found == {name: pytest.approx(logps, rel=1e-5) for name, logps in expected.items()}


def test_the_reference_is_taken_without_dropout(fresh: Any, sequences_of: Any):
    one, other = sequences_of(2)
    item = PairTokens("pair", one, TokenSequence(one.prompt, other.completion), 1.0)
    plain, dropped = (
        list(reference_logps(m.train(), [item], 64, torch.float32)) for m in (fresh(), fresh(0.5))
    )
    assert dropped[0].chosen == pytest.approx(plain[0].chosen, rel=1e-5)


def test_an_untrained_policy_has_no_margin(tiny_model: Path):
    model = CompletionLogps(AutoModelForCausalLM.from_pretrained(tiny_model))
    items, _ = tokenize_pairs(make_pairs(3), Chat(AutoTokenizer.from_pretrained(tiny_model)), 1024)
    known = {row.pair_id: row for row in reference_logps(model, items, 4096, torch.float32)}
    loss, sums = loss_of(model, items, dpo_objective(known, DPO(beta=0.1)))
    assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-5)
    assert sums["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert sums["logps/chosen"] == pytest.approx(sum(row.chosen for row in known.values()), rel=1e-6)
    assert sums["logps/rejected"] == pytest.approx(sum(row.rejected for row in known.values()), rel=1e-6)


def test_an_exact_tie_is_no_success(tiny_model: Path):
    model = CompletionLogps(AutoModelForCausalLM.from_pretrained(tiny_model))
    chat = Chat(AutoTokenizer.from_pretrained(tiny_model))
    items, _ = tokenize_pairs(
        [pair_of("tie", (Message(role="user", content="x"),), "same", "same")], chat, 64
    )
    known = {row.pair_id: row for row in reference_logps(model, items, 4096, torch.float32)}
    known["tie"] = known["tie"].model_copy(update={"rejected": known["tie"].chosen})
    assert loss_of(model, items, dpo_objective(known, DPO()))[1]["rewards/accuracies"] == 0.0


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        (DPO(beta=0.3, label_smoothing=0.1), partial(sigmoid_loss, beta=0.3, label_smoothing=0.1)),
        (DPO(loss="ipo", beta=0.3), partial(ipo_loss, beta=0.3)),
        (
            DPO(loss="length_normalised", beta=5, label_smoothing=0.1),
            partial(length_normalised_loss, beta=5, label_smoothing=0.1),
        ),
        (
            DPO(loss="length_regularised", beta=0.3, length_penalty=0.02, label_smoothing=0.1),
            partial(length_regularised_loss, beta=0.3, length_penalty=0.02, label_smoothing=0.1),
        ),
    ],
    ids=["sigmoid", "ipo", "length_normalised", "length_regularised"],
)
@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
def test_a_recipe_gets_the_loss_it_names_with_its_numbers(
    settings: DPO, loss: Callable[[PairLogps], PreferenceTerms], sft_weight: float
):
    """Two pairs by hand: completions of 2 and 1, then 1 and 3 tokens; weights 1 and 1/2."""
    sides = [TokenSequence((1,), (2,) * size) for size in (2, 1, 1, 3)]
    items = [PairTokens("a", *sides[:2], weight=1.0), PairTokens("b", *sides[2:], weight=0.5)]
    known = {
        "a": ReferenceLogps(pair_id="a", chosen=-5.0, rejected=-3.0),
        "b": ReferenceLogps(pair_id="b", chosen=-2.5, rejected=-9.0),
    }
    objective = dpo_objective(known, settings.model_copy(update={"sft_weight": sft_weight}))
    found, sums = objective.loss(torch.tensor([-4.0, -6.0, -2.0, -8.0]), items)
    columns = ([-4.0, -2.0], [-6.0, -8.0], [-5.0, -2.5], [-3.0, -9.0], [2.0, 1.0], [1.0, 3.0])
    pairs = PairLogps(*map(torch.tensor, columns))
    terms = loss(pairs)
    first, second = (terms.losses + sft_weight * torch.tensor([4 / 2, 2 / 1])).tolist()
    assert found.item() == pytest.approx(first + 0.5 * second)
    assert sums == {
        "rewards/chosen": pytest.approx(terms.rewards_chosen.sum().item()),
        "rewards/rejected": pytest.approx(terms.rewards_rejected.sum().item()),
        "rewards/margins": pytest.approx((terms.rewards_chosen - terms.rewards_rejected).sum().item()),
        "rewards/accuracies": (terms.rewards_chosen > terms.rewards_rejected).sum().item(),
        "logps/chosen": -6.0,
        "logps/rejected": -14.0,
    }
    assert [objective.weight(item) for item in items] == [1.0, 1.0]


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


CHATML_WITHOUT_LAST_NEWLINE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture
def model_of(tiny_model: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A random model of an architecture with the byte tokenizer, or the embedded model."""

    def make(architecture: str) -> Path:
        if architecture == EMBEDDED:
            return find_model(EMBEDDED).materialise()
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = ARCHITECTURES[architecture](**SMALL, **ids, vocab_size=len(tokenizer), bos_token_id=None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


@pytest.mark.parametrize(
    ("architecture", "smoothing"),
    [
        ("llama", 0.1),
        *((name, 0.0) for name in ARCHITECTURES),
        pytest.param(EMBEDDED, 0.0, marks=pytest.mark.slow),
    ],
)
def test_loss_gradients_and_metrics_are_those_of_trl(
    model_of: Any, tmp_path: Path, architecture: str, smoothing: float
):
    """TRL's sigmoid loss knows no label smoothing; by definition it is a mixture of both label orders.

    TRL learns the newline that chatml writes after a turn. The end of turn is where we stop learning,
    so the template here writes none after the last turn, and the ids are compared first.
    """
    beta, pairs, start = 0.3, make_pairs(4), model_of(architecture)
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.chat_template = CHATML_WITHOUT_LAST_NEWLINE
    reference = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    policy = nudged(reference)
    theirs = copy.deepcopy(policy)
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

    objective = objective_of(CompletionLogps(reference), items, DPO(beta=beta, label_smoothing=smoothing))
    ours = CompletionLogps(policy).train()
    assert ours.not_packed is None
    total, sums = loss_of(ours, items, objective)
    our_loss = total / len(items)

    torch.testing.assert_close(our_loss, their_loss, rtol=1e-5, atol=0)
    their_gradients = gradients(their_loss, theirs)
    for name, gradient in gradients(our_loss, ours.model).items():
        error = (gradient - their_gradients[name]).norm() / their_gradients[name].norm()
        assert error < 1e-3, name
    for name, value in sums.items():
        assert value / len(items) == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), name
