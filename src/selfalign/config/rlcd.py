"""The recipe of RLCD by system message, arXiv 2307.12950."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfalign.config.common import DPO, BaseRecipe, Fraction, Judge, PositiveInt, Sampling, Section
from selfalign.data import Format
from selfalign.rlcd import OwnSystem


class PromptData(Section):
    """Prompts to contrast."""

    paths: tuple[str, ...] = ("starter",)
    """Files, `hub:owner/name[:split]`, or `starter` for the prompts of the embedded starter set."""
    format: Format | None = None
    """Format of the rows of all paths; recognised if not given. Completions are left out."""
    language: str | None = None
    """Language label of OpenAssistant messages to keep; null keeps all."""
    limit: PositiveInt | None = None
    """Prompts kept at most, by a seeded draw."""
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the prompts held out to measure what training did."""


class Filters(Section):
    """Which pairs are dropped; identical and empty ones always are."""

    similarity: Fraction = 1.0
    """A pair whose sides have a ROUGE-L F1 above this is near identical and dropped; 1 keeps all."""
    keep_truncated: bool = False
    """Keep pairs with a side cut off by the token limit."""
    refusals: bool = False
    """Drop pairs whose positive side opens with a refusal."""


class Contrast(Section):
    """Completions under opposite system messages."""

    principles: str | None = None
    """A TOML file of principles or a directory of them; the shipped ones if not given."""
    language: str | None = None
    """Language of the principles for all prompts; null goes by the script of each prompt."""
    own_system: OwnSystem = "append"
    """A prompt that brings a system message: `append` the principle to it, `replace` it, or `skip` it."""
    per_prompt: PositiveInt = 1
    """Principle pairs a prompt."""
    samples: PositiveInt = 1
    """Completions a side and principle pair; above 1 they have to be sampled."""
    sampling: Sampling = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=1024)
    filters: Filters = Filters()
    strength_pairs: PositiveInt = 64
    """Pairs on which the contrast is measured before training."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0: greedy samples would all be the same")
        return self


class OutputEvaluation(Section):
    """Comparing the answers to held-out prompts before and after."""

    max_new_tokens: PositiveInt = 256
    """Longest answer, in tokens."""


class RLCDRecipe(BaseRecipe):
    """Everything an RLCD run needs to know."""

    method: Literal["rlcd"]
    """The loop to run."""
    data: PromptData = PromptData()
    contrast: Contrast = Contrast()
    judge: Judge | None = None
    """Have the model judge both sides and drop the pairs whose order it inverts; null does not judge."""
    dpo: DPO = DPO()
    evaluation: OutputEvaluation = OutputEvaluation()
