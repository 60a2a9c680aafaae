"""The recipe: every setting of a run, strictly typed, with the numbers' sources.

Defaults are small and sane; the presets `paper` and `autoalign` (see `presets/`) hold the published
numbers. A key that no model below knows is refused. No model or tensor library is imported here.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from selfalign.data import Format, Selection
from selfalign.eft import Rule, Target
from selfalign.pairs import Strategy

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base of all recipe sections: frozen, and strict about unknown keys and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Policy(Section):
    """The base model M0 and how its weights are held."""

    model: str = "smollm2-135m-instruct"
    """The embedded default model by its name, a local directory, or a hub id `owner/name`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; the default branch if not given."""
    chat_template: Literal["chatml", "llama-3-instruct"] | None = None
    """A template of ours for a base tokenizer that has none; refused where the tokenizer has its own."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; `auto` takes a GPU if there is one."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads the layers of one model over all GPUs of the machine, for models too big for one."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of forward and backward passes; `auto` is bfloat16 where the processor has it."""


class EngineSettings(Section):
    """What generates text."""

    kind: Literal["transformers", "scripted"] = "transformers"
    """`transformers` runs the model in this process; `scripted` answers by rule, for tests and trials."""
    batch_size: PositiveInt = 64
    """Sequences decoded at once, at most."""
    batch_tokens: PositiveInt = 65536
    """Tokens of prompts and completions held at once; long prompts make smaller batches."""
    script: str | None = None
    """File of rules for the scripted engine; the shipped one if not given."""


class Sampling(Section):
    """How one completion is drawn."""

    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Above 0: greedy decoding would return N identical candidates."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Probability mass of the nucleus that is sampled from."""
    max_new_tokens: PositiveInt = 512
    """Longest completion, in tokens; one that reaches it counts as truncated."""


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


class RankedData(Section):
    """Prompts with several human-ranked or human-rated replies, for EFT and for measuring the judge."""

    paths: tuple[str, ...] = ("starter",)
    """Files, `hub:owner/name[:split]`, or `starter`."""
    format: Format | None = None
    """Format of the rows of all paths; recognised if not given."""
    language: str | None = "en"
    """Language label of OpenAssistant messages to keep; null keeps all."""
    evaluation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the prompts held out to measure the judge; no prompt is on both sides."""
    limit: PositiveInt | None = None
    """Prompts kept at most, before the split."""


class Data(Section):
    """What the run reads."""

    ift: IFTData = IFTData()
    ranked: RankedData = RankedData()


class Lora(Section):
    """Low-rank adapters instead of all weights."""

    rank: PositiveInt = 16
    """Inner width of an adapter."""
    alpha: PositiveInt = 32
    """Scale of an adapter: what it adds is multiplied by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout of an adapter's input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the layers that get one; `all-linear` is every linear layer but the output."""


class Validation(Section):
    """Early stopping on examples held out from training."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the training examples held out."""
    every: PositiveInt = 200
    """Steps between two looks at the validation loss."""
    patience: PositiveInt = 1
    """Looks without a lower loss before training stops; the weights of the best look are kept."""


class Train(Section):
    """One training run with AdamW, float32 master weights and losses."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    """Highest rate, reached at the end of the warm-up."""
    min_learning_rate: NonNegative = 0.0
    """Where the schedule ends."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    warmup_ratio: Fraction = 0.0
    """Share of the steps in which the rate climbs from 0."""
    weight_decay: NonNegative = 0.0
    """Decay of matrices; biases and norms have none."""
    epochs: PositiveInt = 1
    """Passes over the examples or pairs."""
    max_steps: PositiveInt | None = None
    """Stops earlier than the epochs would; the schedule ends there too."""
    batch_size: PositiveInt = 16
    """Examples or pairs a step, over all micro-batches."""
    micro_batch_tokens: PositiveInt = 2048
    """Padded tokens a forward pass holds at most; never changes the result, only memory and speed."""
    max_length: PositiveInt = 2048
    """Tokens of prompt and completion; longer examples are skipped and counted."""
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """Norm that longer gradients are cut down to."""
    dropout: Fraction = 0.0
    """Dropout of the model where its architecture has any."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    lora: Lora | None = None
    """Train adapters; null trains all weights."""
    validation: Validation | None = None
    checkpoint_every: PositiveInt = 100
    """Steps between checkpoints from which a killed training goes on."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the saved weights; at rates near 1e-6 bfloat16 rounds much of an update away."""


class EFT(Section):
    """Evaluation fine-tuning: teaching the model to judge. Source: 2401.10020, section 2.1 and 3.1."""

    agreement: Rule = "ranking"
    """Keep a prompt whose whole ranking agrees with the human one, or each reply whose place agrees."""
    target: Target = "rationale"
    """Learn the judge's own rationale and score, or the score line alone."""
    balance_scores: bool = True
    """Down-sample the most common score to the next most common."""
    balance_lengths: bool = False
    """Drop examples until score and length of the judged reply are uncorrelated."""
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


class Judge(Section):
    """How the policy judges completions."""

    rubric: str = "additive"
    """`additive`, `additive_score_only`, or a template file of your own."""
    samples: PositiveInt = 3
    """Judgments a completion; their mean is the reward."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Further calls for a judgment that could not be parsed."""
    reply_start: str = ""
    """Words that every reply is made to begin with, such as `Score:`; for models too small to keep to the
    form that the rubric asks for."""
    sampling: Sampling = Sampling(max_new_tokens=256)


class Pairs(Section):
    """How preference pairs are made from rewards."""

    strategy: Strategy = "best_worst"
    """The best completion against the worst or a random lower one, or all pairs of unequal reward."""
    min_margin: NonNegative = 0.0
    """Least difference of rewards; equal rewards never give a pair."""
    keep_truncated: bool = False
    """Admit completions cut off by the token limit."""


class DPO(Section):
    """Direct preference optimisation against the policy before. Source: 2305.18290, equation 7."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of pairs whose preference is the wrong way round."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Rate of each iteration, the last one repeated; empty uses train.learning_rate in all."""
    train: Train = Train(learning_rate=1e-6)


class Evaluation(Section):
    """Measuring the judge on held-out human rankings, for every model of the run."""

    samples: PositiveInt = 3
    """Judgments a held-out reply."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of the prompts for the 95 % intervals."""


class Recipe(Section):
    """Everything one run needs to know."""

    method: Literal["self_rewarding"] = "self_rewarding"
    """The loop to run."""
    preset: Literal["paper", "autoalign"] | None = None
    """Published numbers that this recipe starts from."""
    seed: int = 0
    """Root of all random seeds."""
    num_iterations: PositiveInt = 2
    """DPO iterations after M1; 2 end with M3."""
    policy: Policy = Policy()
    engine: EngineSettings = EngineSettings()
    data: Data = Data()
    sft: Train = Train()
    """The SFT baseline on IFT data."""
    eft: EFT = EFT()
    prompts: NewPrompts = NewPrompts()
    candidates: Candidates = Candidates()
    judge: Judge = Judge()
    pairs: Pairs = Pairs()
    dpo: DPO = DPO()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.engine.script is not None and self.engine.kind != "scripted":
            raise ValueError("engine.script is for engine.kind: scripted")
        if self.prompts.generated_shots >= self.prompts.shots:
            raise ValueError("prompts.generated_shots must be below prompts.shots")
        if self.prompts.min_words > self.prompts.max_words:
            raise ValueError("prompts.min_words is above prompts.max_words")
        for name, train in (("sft", self.sft), ("eft.train", self.eft.train), ("dpo.train", self.dpo.train)):
            if train.min_learning_rate > train.learning_rate:
                raise ValueError(f"{name}.min_learning_rate is above its learning_rate")
        if any(rate < self.dpo.train.min_learning_rate for rate in self.dpo.learning_rates):
            raise ValueError("dpo.train.min_learning_rate is above one of dpo.learning_rates")
        return self
