"""TRL's side of the training benchmark: its trainers, given our token ids and timed from within.

Its defaults are taken as they are, batch size and learning rate aside. What "tuned" changes, and why:

- gradient checkpointing off, as it is with us: TRL has it on, and it costs another forward pass;
- DPO: the reference is computed beforehand (no second model in memory), and pairs go through one by one with
  as many accumulated as a batch has, so that no pair is padded to the length of another;
- SFT: packing, in rows as long as our micro-batches or, where that is less, as a batch on average; as many
  rows a step as hold a batch. TRL asks for FlashAttention with it; on a processor transformers makes a mask
  from the positions instead, which gives the same loss, as the benchmark checks.

Not used: `padding_free`, which TRL 1.16 ignores for DPO; workers that load data, which have nothing to do;
batches of equal lengths, which would train on other batches.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from selfalign.models.packing import TokenSequence
from selfalign.training.dpo import PairTokens

Row = dict[str, list[int]]


class _Clock(TrainerCallback):
    """Times the steps, without what `train` sets up before them."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self._begin


class _TimedDPO(DPOTrainer):
    """Takes pairs as token ids and times the reference pass."""

    before_seconds = 0.0
    """Of the pass before the steps."""
    within_seconds = 0.0
    """Of the passes within the steps."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, *arguments: Any) -> Dataset:
        begin = time.perf_counter()
        dataset = super()._precompute_ref_logps(*arguments)
        self.before_seconds = time.perf_counter() - begin
        return dataset

    @contextmanager
    def timing_reference(self) -> Iterator[None]:
        """Add up what a reference model of its own takes; nothing where there is none."""
        if self.ref_model is None:
            yield
            return
        begins: list[float] = []

        def before(*_: Any) -> None:
            begins.append(time.perf_counter())

        def after(*_: Any) -> None:
            self.within_seconds += time.perf_counter() - begins.pop()

        with self.ref_model.register_forward_pre_hook(before), self.ref_model.register_forward_hook(after):
            yield


def dpo_trainer(
    model: Path, pairs: Sequence[PairTokens], arguments: dict[str, Any], *, tuned: bool
) -> tuple[DPOTrainer, list[Row]]:
    """Return TRL's trainer and its rows, which hold the reference log-probabilities where it is tuned."""
    if tuned:
        arguments = {
            **arguments,
            "gradient_checkpointing": False,
            "precompute_ref_log_probs": True,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": arguments["per_device_train_batch_size"],
        }
    rows = [
        {
            "prompt_ids": list(pair.chosen.prompt),
            "chosen_ids": list(pair.chosen.completion),
            "rejected_ids": list(pair.rejected.completion),
        }
        for pair in pairs
    ]
    trainer = _TimedDPO(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=DPOConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    return trainer, list(trainer.train_dataset)


def sft_trainer(
    model: Path,
    sequences: Sequence[TokenSequence],
    arguments: dict[str, Any],
    row_tokens: int,
    *,
    tuned: bool,
) -> tuple[SFTTrainer, list[Row]]:
    """Return TRL's trainer and the rows it was given, before packing; prompts carry no loss."""
    if tuned:
        batch = arguments["per_device_train_batch_size"]
        tokens = batch * sum(map(len, sequences)) / len(sequences)
        row_tokens = max(*map(len, sequences), min(row_tokens, round(tokens)))
        arguments = {
            **arguments,
            "gradient_checkpointing": False,
            "packing": True,
            "max_length": row_tokens,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": max(1, round(tokens / row_tokens)),
        }
    rows = [
        {"input_ids": list(s.ids), "labels": [-100] * len(s.prompt) + list(s.completion)} for s in sequences
    ]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    return trainer, rows


def first_figures(trainer: Any, rows: list[Row]) -> dict[str, float]:
    """Go forward and back once; return the loss and, for DPO, the completions' mean log-probabilities."""
    inputs = trainer.data_collator(rows)
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(trainer.model.train(), inputs)
    loss.backward()
    trainer.model.zero_grad()
    logged = trainer._metrics["train"]
    means = {name: logged[name][-1] for name in ("logps/chosen", "logps/rejected") if name in logged}
    logged.clear()
    return {"loss": loss.item(), **means}


def train_timed(trainer: Any) -> tuple[float, float | None]:
    """Train, and return the seconds in all and those of the reference pass; `None` where there is none."""
    clock = _Clock()
    trainer.add_callback(clock)
    if not isinstance(trainer, _TimedDPO):
        trainer.train()
        return clock.seconds, None
    with trainer.timing_reference():
        trainer.train()
    before = trainer.before_seconds
    return before + clock.seconds, before + trainer.within_seconds
