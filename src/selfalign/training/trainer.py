"""A thin trainer: seeded batches, exact normalisation, checkpoints, early stopping, and no NaN."""

import math
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from selfalign.config import Train
from selfalign.errors import TrainingError
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence, micro_batches, packed_tokens
from selfalign.seeds import derive_seed
from selfalign.training.checkpoints import (
    load_checkpoint,
    restore_weights,
    save_checkpoint,
    save_weights,
    trainable,
)
from selfalign.training.group import ALONE, Group, full

T = TypeVar("T")
LogRow = dict[str, Any]


@dataclass(frozen=True)
class Objective(Generic[T]):
    """What is trained for: the sequences of an item, how much it weighs, and its loss."""

    sequences: Callable[[T], tuple[TokenSequence, ...]]
    """Prompts and completions of an item."""
    weight: Callable[[T], float]
    """Share of the step's normaliser: a step's loss is the sum of losses over the sum of weights."""
    loss: Callable[[Tensor, Sequence[T]], tuple[Tensor, dict[str, float]]]
    """Log-probabilities of the completions of all items, item by item, and the items, to the sum of losses
    and the sums over items of the metrics."""


@dataclass
class _Progress:
    """Where training stands; all of it is in every checkpoint."""

    step: int
    log: list[LogRow]
    micro_batch_tokens: int
    """Token budget of a forward pass; halved when memory runs out."""
    best_loss: float | None = None
    looks_since_best: int = 0


@dataclass(frozen=True)
class _Job(Generic[T]):
    """What does not change from step to step."""

    model: CompletionLogps
    objective: Objective[T]
    settings: Train
    rates: list[float]
    """Learning rate of each step."""
    seed: int
    optimizer: torch.optim.Optimizer
    precision: torch.autocast
    group: Group
    on_warning: Callable[[str], None]


def train(
    model: CompletionLogps,
    items: Sequence[T],
    objective: Objective[T],
    settings: Train,
    *,
    learning_rate: float,
    autocast: torch.dtype,
    seed: int,
    scratch: Path,
    on_warning: Callable[[str], None],
    group: Group = ALONE,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
    on_row: Callable[[LogRow], None] = lambda _row: None,
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
        on_warning: Told what the user should know.
        group: The processes that train this model, among which its weights are shared out.
        on_step: Told (steps done, steps in all).
        on_row: Given each new row of the log.

    A termination signal is held back until the step is done and saved.

    Raises:
        TrainingError: A loss or a gradient is not finite, or one item does not fit into memory.
    """
    training, held_out = _split(items, settings, seed)
    batches = _batches(len(training), settings, seed)
    if settings.max_steps is not None:
        batches = batches[: settings.max_steps]
    optimizer = _optimizer(model, settings)
    folder = group.folder(scratch)
    state, warnings = load_checkpoint(folder, model, optimizer, group.least)
    for warning in warnings:
        on_warning(warning)
    if state:
        progress = _Progress(**{key: value for key, value in state.items() if key != "sha256"})
    else:
        progress = _Progress(0, [], settings.micro_batch_tokens)
    job = _Job(
        model=model,
        objective=objective,
        settings=settings,
        rates=[learning_rate_at(step, len(batches), learning_rate, settings) for step in range(len(batches))],
        seed=seed,
        optimizer=optimizer,
        precision=model.precision(autocast),
        group=group,
        on_warning=on_warning,
    )
    if settings.gradient_checkpointing:
        model.model.activation_checkpointing_enable()
        model.model.enable_input_require_grads()
    on_step(progress.step, len(batches))
    with _held_back_signals() as stopped:
        while progress.step < len(batches) and not _past_best(settings, progress):
            _advance(job, [training[i] for i in batches[progress.step]], progress)
            on_step(progress.step, len(batches))
            _look(job, held_out, progress, folder)
            on_row(progress.log[-1])
            stop = group.any(stopped())
            if stop or progress.step % settings.checkpoint_every == 0:
                save_checkpoint(folder, model, optimizer, vars(progress))
            if stop:
                raise SystemExit(128 + signal.SIGTERM)  # where the signal came, it ends the process instead
    if progress.best_loss is not None:
        restore_weights(folder / "best.safetensors", model)
    return progress.log


@contextmanager
def _held_back_signals() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM and Ctrl-C back until the block is left; a second one is not held back.

    Yields:
        Whether one has come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    came: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        restore()
        if came:
            signal.raise_signal(came[0])


def _advance(job: _Job[T], batch: list[T], progress: _Progress) -> None:
    """Take the next step and log it."""
    rate = job.rates[progress.step]
    for parameters in job.optimizer.param_groups:
        parameters["lr"] = rate
    part = [job.group.rank] if job.group.rank else []  # each process draws dropout masks of its own
    row = _step_in_memory(job, batch, progress, derive_seed(job.seed, "dropout", progress.step, *part))
    progress.log.append({**row, "learning_rate": rate})
    progress.step += 1


def _step_in_memory(job: _Job[T], batch: list[T], progress: _Progress, dropout_seed: int) -> LogRow:
    """Take a step; where memory runs out, take it again in smaller forward passes and stay with them."""
    while True:
        torch.manual_seed(dropout_seed)
        try:
            return _step(job, batch, progress)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            problem = str(error).splitlines()[0]
        job.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if job.group.size > 1:  # the others wait in the middle of the step and can't begin it again
            raise TrainingError(
                f"out of memory at step {progress.step + 1} ({problem}). Set gradient_checkpointing: true or "
                f"micro_batch_tokens below {progress.micro_batch_tokens}, of this training, then run again"
            )
        largest = max(_packed_tokens(job.objective, [item]) for item in batch)
        if progress.micro_batch_tokens <= largest:
            raise TrainingError(
                f"step {progress.step + 1} does not fit into memory, one item at a time ({problem}). Set a "
                "shorter max_length, gradient_checkpointing: true or lora of this training, then run again "
                "with --update"
            )
        progress.micro_batch_tokens = max(largest, progress.micro_batch_tokens // 2)
        job.on_warning(
            f"out of memory at step {progress.step + 1}: going on with {progress.micro_batch_tokens} tokens "
            "a forward pass; the result is the same. Set micro_batch_tokens to that"
        )


def learning_rate_at(step: int, steps: int, peak: float, settings: Train) -> float:
    """Return the rate of a step, counted from 0: linear warm-up to the peak, then the schedule."""
    warmup = math.ceil(settings.warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return settings.min_learning_rate + (peak - settings.min_learning_rate) * falling[settings.schedule]


def _step(job: _Job[T], batch: list[T], progress: _Progress) -> LogRow:
    model, objective, group, step = job.model, job.objective, job.group, progress.step
    model.train()
    total = sum(objective.weight(item) for item in batch)
    sums: Counter[str] = Counter()
    for micro, counts in group.share(_micro_batches(job, batch, progress)):
        with job.precision:
            logps = model(_sequences(objective, micro))
        loss, metrics = objective.loss(logps, micro)
        if not torch.isfinite(loss):
            raise _not_finite("loss", step)
        # A group averages its processes' gradients, so each brings its share times their number.
        (loss * (counts * group.size / total)).backward()  # type: ignore[no-untyped-call]
        found = {"loss": loss.item(), "computed": _packed_tokens(objective, micro), **metrics}
        sums.update({name: counts * value for name, value in found.items()})
    norm = full(torch.nn.utils.clip_grad_norm_(trainable(model).values(), job.settings.gradient_clip))
    if not torch.isfinite(norm):
        raise _not_finite("gradient", step)
    sums = Counter(group.sums(sums))
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    return {
        "step": step + 1,
        "loss": sums.pop("loss") / total,
        "computed_tokens": int(sums.pop("computed")),
        **{name: value / len(batch) for name, value in sums.items()},
        "grad_norm": norm.item(),
        "tokens": sum(len(sequence) for sequence in _sequences(objective, batch)),
    }


def _micro_batches(job: _Job[T], items: list[T], progress: _Progress) -> list[list[T]]:
    """Split items within the token budget, and further where every process of a group gets some then."""
    budget = progress.micro_batch_tokens
    if job.group.size > 1:
        fair = -(-_packed_tokens(job.objective, items) // job.group.size)
        largest = max(_packed_tokens(job.objective, [item]) for item in items)
        budget = min(budget, max(fair, largest))
    return list(micro_batches(items, job.objective.sequences, budget))


def _sequences(objective: Objective[T], items: Sequence[T]) -> list[TokenSequence]:
    return [sequence for item in items for sequence in objective.sequences(item)]


def _packed_tokens(objective: Objective[T], items: Sequence[T]) -> int:
    return packed_tokens(_sequences(objective, items))


def _past_best(settings: Train, progress: _Progress) -> bool:
    """Say whether the validation loss has not fallen for as many looks as the recipe waits."""
    return settings.validation is not None and progress.looks_since_best >= settings.validation.patience


def _look(job: _Job[T], held_out: list[T], progress: _Progress, folder: Path) -> None:
    """Measure the validation loss when it is due, and keep the best weights."""
    validation = job.settings.validation
    if validation is None or not held_out or progress.step % validation.every:
        return
    model, objective = job.model, job.objective
    model.eval()
    loss_sum = 0.0
    with torch.no_grad(), job.precision:
        for micro, counts in job.group.share(_micro_batches(job, held_out, progress)):
            loss_sum += counts * objective.loss(model(_sequences(objective, micro)), micro)[0].item()
    loss_sum = job.group.sums({"loss": loss_sum})["loss"]
    loss = loss_sum / sum(objective.weight(item) for item in held_out)
    if not math.isfinite(loss):
        raise _not_finite("validation loss", progress.step)
    progress.log[-1]["validation_loss"] = loss
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.looks_since_best = loss, 0
        save_weights(folder / "best.safetensors", model)
    else:
        progress.looks_since_best += 1


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
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
