"""The recipe of self-rewarding, arXiv 2401.10020.

Defaults are small and sane; the presets `paper` and `autoalign` hold the published numbers.
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from selfalign.config.common import (
    DPO,
    BaseRecipe,
    Fraction,
    Judge,
    NonNegative,
    PositiveInt,
    RankedFiles,
    Sampling,
    Section,
    Train,
)
from selfalign.data import Format, Selection
from selfalign.eft import Rule, Spread, Target
from selfalign.pairs import Strategy


class IFTData(Section):
    """Instruction data: prompts with one completion each."""

    path: str = "starter"
    """A file, `hub:owner/name[:split]`, or `starter` for the embedded starter set."""
    format: Format | None = None
    """Format of the rows; recognised if not given."""
    selection: Selection = "paper"
    """Which replies of OpenAssistant trees are taken; other formats are taken whole."""
    language: str | None = "en"
    """Language label of OpenAssistant messages to keep; null keeps all."""
    limit: PositiveInt | None = 3200
    """Examples kept at most."""


class RankedData(RankedFiles):
    """Prompts with several human-ranked or human-rated replies, for EFT and for measuring the judge."""

    evaluation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the prompts held out to measure the judge; no prompt is on both sides."""
    limit: PositiveInt | None = None
    """Prompts kept at most, before the split."""


class Data(Section):
    """What the run reads."""

    ift: IFTData = IFTData()
    ranked: RankedData = RankedData()


class Ranking(Section):
    """Learning the human order of a prompt's replies by their expected scores."""

    longer_worse_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of a pair whose longer reply people liked less, where any other pair weighs 1. Labels favour
    length; a judge that is to see more than that needs more than 1."""
    score_weight: NonNegative = 0.2
    """Weight of a reply's human score beside its pairs; it keeps the scores on the rubric's scale."""
    replies: Annotated[int, Field(ge=2)] = 6
    """Replies of a prompt compared at once, at most; those of longer rankings are dealt into parts."""


class EFT(Section):
    """Evaluation fine-tuning: teaching the model to judge. Source: 2401.10020, section 2.1 and 3.1."""

    agreement: Rule = "ranking"
    """Keep a prompt whose whole ranking agrees with the human one, or (per_reply) each reply whose place
    does, or (none, for target: score) every reply, so that the baseline need not judge any."""
    target: Target | Literal["ranking"] = "rationale"
    """Learn the judge's own rationale and score, or a score line made of the human label or place, or
    (ranking) to give the better of two replies the higher expected score, from all ranked replies."""
    ranking: Ranking = Ranking()
    spread: Spread = "label"
    """Score of target: score: the label times five, or `even`, its place among all labels, so that all scores
    are as frequent."""
    balance_scores: bool = True
    """Down-sample the most common score of the examples to the next most common."""
    max_length_correlation: Fraction | None = None
    """Drop examples until score and length of the judged reply are correlated no more than this; null drops
    none. People's labels favour length, and 0.02 leaves a judge nothing to learn from it."""
    training: Literal["joint", "sequential"] = "joint"
    """M1 from M0 on IFT + EFT data together, or from the SFT baseline on EFT data alone."""
    train: Train = Train()


class NewPrompts(Section):
    """Few-shot generation of new prompts. Source: 2401.10020, section 2.2; Self-Instruct filters."""

    generator: str = "policy"
    """`policy`, or a fixed instruct model by name, directory or hub id."""
    per_iteration: PositiveInt = 500
    """Prompts wanted in every iteration."""
    requests_per_round: PositiveInt = 64
    """Generations between two looks at what was accepted; later rounds may show accepted prompts."""
    max_rounds: PositiveInt = 100
    """Rounds after which the iteration goes on with what it has."""
    shots: PositiveInt = 8
    """Examples shown in one request."""
    generated_shots: Annotated[int, Field(ge=0)] = 2
    """How many of them come from prompts generated so far."""
    min_words: PositiveInt = 4
    """Words of the shortest prompt that is accepted."""
    max_words: PositiveInt = 150
    """Words of the longest."""
    similarity: Fraction = 0.7
    """A prompt with a ROUGE-L F1 above this against any earlier one is a near duplicate."""
    sampling: Sampling = Sampling(temperature=0.6, top_p=0.9, max_new_tokens=200)


class Candidates(Section):
    """The N completions of each prompt."""

    n: Annotated[int, Field(ge=2)] = 4
    """Completions of each prompt."""
    sampling: Sampling = Sampling()


class Pairs(Section):
    """How preference pairs are made from rewards."""

    strategy: Strategy = "best_worst"
    """The best completion against the worst or a random lower one, or all pairs of unequal reward."""
    min_margin: NonNegative = 0.0
    """Least difference of rewards; equal rewards never give a pair."""
    keep_truncated: bool = False
    """Admit completions cut off by the token limit."""
    length_cost: NonNegative = 0.0
    """Points of reward that a token costs."""
    near_best: NonNegative = 0.0
    """Points of reward below the best within which the shortest completion is chosen in its place."""

    @model_validator(mode="after")
    def _shortest_of_the_best_is_one(self) -> Self:
        if self.near_best and self.strategy == "all":
            raise ValueError("near_best chooses one completion, strategy: all takes every one; leave one out")
        return self


Locations = tuple[str | None, ...]
Made = Literal["prompts", "candidates", "judgments", "pairs"]


class Imports(Section):
    """Rows made elsewhere, in place of the run's own."""

    prompts: Locations = ()
    """Prompts, in any format that `data.ift.path` takes; replies are left out."""
    candidates: Locations = ()
    """Completions of prompts that they bring along: a row each (`prompt`, `completion`), or a row a prompt
    (`instruction`, `completions`) as in UltraFeedback."""
    judgments: Locations = ()
    """Scores of the iteration's candidates, found by `completion_id` or by `prompt` and `completion`; the
    file of UltraFeedback's candidates has them too. A file for candidates of the run's own may come later."""
    pairs: Locations = ()
    """Pairs with `chosen` and `rejected`: TRL's, UltraFeedback's binarised ones, AutoAlign's, ShareGPT's, or
    `pairs.jsonl` of another run. Such an iteration neither samples nor judges."""

    def of(self, made: Made, iteration: int) -> str | None:
        """Return where rows of an iteration, counted from 1, come from; `None` if the run makes them."""
        locations: dict[Made, Locations] = {
            "prompts": self.prompts,
            "candidates": self.candidates,
            "judgments": self.judgments,
            "pairs": self.pairs,
        }
        return locations[made][iteration - 1] if iteration <= len(locations[made]) else None

    @property
    def iterations(self) -> int:
        """Return the number of iterations that are named."""
        return max(map(len, (self.prompts, self.candidates, self.judgments, self.pairs)))

    @model_validator(mode="after")
    def _one_source_each(self) -> Self:
        for iteration in range(1, self.iterations + 1):
            named = [made for made in get_args(Made) if self.of(made, iteration) is not None]
            if "pairs" in named and len(named) > 1:
                raise ValueError(
                    f"{named[0]} and pairs both name iteration {iteration}: pairs need nothing else"
                )
            if {"prompts", "candidates"} <= set(named):
                raise ValueError(f"prompts and candidates both name iteration {iteration}: leave prompts out")
        return self


class Evaluation(Section):
    """Measuring the judge on held-out human rankings, for every model of the run."""

    samples: PositiveInt = 3
    """Judgments a held-out reply."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of the prompts for the 95 % intervals."""


GateMeasure = Literal[
    "pairwise_accuracy",
    "pairwise_accuracy_longer_better",
    "pairwise_accuracy_longer_worse",
    "exact_match",
    "spearman",
    "kendall_tau_b",
    "parse_rate",
]


class Gate(Section):
    """When the model of an iteration takes the place of the one before it, by the held-out rankings."""

    max_fall: dict[GateMeasure, NonNegative] = Field(
        {"pairwise_accuracy": 0.02, "parse_rate": 0.01}, min_length=1
    )
    """Measures of the model as a judge, each with the most that it may fall by."""
    otherwise: Literal["stop", "keep"] = "stop"
    """End the run with the model before, or keep it and go on with new prompts."""


class IterativeDPO(DPO):
    """DPO in every iteration, each against the policy before it."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Rate of each iteration, the last one repeated; empty uses train.learning_rate in all."""

    def learning_rate_of(self, iteration: int) -> float:
        """Return the peak rate of an iteration, counted from 1."""
        rates = self.learning_rates or (self.train.learning_rate,)
        return rates[min(iteration, len(rates)) - 1]

    @model_validator(mode="after")
    def _falling_in_all(self) -> Self:
        if any(rate < self.train.min_learning_rate for rate in self.learning_rates):
            raise ValueError("train.min_learning_rate is above one of learning_rates")
        return self


class SelfRewardingRecipe(BaseRecipe):
    """Everything a self-rewarding run needs to know."""

    method: Literal["self_rewarding"] = "self_rewarding"
    """The loop to run."""
    num_iterations: PositiveInt = 2
    """DPO iterations after M1; 2 end with M3."""
    start: Literal["base", "M1"] = "base"
    """`base` makes M1 of the model by SFT and EFT; `M1` takes the model as M1, as it is."""
    data: Data = Data()
    imports: Imports = Imports()
    """Rows made elsewhere, in place of the run's own: each key lists files, or `hub:owner/name[:split]`, of
    the iterations in turn, such as [first.jsonl, null]; one with null, or with none, makes its own."""
    sft: Train = Train()
    """The SFT baseline on IFT data."""
    eft: EFT = EFT()
    prompts: NewPrompts = NewPrompts()
    candidates: Candidates = Candidates()
    judge: Judge = Judge()
    pairs: Pairs = Pairs()
    dpo: IterativeDPO = IterativeDPO()
    evaluation: Evaluation = Evaluation()
    gate: Gate | None = None
    """Accepts the model of an iteration or not; null accepts every one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.prompts.generated_shots >= self.prompts.shots:
            raise ValueError("prompts.generated_shots must be below prompts.shots")
        if self.prompts.min_words > self.prompts.max_words:
            raise ValueError("prompts.min_words is above prompts.max_words")
        if self.imports.iterations > self.num_iterations:
            raise ValueError(
                f"imports has files for {self.imports.iterations} iterations, num_iterations is "
                f"{self.num_iterations}"
            )
        if self.eft.target == "rationale" and self.judge.method != "sampled":
            raise ValueError(
                f"eft.target: rationale learns whole judgments, and judge.method: {self.judge.method} leaves "
                "their score open; set eft.target: score"
            )
        if self.eft.target == "ranking":
            self._check_ranking()
        if self.eft.target == "rationale" and self.eft.agreement == "none":
            raise ValueError("eft.agreement: none keeps wrong judgments too; it is for eft.target: score")
        if self.eft.target == "rationale" and self.eft.spread != "label":
            raise ValueError("eft.spread is for eft.target: score; a rationale brings its own score")
        drawn = {"candidates": self.candidates.sampling, "prompts": self.prompts.sampling}
        for name, sampling in drawn.items():
            if sampling.temperature == 0:
                raise ValueError(f"{name}.sampling.temperature is 0: greedy samples would all be the same")
        return self

    def _check_ranking(self) -> None:
        """Refuse settings that learning a ranking has no use for.

        Raises:
            ValueError: There is one.
        """
        if self.judge.method != "expected":
            raise ValueError("eft.target: ranking trains expected scores; set judge.method: expected")
        if self.judge.is_fixed:
            raise ValueError(
                "eft.target: ranking trains the policy to judge, but the recipe names another judge"
            )
        needed = {"agreement": "none", "training": "sequential", "max_length_correlation": None}
        for key, value in needed.items():
            if getattr(self.eft, key) != value:
                why = "eft.target: ranking learns from all ranked replies, after IFT"
                raise ValueError(f"{why}; set eft.{key}: {'null' if value is None else value}")
