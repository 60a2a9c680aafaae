"""A thin trainer: seeded batches, exact normalisation, checkpoints, early stopping, and no NaN."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from selfalign.config import Train
from selfalign.errors import TrainingError
from selfalign.seeds import derive_seed
from selfalign.training.batch import micro_batches
from selfalign.training.checkpoints import (
    load_checkpoint,
    restore_weights,
    save_checkpoint,
    save_weights,
    trainable,
)

T = TypeVar("T")
LogRow = dict[str, Any]


@dataclass(frozen=True)
class Objective(Generic[T]):
    """What is trained for: how long an item is, how much it weighs, and its loss."""

    rows: int
    """Token sequences an item makes."""
    length: Callable[[T], int]
    """Tokens of an item's longest sequence."""
    tokens: Callable[[T], int]
    """Tokens of all its sequences."""
    weight: Callable[[T], float]
    """Share of the step's normaliser: a step's loss is the sum of losses over the sum of weights."""
    loss: Callable[[Any, list[T]], tuple[Tensor, dict[str, float]]]
    """Model and micro-batch to the sum of losses, and sums over items of the metrics."""


@dataclass
class _Progress:
    """Where training stands; all of it is in every checkpoint."""

    step: int
    log: list[LogRow]
    best_loss: float | None = None
    looks_since_best: int = 0


def train(
    model: Any,
    items: Sequence[T],
    objective: Objective[T],
    settings: Train,
    *,
    learning_rate: float,
    autocast: torch.dtype,
    seed: int,
    scratch: Path,
    on_step: Callable[[int, int], None],
    on_warning: Callable[[str], None],
) -> list[LogRow]:
    """Train the model in place and return its log, a row a step.

    How a step is cut into micro-batches does not change its gradient, dropout masks aside. A training that
    was killed goes on from its newest whole checkpoint and, on the same machine, ends where it would have
    ended.

    Args:
        model: Its parameters that require gradients are trained; they are float32.
        items: Examples or pairs; their order matters through the seeded shuffle.
        objective: The loss.
        settings: Hyperparameters.
        learning_rate: Peak rate.
        autocast: Type of matrix products.
        seed: Of the order, the validation split and dropout.
        scratch: Directory of the checkpoints.
        on_step: Told (steps done, steps in all).
        on_warning: Told what the user should know.

    Raises:
        TrainingError: A loss or a gradient is not finite.
    """
    training, held_out = _split(items, settings, seed)
    batches = _batches(len(training), settings, seed)
    if settings.max_steps is not None:
        batches = batches[: settings.max_steps]
    optimizer = _optimizer(model, settings)
    state, warnings = load_checkpoint(scratch, model, optimizer)
    for warning in warnings:
        on_warning(warning)
    progress = _Progress(**{k: v for k, v in state.items() if k != "sha256"}) if state else _Progress(0, [])
    precision = torch.autocast(
        next(model.parameters()).device.type, dtype=autocast, enabled=autocast != torch.float32
    )
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    on_step(progress.step, len(batches))
    while progress.step < len(batches):
        rate = learning_rate_at(progress.step, len(batches), learning_rate, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = [training[i] for i in batches[progress.step]]
        torch.manual_seed(derive_seed(seed, "dropout", progress.step))
        row = _step(model, batch, objective, settings, optimizer, precision, progress.step)
        progress.log.append({**row, "learning_rate": rate})
        progress.step += 1
        on_step(progress.step, len(batches))
        look = settings.validation and held_out and progress.step % settings.validation.every == 0
        if look and _stop(model, held_out, objective, settings, precision, progress, scratch):
            break
        if progress.step % settings.checkpoint_every == 0 and progress.step < len(batches):
            save_checkpoint(scratch, model, optimizer, vars(progress))
    if progress.best_loss is not None:
        restore_weights(scratch / "best.safetensors", model)
    return progress.log


def learning_rate_at(step: int, steps: int, peak: float, settings: Train) -> float:
    """Return the rate of a step, counted from 0: linear warm-up to the peak, then the schedule."""
    warmup = math.ceil(settings.warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return settings.min_learning_rate + (peak - settings.min_learning_rate) * falling[settings.schedule]


def _step(
    model: Any,
    batch: list[T],
    objective: Objective[T],
    settings: Train,
    optimizer: torch.optim.Optimizer,
    precision: torch.autocast,
    step: int,
) -> LogRow:
    model.train()
    total = sum(objective.weight(item) for item in batch)
    loss_sum = 0.0
    metrics: Counter[str] = Counter()
    for micro in micro_batches(batch, objective.length, objective.rows, settings.micro_batch_tokens):
        with precision:
            loss, sums = objective.loss(model, micro)
        if not torch.isfinite(loss):
            raise _not_finite("loss", step)
        (loss / total).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.item()
        metrics.update(sums)
    norm = torch.nn.utils.clip_grad_norm_(trainable(model).values(), settings.gradient_clip)
    if not torch.isfinite(norm):
        raise _not_finite("gradient", step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "step": step + 1,
        "loss": loss_sum / total,
        **{name: value / len(batch) for name, value in metrics.items()},
        "grad_norm": norm.item(),
        "tokens": sum(objective.tokens(item) for item in batch),
    }


def _stop(
    model: Any,
    held_out: list[T],
    objective: Objective[T],
    settings: Train,
    precision: torch.autocast,
    progress: _Progress,
    scratch: Path,
) -> bool:
    """Measure the validation loss, keep the best weights, and return whether to stop."""
    assert settings.validation is not None  # noqa: S101 -- the caller looks only where there is one
    model.eval()
    loss_sum = 0.0
    with torch.no_grad(), precision:
        for micro in micro_batches(held_out, objective.length, objective.rows, settings.micro_batch_tokens):
            loss_sum += objective.loss(model, micro)[0].item()
    loss = loss_sum / sum(objective.weight(item) for item in held_out)
    if not math.isfinite(loss):
        raise _not_finite("validation loss", progress.step)
    progress.log[-1]["validation_loss"] = loss
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.looks_since_best = loss, 0
        save_weights(scratch / "best.safetensors", model)
    else:
        progress.looks_since_best += 1
    return progress.looks_since_best >= settings.validation.patience


def _not_finite(what: str, step: int) -> TrainingError:
    return TrainingError(
        f"the {what} is not finite at step {step + 1}; no model was saved. Lower the learning rate, or set "
        "policy.precision=float32, then run again"
    )


def _split(items: Sequence[T], settings: Train, seed: int) -> tuple[list[T], list[T]]:
    if settings.validation is None:
        return list(items), []
    order = np.random.default_rng(derive_seed(seed, "validation")).permutation(len(items))
    size = min(len(items) - 1, math.ceil(settings.validation.fraction * len(items)))
    held_out = set(order[:size].tolist())
    return (
        [item for i, item in enumerate(items) if i not in held_out],
        [item for i, item in enumerate(items) if i in held_out],
    )


def _batches(size: int, settings: Train, seed: int) -> list[list[int]]:
    """Return the items of every step of all epochs, each epoch in an order of its own."""
    return [
        order[start : start + settings.batch_size]
        for epoch in range(settings.epochs)
        for order in [np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(size).tolist()]
        for start in range(0, size, settings.batch_size)
    ]


def _optimizer(model: Any, settings: Train) -> torch.optim.AdamW:
    parameters = trainable(model).values()
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)
