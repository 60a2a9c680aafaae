"""One measurement of the training benchmark: one side with one setting, in a process of its own.

Started by `bench_train.py` with a job as JSON and the file to write the measurement to. Before it trains,
it goes forward and back through the first batch, by whose figures the driver sees that both sides compute the
same thing.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from bench_train_data import MAX_LENGTH, draw_chosen, draw_judge_examples, draw_pairs

from selfalign.config import DPO, Policy, Train
from selfalign.models.load import load_chat, load_trainable
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence, pack
from selfalign.training.dpo import dpo_objective, reference_logps
from selfalign.training.sft import sft_objective
from selfalign.training.trainer import Objective, train

Task = Literal["dpo", "sft", "judge"]
Side = Literal["ours", "TRL defaults", "TRL tuned"]
Precision = Literal["bfloat16", "float32"]

LEARNING_RATE = 1e-6
BETA = 0.1


@dataclass(frozen=True)
class Job:
    """What to measure."""

    side: Side
    precision: Precision
    task: Task
    items: int
    """Pairs or examples, a multiple of the batch size."""
    batch_size: int
    """Pairs or examples of an optimizer step."""
    max_length: int
    """Tokens of the longest prompt with its completion."""
    seed: int
    data: str
    model: str
    """A model directory."""


@dataclass(frozen=True)
class Measurement:
    """What was measured."""

    check: dict[str, float]
    """Figures of the first batch before any update: the loss and, for DPO, whose loss is log 2 then whatever
    the model, the mean log-probabilities of the completions."""
    tokens: int
    """Of all prompts and completions, each completion with its prompt."""
    seconds: float
    """Of the training steps and the reference pass."""
    reference_seconds: float | None
    """The part of the reference pass; `None` where the task has none."""
    peak_bytes: int
    """Most memory that was resident while it trained."""
    held_bytes: int
    """The part that weights, gradients and AdamW's two moments take, all in float32, and what interpreter and
    libraries held before the model was loaded."""
    matrix_rate: float | None
    """Floating-point operations a second of a matrix product of the model; `None` for TRL, as the next."""
    useful_flops: float | None
    """Floating-point operations that the training steps need; see `useful_flops`."""

    @property
    def matrix_share(self) -> float | None:
        """Return the share of the matrix rate that the training steps reach; `None` for TRL."""
        if self.matrix_rate is None or self.useful_flops is None:
            return None
        return self.useful_flops / (self.seconds - (self.reference_seconds or 0)) / self.matrix_rate


def measure(job: Job) -> Measurement:
    """Load, tokenise, check, and then time the training alone."""
    chat = load_chat(Path(job.model), Policy())
    draws: dict[Task, Callable[..., Sequence[Any]]] = {
        "dpo": draw_pairs,
        "sft": draw_chosen,
        "judge": draw_judge_examples,
    }
    items = draws[job.task](Path(job.data), chat, job.items, job.max_length, job.seed)
    if len(items) < job.items:
        raise SystemExit(f"the data give {len(items)} of {job.items} items; ask for fewer")
    with TemporaryDirectory() as scratch:
        side = _ours if job.side == "ours" else _trl
        return side(job, items, Path(scratch))


def _ours(job: Job, items: Sequence[Any], scratch: Path) -> Measurement:
    before = _resident_bytes("VmRSS")
    policy = Policy(device="cpu", precision=job.precision)
    model = CompletionLogps(load_trainable(Path(job.model), policy, None, dropout=0.0))
    if model.not_packed is not None:
        raise SystemExit(f"the model can't be packed: {model.not_packed}")
    autocast = getattr(torch, job.precision)
    settings = Train(learning_rate=LEARNING_RATE, schedule="constant", batch_size=job.batch_size)

    def objective_of(some: Sequence[Any]) -> Objective[Any]:
        if job.task != "dpo":
            return sft_objective()
        rows = reference_logps(model, some, settings.micro_batch_tokens, autocast)
        return dpo_objective({row.pair_id: row for row in rows}, DPO(beta=BETA, train=settings))

    first = items[: job.batch_size]
    check = _our_check(model, first, objective_of(first), autocast)
    _forget_peak()
    begin = time.perf_counter()
    objective = objective_of(items)
    referred = time.perf_counter()
    batches: list[Sequence[TokenSequence]] = []
    with model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0])):
        train(
            model,
            items,
            objective,
            settings,
            learning_rate=LEARNING_RATE,
            autocast=autocast,
            seed=job.seed,
            scratch=scratch,
            on_warning=lambda _message: None,
        )
    end = time.perf_counter()
    peak = _resident_bytes("VmHWM")
    return Measurement(
        check=check,
        tokens=sum(len(sequence) for item in items for sequence in objective.sequences(item)),
        seconds=end - begin,
        reference_seconds=referred - begin if job.task == "dpo" else None,
        peak_bytes=peak,
        held_bytes=before + _trained_bytes(model.model),
        matrix_rate=matrix_rate(model.model.config, autocast),
        useful_flops=useful_flops(model.model, batches),
    )


def _our_check(
    model: CompletionLogps, batch: Sequence[Any], objective: Objective[Any], autocast: torch.dtype
) -> dict[str, float]:
    model.train()
    with model.precision(autocast):
        logps = model([sequence for item in batch for sequence in objective.sequences(item)])
        loss, sums = objective.loss(logps, batch)
    loss.backward()
    model.zero_grad()
    means = {name: value / len(batch) for name, value in sums.items() if name.startswith("logps/")}
    return {"loss": loss.item() / sum(map(objective.weight, batch)), **means}


def matrix_rate(config: Any, dtype: torch.dtype) -> float:
    """Return the operations a second of 512 rows through a matrix of the model's feed-forward layers.

    The median of seven rounds of a fifth of a second, each after the products before have warmed up.
    """
    rows = torch.randn(512, config.hidden_size, dtype=dtype)
    matrix = torch.randn(config.hidden_size, config.intermediate_size, dtype=dtype)
    rates = []
    for _ in range(7):
        begin, products = time.perf_counter(), 0
        while (seconds := time.perf_counter() - begin) < 0.2:
            torch.mm(rows, matrix)
            products += 1
        rates.append(2 * rows.numel() * matrix.shape[1] * products / seconds)
    return median(rates)


def useful_flops(model: Any, batches: Sequence[Sequence[TokenSequence]]) -> float:
    """Return the floating-point operations that forward and backward passes over packed rows need.

    flops = 6 * (parameters in matrices of the layers) * (packed tokens)
          + 6 * (parameters of the head) * (targets)
          + 12 * layers * heads * (width of a head) * (tokens seen by all tokens, themselves included)

    A parameter costs 2 operations forward and 4 backward. So does a token seen by a token, for each number of
    a head, twice: in the score and in the weighted sum of values. What is computed a second time in the
    backward pass to save memory counts for nothing.
    """
    config = model.config
    layers = sum(p.numel() for p in model.get_decoder().layers.parameters() if p.ndim == 2)
    head = model.get_output_embeddings().weight.numel()
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    rows = [pack(batch) for batch in batches]
    return float(
        sum(
            6 * layers * len(row.ids)
            + 6 * head * len(row.targets)
            + 12 * attention * sum(position + 1 for position in row.positions)
            for row in rows
        )
    )


def _trl(job: Job, items: Sequence[Any], scratch: Path) -> Measurement:
    from bench_train_trl import dpo_trainer, first_figures, sft_trainer, train_timed

    before = _resident_bytes("VmRSS")
    arguments = {
        "output_dir": str(scratch),
        "use_cpu": True,
        "bf16": job.precision == "bfloat16",
        "max_length": MAX_LENGTH,
        "per_device_train_batch_size": job.batch_size,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "seed": job.seed,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    model, tuned = Path(job.model), job.side == "TRL tuned"
    if job.task == "dpo":
        trainer, rows = dpo_trainer(model, items, {**arguments, "beta": BETA}, tuned=tuned)
        sequences = [sequence for pair in items for sequence in pair.sequences]
    else:
        trainer, rows = sft_trainer(model, items, arguments, Train().micro_batch_tokens, tuned=tuned)
        sequences = list(items)
    check = first_figures(trainer, rows[: job.batch_size])
    _forget_peak()
    seconds, reference_seconds = train_timed(trainer)
    return Measurement(
        check=check,
        tokens=sum(map(len, sequences)),
        seconds=seconds,
        reference_seconds=reference_seconds,
        peak_bytes=_resident_bytes("VmHWM"),
        held_bytes=before + _trained_bytes(trainer.model),
        matrix_rate=None,
        useful_flops=None,
    )


def _forget_peak() -> None:
    """Let the peak begin anew."""
    with suppress(OSError):  # without the right to it, the peak is of all that the process has done
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident_bytes(kind: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the resident memory of this process, now or at its peak; needs Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{kind}:")).split()[1]) * 1024


def _trained_bytes(model: Any) -> int:
    return 16 * sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    found = measure(Job(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(asdict(found)), encoding="utf-8")
