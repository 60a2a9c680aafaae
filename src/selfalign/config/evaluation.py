"""The recipe of an evaluation: which models, which benchmarks, how they are asked."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfalign.config.common import BaseRecipe, Endpoint, Judge, PositiveInt, RankedFiles, Section

Task = Literal[
    "mt_bench",
    "alpaca_eval",
    "head_to_head",
    "judge_quality",
    "math",
    "gsm8k",
    "humaneval",
    "mbpp",
    "humaneval_cn",
    "mbpp_cn",
    "mmlu",
    "gpqa",
    "cmmlu",
    "ceval",
    "ifeval",
    "arc_easy",
    "arc_challenge",
    "hellaswag",
    "siqa",
    "piqa",
    "openbookqa",
    "nq",
]


class BenchmarkJudge(Section):
    """Who grades the answers that only a judge can: MT-Bench, AlpacaEval, head to head."""

    model: str | None = None
    """A model by name, directory or hub id."""
    endpoint: Endpoint | None = None
    """A model behind an API."""
    max_new_tokens: PositiveInt = 1024
    """Longest reply of the judge, in tokens."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("a judge is either a model or an endpoint: give one of them")
        return self


class EvaluationRecipe(BaseRecipe):
    """Everything an evaluation needs to know."""

    method: Literal["evaluation"]
    """What to do."""
    of_run: str | None = None
    """Run directory whose models are all measured, in the order of training; `policy.model` alone if not
    given."""
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ("gsm8k", "mmlu", "ifeval")
    """Benchmarks, in the order of the table. The presets `rlcd` and `self_rewarding` name those of the
    published tables."""
    data_dir: str | None = None
    """Directory of the benchmarks' original files; the hub if not given."""
    limit: PositiveInt | None = None
    """Questions of each benchmark, spread over its subjects; all if not given."""
    chat: bool = True
    """Ask in the model's chat format; false has it continue bare text, as base models are asked."""
    max_new_tokens: PositiveInt = 1024
    """Longest answer to be judged or run, in tokens; the other benchmarks bring limits of their own."""
    judge: BenchmarkJudge | None = None
    judging: Judge = Judge(method="expected", rubric="additive_score_only")
    """How each model judges where it is measured as a judge (judge_quality)."""
    ranked: RankedFiles | None = None
    """Human-ranked or rated replies, or pairs, for judge_quality; what the run held out if not given."""
    references: str | None = None
    """File of corrected reference answers for MT-Bench; the published ones in `data_dir` if not given."""
    baseline: str | None = None
    """File of outputs that AlpacaEval compares with; the one in `data_dir` if not given."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks: a benchmark is named twice")
        return self
