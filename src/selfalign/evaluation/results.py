"""What a benchmark found of one model: the record that every table is made of."""

from typing import Any, Literal

from pydantic import Field

from selfalign.evaluation.judge_quality import Measure
from selfalign.records import Record

LABELS = {
    "mt_bench": "MT-Bench",
    "alpaca_eval": "AlpacaEval",
    "head_to_head": "head to head",
    "judge_quality": "judge quality",
    "math": "MATH",
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "mbpp": "MBPP",
    "humaneval_cn": "HumanEval-CN",
    "mbpp_cn": "MBPP-CN",
    "mmlu": "MMLU",
    "gpqa": "GPQA",
    "cmmlu": "CMMLU",
    "ceval": "C-Eval",
    "ifeval": "IFEval",
    "arc_easy": "ARC-easy",
    "arc_challenge": "ARC-challenge",
    "hellaswag": "HellaSwag",
    "siqa": "SIQA",
    "piqa": "PIQA",
    "openbookqa": "OpenBookQA",
    "nq": "NQ",
}
"""What the published tables call each benchmark."""


class TaskResult(Record):
    """One benchmark of one model."""

    task: str
    model: str
    """Its name among the models measured."""
    metric: str
    """The headline among `measures`."""
    unit: Literal["share", "points"] = "share"
    """Shares are in [0, 1] and shown in per cent; points are shown as they are."""
    measures: dict[str, Measure]
    counts: dict[str, int] = Field(default_factory=dict)
    """Questions by what became of them."""
    notes: tuple[str, ...] = ()
    """What a reader has to know before comparing the figures."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """How the model was asked, and with which versions."""

    @classmethod
    def without_score(cls, task: str, model: str, metric: str, reason: str) -> "TaskResult":
        """Make the result of a model that gets no score, with the reason."""
        nothing = Measure(value=None, low=None, high=None, n=0, reason=reason)
        notes = (f"no score: {reason}",)
        return cls(task=task, model=model, metric=metric, measures={metric: nothing}, notes=notes)

    @property
    def headline(self) -> Measure:
        """Return the measure that the table shows."""
        return self.measures[self.metric]
