import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from selfalign.config import DPO, Train, Validation
from selfalign.errors import TrainingError
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence, packed_tokens
from selfalign.training.dpo import PairTokens, dpo_objective, reference_logps
from selfalign.training.sft import sft_objective
from selfalign.training.trainer import LogRow, Objective, learning_rate_at

SFT = sft_objective()


@pytest.fixture
def pairs_of(sequences_of: Any) -> Callable[..., list[PairTokens]]:
    def make(count: int, weight: Callable[[int], float] = lambda _: 1.0) -> list[PairTokens]:
        sequences = sequences_of(2 * count)
        return [
            PairTokens(f"pair {i}", chosen, TokenSequence(chosen.prompt, rejected.completion), weight(i))
            for i, (chosen, rejected) in enumerate(zip(sequences[:count], sequences[count:], strict=True))
        ]

    return make


def dpo_of(model: CompletionLogps, pairs: list[PairTokens]) -> Objective[PairTokens]:
    known = {row.pair_id: row for row in reference_logps(model, pairs, 4096, torch.float32)}
    return dpo_objective(known, DPO(beta=0.1))


# Steps


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_micro_batches_do_not_change_the_result(
    fresh: Any, run: Any, sequences_of: Any, pairs_of: Any, weights: Any, tmp_path: Path, kind: str
):
    results, computed = [], []
    for budget in (1, 100_000):
        model = fresh()
        items = sequences_of(6) if kind == "sft" else pairs_of(6, lambda i: 0.5 + i)
        objective = SFT if kind == "sft" else dpo_of(model, items)
        settings = Train(learning_rate=1e-4, batch_size=6, epochs=3, micro_batch_tokens=budget)
        results.append((run(model, items, tmp_path / str(budget), settings, objective), weights(model)))
    (alone, weights_alone), (together, weights_together) = results
    torch.testing.assert_close(weights_alone, weights_together, rtol=0, atol=1e-6)
    for one, other in zip(alone, together, strict=True):
        computed.append((one.pop("computed_tokens"), other.pop("computed_tokens")))
        for row in (one, other):
            row.pop("rewards/accuracies", None)  # untrained pairs tie, so rounding decides
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    assert all(apart >= packed for apart, packed in computed)


def test_the_loss_is_the_mean_over_the_completion_tokens_of_a_step(
    fresh: Any, run: Any, sequences_of: Any, tmp_path: Path
):
    model, items = fresh(), sequences_of(5)
    with torch.no_grad():
        expected = -model(items).sum().item() / sum(len(item.completion) for item in items)
    log = run(model, items, tmp_path, Train(batch_size=5, micro_batch_tokens=20))
    assert log[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert log[0]["tokens"] == sum(map(len, items))
    assert log[0]["step"] == 1


def test_tokens_count_what_is_asked_and_computed_tokens_what_packing_leaves(
    fresh: Any, run: Any, pairs_of: Any, tmp_path: Path
):
    """In one row a pair's prompt stands once; micro-batches do not share what their pairs have in common."""
    pair, other = pairs_of(2)
    again = replace(
        other, pair_id="again", chosen=pair.chosen, rejected=TokenSequence(pair.chosen.prompt, (1,))
    )
    model, sides = fresh(), pair.sequences + again.sequences
    objective = dpo_of(model, [pair, again])
    rows = [
        run(model, [pair, again], tmp_path / str(budget), Train(micro_batch_tokens=budget), objective)[0]
        for budget in (1000, 1)
    ]
    assert [row["tokens"] for row in rows] == [sum(map(len, sides))] * 2
    assert rows[0]["computed_tokens"] == packed_tokens(sides)
    assert rows[1]["computed_tokens"] == packed_tokens(pair.sequences) + packed_tokens(again.sequences)
    assert rows[0]["computed_tokens"] < rows[1]["computed_tokens"] < rows[0]["tokens"]


def test_a_pairs_weight_scales_its_loss_and_gradient(fresh: Any, run: Any, pairs_of: Any, tmp_path: Path):
    def first_row(pairs: list[PairTokens], name: str) -> LogRow:
        model = fresh()
        return run(model, pairs, tmp_path / name, Train(batch_size=4), dpo_of(model, pairs))[0]

    (pair, other) = pairs_of(2)
    plain = first_row([pair], "plain")
    half = first_row([replace(pair, weight=0.5)], "half")
    assert half["loss"] == pytest.approx(plain["loss"] / 2)
    assert half["grad_norm"] == pytest.approx(plain["grad_norm"] / 2, rel=1e-5)
    # The normaliser is the number of pairs, so a pair without weight leaves half of twice the other.
    doubled = first_row([replace(pair, weight=2.0), replace(other, weight=0.0)], "doubled")
    assert doubled["loss"] == pytest.approx(plain["loss"])
    assert doubled["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)


def test_an_epoch_shows_every_item_once_in_an_order_of_its_own(
    fresh: Any, run: Any, sequences_of: Any, tmp_path: Path
):
    items, shown = sequences_of(10), []

    def loss(logps: torch.Tensor, batch: Sequence[TokenSequence]) -> Any:
        shown.extend(batch)
        return SFT.loss(logps, batch)

    settings = Train(batch_size=3, micro_batch_tokens=1, epochs=2)
    run(fresh(), items, tmp_path, settings, replace(SFT, loss=loss))
    first, second = shown[:10], shown[10:]
    by_content = sorted(items, key=str)
    assert sorted(first, key=str) == sorted(second, key=str) == by_content
    assert first != second


def test_max_steps_ends_training_and_schedule(fresh: Any, run: Any, sequences_of: Any, tmp_path: Path):
    settings = Train(learning_rate=1e-4, batch_size=1, epochs=5, max_steps=4, schedule="linear")
    seen = []
    log = run(
        fresh(),
        sequences_of(3),
        tmp_path,
        settings,
        on_step=lambda *progress: seen.append(progress),
    )
    assert [row["learning_rate"] for row in log] == pytest.approx([1e-4, 0.75e-4, 0.5e-4, 0.25e-4])
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_seed_decides_the_order(fresh: Any, run: Any, sequences_of: Any, tmp_path: Path):
    def first_losses(name: str, seed: int) -> list[float]:
        settings = Train(batch_size=1)
        log = run(fresh(), sequences_of(6), tmp_path / name, settings, seed=seed)
        return [row["loss"] for row in log]

    assert first_losses("a", 1) == first_losses("b", 1)
    assert first_losses("c", 2) != first_losses("a", 1)


def test_gradient_checkpointing_changes_only_memory(
    fresh: Any, run: Any, sequences_of: Any, weights: Any, tmp_path: Path
):
    def trained(on: bool) -> torch.Tensor:
        model = fresh()
        settings = Train(learning_rate=1e-4, batch_size=3, gradient_checkpointing=on)
        run(model, sequences_of(6), tmp_path / str(on), settings)
        return weights(model)

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=1e-6)


def test_weight_decay_spares_the_norms(fresh: Any, run: Any, sequences_of: Any, tmp_path: Path):
    def trained(decay: float) -> Any:
        model = fresh()
        settings = Train(learning_rate=1e-3, weight_decay=decay, batch_size=4, max_steps=1)
        run(model, sequences_of(4), tmp_path / str(decay), settings)
        return dict(model.named_parameters())

    without, with_decay = trained(0.0), trained(0.5)
    changed = {name for name in without if not torch.equal(without[name], with_decay[name])}
    assert changed == {name for name, parameter in without.items() if parameter.ndim == 2}


# Learning to the end


def test_sft_overfits_a_tiny_batch(fresh: Any, run: Any, sequences_of: Any, tmp_path: Path):
    model, items = fresh(), sequences_of(2)
    log = run(model, items, tmp_path, Train(learning_rate=1e-2, batch_size=2, epochs=40))
    assert log[0]["loss"] > 4
    assert log[-1]["loss"] < 0.5


def test_dpo_learns_to_prefer_the_chosen(fresh: Any, run: Any, pairs_of: Any, tmp_path: Path):
    model, pairs = fresh(), pairs_of(4)
    settings = Train(learning_rate=1e-3, batch_size=4, epochs=15)
    log = run(model, pairs, tmp_path, settings, dpo_of(model, pairs))
    assert log[0]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert log[-1]["rewards/accuracies"] == 1.0
    assert log[-1]["rewards/margins"] > 0.5
    assert log[-1]["rewards/margins"] == pytest.approx(
        log[-1]["rewards/chosen"] - log[-1]["rewards/rejected"], rel=1e-4
    )


# The rate


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
)
def test_rates_are_those_of_transformers_but_never_zero_at_the_start(schedule: Any, theirs: Any):
    """transformers warms up from 0 at step 0; ours is one step ahead, so that no step is idle."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    rate = theirs(optimizer, num_warmup_steps=5, num_training_steps=50).lr_lambdas[0]
    settings = Train(schedule=schedule, warmup_ratio=0.1, learning_rate=3e-5)
    for step in range(50):
        expected = rate(step + 1 if step < 5 else step)
        assert learning_rate_at(step, 50, 3e-5, settings) == pytest.approx(3e-5 * expected)


def test_the_papers_rate_falls_from_peak_to_minimum_by_a_cosine():
    settings = Train(learning_rate=5.5e-6, min_learning_rate=1.1e-6)
    assert learning_rate_at(0, 200, 5.5e-6, settings) == pytest.approx(5.5e-6)
    assert learning_rate_at(100, 200, 5.5e-6, settings) == pytest.approx(3.3e-6)
    assert learning_rate_at(199, 200, 5.5e-6, settings) == pytest.approx(1.1e-6, rel=1e-3)


def test_a_constant_rate_is_constant_after_the_warm_up():
    settings = Train(schedule="constant", warmup_ratio=0.2, min_learning_rate=1e-7)
    rates = [learning_rate_at(step, 10, 1e-5, settings) for step in range(10)]
    assert rates == pytest.approx([0.5e-5] + [1e-5] * 9)


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=st.floats(0, 1),
    steps=st.integers(1, 300),
)
def test_the_rate_rises_to_the_peak_and_never_again(schedule: Any, warmup: float, steps: int):
    settings = Train(schedule=schedule, warmup_ratio=warmup)
    rates = [learning_rate_at(step, steps, 1.0, settings) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert all(rate > 0 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


# What is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(
    fresh: Any, run: Any, sequences_of: Any, weights: Any, tmp_path: Path, value: float
):
    def loss(logps: torch.Tensor, batch: Sequence[TokenSequence]) -> Any:
        calls.append(1)
        return SFT.loss(logps, batch)[0] * (value if len(calls) == 3 else 1.0), {}

    calls: list[int] = []
    model = fresh()
    settings = Train(batch_size=1, checkpoint_every=1)
    with pytest.raises(TrainingError, match="loss is not finite at step 3"):
        run(model, sequences_of(5), tmp_path, settings, replace(SFT, loss=loss))
    assert torch.isfinite(weights(model)).all()


def test_a_gradient_that_is_not_finite_stops_training_before_the_weights_change(
    fresh: Any, run: Any, sequences_of: Any, weights: Any, tmp_path: Path
):
    def loss(logps: torch.Tensor, batch: Sequence[TokenSequence]) -> Any:
        return SFT.loss(logps, batch)[0] + (model.model.lm_head.weight[0] * 0).sqrt().sum(), {}

    model = fresh()
    with pytest.raises(TrainingError, match="gradient is not finite at step 1"):
        run(model, sequences_of(2), tmp_path, Train(), replace(SFT, loss=loss))
    assert torch.equal(weights(model), weights(fresh()))


def test_a_validation_loss_that_is_not_finite_stops_training(
    fresh: Any, run: Any, sequences_of: Any, tmp_path: Path
):
    def loss(logps: torch.Tensor, batch: Sequence[TokenSequence]) -> Any:
        return SFT.loss(logps, batch)[0] * (1.0 if model.training else math.nan), {}

    model = fresh()
    settings = Train(batch_size=1, validation=Validation(fraction=0.5, every=2))
    with pytest.raises(TrainingError, match="validation loss is not finite"):
        run(model, sequences_of(6), tmp_path, settings, replace(SFT, loss=loss))
    assert list(tmp_path.iterdir()) == []


# Early stopping

OVERFITTING = Train(
    learning_rate=5e-3,
    schedule="constant",
    batch_size=4,
    epochs=30,
    validation=Validation(fraction=0.5, every=2, patience=2),
)


def test_early_stopping_keeps_the_weights_of_the_best_look(
    fresh: Any, run: Any, sequences_of: Any, weights: Any, tmp_path: Path
):
    model, after = fresh(), []
    log = run(
        model,
        sequences_of(8),
        tmp_path,
        OVERFITTING,
        on_step=lambda *_: after.append(weights(model).clone()),
    )
    looks = {row["step"]: row["validation_loss"] for row in log if "validation_loss" in row}
    best = min(looks, key=looks.__getitem__)
    assert list(looks) == list(range(2, len(log) + 1, 2))
    assert len(log) == best + 2 * 2 < 30
    assert torch.equal(weights(model), after[best])


def test_held_out_items_are_never_trained_on(fresh: Any, run: Any, sequences_of: Any, tmp_path: Path):
    def loss(logps: torch.Tensor, batch: Sequence[TokenSequence]) -> Any:
        seen[model.training] |= set(batch)
        return SFT.loss(logps, batch)

    model, items = fresh(), sequences_of(10)
    seen: dict[bool, set[TokenSequence]] = {True: set(), False: set()}
    settings = Train(batch_size=2, validation=Validation(fraction=0.25, every=2))
    run(model, items, tmp_path, settings, replace(SFT, loss=loss))
    assert len(seen[False]) == 3
    assert seen[True] | seen[False] == set(items)
    assert not seen[True] & seen[False]


def test_a_single_item_is_trained_on_and_nothing_is_held_out(
    fresh: Any, run: Any, sequences_of: Any, tmp_path: Path
):
    settings = Train(epochs=2, validation=Validation(fraction=0.5, every=1))
    log = run(fresh(), sequences_of(1), tmp_path, settings)
    assert len(log) == 2
    assert "validation_loss" not in log[0]


def test_dropout_acts_on_training_and_not_on_validation(
    fresh: Any, run: Any, sequences_of: Any, tmp_path: Path
):
    settings = Train(
        learning_rate=1e-12, batch_size=4, max_steps=1, validation=Validation(fraction=0.5, every=1)
    )
    plain = run(fresh(), sequences_of(8), tmp_path / "plain", settings)[0]
    dropped = run(fresh(0.2), sequences_of(8), tmp_path / "dropped", settings)[0]
    assert dropped["validation_loss"] == pytest.approx(plain["validation_loss"], rel=1e-6)
    assert abs(dropped["loss"] - plain["loss"]) > 1e-4
