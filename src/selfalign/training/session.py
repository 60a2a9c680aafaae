"""One training from model directory to model directory."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from selfalign.config import Policy, Train
from selfalign.models.load import compute_dtype, load_chat, load_trainable, pick_device
from selfalign.models.logps import CompletionLogps
from selfalign.runs import Work
from selfalign.runs.files import replacing, write_text
from selfalign.training.group import ALONE, Group
from selfalign.training.trainer import LogRow, Objective, train

T = TypeVar("T")


class TrainingSession:
    """A model being trained; leaving the context frees it."""

    def __init__(self, start: Path, policy: Policy, settings: Train, group: Group = ALONE) -> None:
        """Load the model and tokenizer to start from, and share the weights out among the group.

        Its processes load one after another, so that the machine holds one whole copy at a time.
        """
        self.chat = load_chat(start, policy)
        self.autocast = compute_dtype(policy, pick_device(policy))
        placed = policy
        if group.size > 1:
            placed = policy.model_copy(update={"device": "cpu", "device_map": None})
        for rank in range(group.size):
            if rank == group.rank:
                self.model: Any = load_trainable(start, placed, settings.lora, dropout=settings.dropout)
                self.logps = CompletionLogps(self.model)
                group.shard(self.logps, self.logps.layers)
            group.least(rank)  # wait for it
        self.max_length = min(settings.max_length, self.logps.max_length)
        self._settings = settings
        self._group = group

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the model."""
        del self.model, self.logps
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def train(
        self,
        work: Work,
        items: Sequence[T],
        objective: Objective[T],
        learning_rate: float,
        seed: int,
        report: Callable[[LogRow], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Train, then write `model/` and `training.jsonl`; return the figures of the stage.

        Each row of the log is given to `report` as its step is done.
        """
        if self.logps.not_packed is not None:
            work.warn(f"sequences are padded, not packed, which is slower: {self.logps.not_packed}")
        scratch = work.scratch("checkpoints")
        scratch.mkdir(parents=True, exist_ok=True)
        log = train(
            self.logps,
            items,
            objective,
            self._settings,
            learning_rate=learning_rate,
            autocast=self.autocast,
            seed=seed,
            scratch=scratch,
            group=self._group,
            on_step=lambda done, total: work.progress(done, total, "steps"),
            on_row=report,
            on_warning=work.warn,
        )
        self._group.unshard(self.logps)
        if self._group.rank == 0:
            write_text(work.output("training.jsonl"), "".join(json.dumps(row) + "\n" for row in log))
            self._save(work.output("model"))
        return {"steps": len(log), **_ends(log), "training_tokens": sum(row["tokens"] for row in log)}

    def _save(self, directory: Path) -> None:
        if self._settings.lora is None:
            for parameter in self.model.parameters():
                parameter.data = parameter.data.to(getattr(torch, self._settings.save_dtype))
        with replacing(directory) as temporary:
            self.model.save_pretrained(temporary)
            self.chat.tokenizer.save_pretrained(temporary)


def _ends(log: list[LogRow]) -> dict[str, float]:
    """Return the mean loss of the first and the last tenth of the steps."""
    tenth = max(1, len(log) // 10)
    losses = [row["loss"] for row in log]
    return {
        "loss_first": sum(losses[:tenth]) / tenth,
        "loss_last": sum(losses[-tenth:]) / tenth,
    }
