"""What every recipe has: model, engine, sampling and training."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from selfalign.data import Format

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base of all recipe sections: frozen, and strict about unknown keys and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Policy(Section):
    """The base model M0 and how its weights are held."""

    model: str = "smollm2-135m-instruct"
    """The embedded default model by its name, a local directory, or a hub id `owner/name`."""
    from_run: str | None = None
    """Run directory whose last model takes the place of `model`, to go on from one method with another."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; the default branch if not given."""
    chat_template: Literal["chatml", "llama-3-instruct"] | None = None
    """A template of ours for a base tokenizer that has none; refused where the tokenizer has its own."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; `auto` takes a GPU if there is one."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads the layers of one model over all GPUs of the machine, for models too big for one."""
    num_processes: PositiveInt | Literal["auto"] = 1
    """Processes that train together, each with its part of weights, gradients and optimizer state (FSDP2);
    `auto` is one a GPU. They give the result of one process; generating and judging stay in one."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of forward and backward passes; `auto` is bfloat16 where the processor has it."""


class Requests(Section):
    """How a server is asked."""

    concurrency: PositiveInt = 64
    """Requests under way at once, at most."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Time for one answer; one that takes longer is asked for again."""
    retries: Annotated[int, Field(ge=0)] = 8
    """Further attempts after a failure that may pass (429, 5xx, a time-out, a lost connection), with growing
    pauses between them."""


class Serve(Requests):
    """A vLLM server that the run starts for each model that it generates with, and ends after it."""

    python: str | None = None
    """Python of an environment with vLLM, such as `~/vllm/bin/python`; this one if not given."""
    tensor_parallel: PositiveInt = 1
    """GPUs that share one copy of the model."""
    data_parallel: PositiveInt = 1
    """Copies of the model."""
    arguments: tuple[str, ...] = ()
    """Further arguments of `vllm serve`."""
    start_seconds: PositiveInt = 900
    """Time for the server to load the model and be healthy."""


class Endpoint(Requests):
    """A model behind an OpenAI-compatible chat API that runs already, here or elsewhere."""

    url: str
    """Address of the API, such as `https://api.example.com/v1`."""
    model: str
    """Name by which the API knows the model."""
    key_variable: str | None = None
    """Environment variable that holds the key; the key itself is read from there alone and never written."""


class EngineSettings(Section):
    """What generates text."""

    kind: Literal["transformers", "server", "scripted"] = "transformers"
    """`transformers` runs the model in this process; `server` has vLLM serve it; `scripted` answers by rule,
    for tests and trials."""
    serve: Serve | None = None
    """The server that `kind: server` starts."""
    batch_size: PositiveInt = 128
    """Sequences decoded at once, at most."""
    batch_tokens: PositiveInt = 65536
    """Tokens of prompts and completions held at once; long prompts make smaller batches."""
    script: str | None = None
    """File of rules for the scripted engine; the shipped one if not given."""


class Sampling(Section):
    """How one completion is drawn."""

    temperature: NonNegative = 0.7
    """0 is greedy: always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Probability mass of the nucleus that is sampled from."""
    max_new_tokens: PositiveInt = 512
    """Longest completion, in tokens; one that reaches it counts as truncated."""


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
    """Tokens a forward pass holds at most, shared prefixes once; changes memory and speed, not the result."""
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

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate is above learning_rate")
        return self


class Judge(Section):
    """How a model judges completions."""

    method: Literal["sampled", "expected", "expected_after_rationale", "pairwise"] = "sampled"
    """`sampled` reads the score of each of K sampled replies; `expected` decodes nothing and takes the mean
    over the probabilities of the scores; `expected_after_rationale` does so after one sampled rationale;
    `pairwise` compares all completions of a prompt with each other, in both orders, and scores their wins."""
    model: str | None = None
    """A fixed judge in place of the policy, by name, directory or hub id."""
    endpoint: Endpoint | None = None
    """A fixed judge behind an API in place of the policy."""
    attacked_prompts: Annotated[int, Field(ge=0)] = 4
    """Prompts of each iteration on which the shipped attacks on a judge are tried; 0 tries none."""
    rubric: str = "additive"
    """`additive`, `additive_score_only`, or a template file of your own."""
    samples: PositiveInt = 3
    """Judgments a completion; their mean is the reward."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Further calls for a judgment that could not be parsed."""
    reply_start: str = ""
    """Words that every reply is made to begin with, such as `Score:`; for models too small to keep to the
    form that the rubric asks for."""
    structured: bool = False
    """Hold each sampled judgment to a rationale and then a score from 0 to 5: vLLM by a regular expression,
    an API by a JSON schema; a reply that still has no score gets one drawn after it, except behind an API."""
    sampling: Sampling = Sampling(max_new_tokens=256)

    @property
    def score_start(self) -> str:
        """Return the words behind which a score is expected, where nothing is decoded."""
        return self.reply_start or "Score:"

    @property
    def calls(self) -> int:
        """Return how often a text is judged: once where its score is a mean over probabilities."""
        return self.samples if self.method == "sampled" else 1

    @property
    def is_fixed(self) -> bool:
        """Say whether another model than the policy judges."""
        return self.model is not None or self.endpoint is not None

    @model_validator(mode="after")
    def _judgments_differ(self) -> Self:
        if self.calls > 1 and self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0: greedy samples would all be the same")
        return self

    @model_validator(mode="after")
    def _structure_has_replies_to_hold(self) -> Self:
        if self.structured and self.method != "sampled":
            raise ValueError(f"structured is for method: sampled; {self.method} reads no score from a reply")
        if self.structured and self.reply_start:
            raise ValueError("structured and reply_start both shape a reply: leave one out")
        return self

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if self.model is not None and self.endpoint is not None:
            raise ValueError("model and endpoint both name a judge: leave one out")
        return self


class RankedFiles(Section):
    """Prompts with several human-ranked or human-rated replies."""

    paths: tuple[str, ...] = ("starter",)
    """Files, `hub:owner/name[:split]`, or `starter`."""
    format: Format | None = None
    """Format of the rows of all paths; recognised if not given."""
    language: str | None = "en"
    """Language label of OpenAssistant messages to keep; null keeps all."""


class DPO(Section):
    """Direct preference optimisation against the policy before."""

    loss: Literal["sigmoid", "ipo", "length_normalised", "length_regularised"] = "sigmoid"
    """`sigmoid` is DPO (2305.18290), `ipo` is bounded (2310.12036), `length_normalised` takes log-ratios a
    token (2411.15124), `length_regularised` charges for length (R-DPO, 2403.19159)."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of pairs whose preference is the wrong way round; not for `ipo`."""
    length_penalty: NonNegative = 0.0
    """What `length_regularised` charges for a token."""
    sft_weight: NonNegative = 0.0
    """Weight of a further term: negative log-likelihood of the chosen completion, a token (2404.19733)."""
    train: Train = Train(learning_rate=1e-6)

    @model_validator(mode="after")
    def _no_number_without_its_loss(self) -> Self:
        if self.label_smoothing and self.loss == "ipo":
            raise ValueError("label_smoothing is not for loss: ipo; leave it out")
        if (self.length_penalty > 0) != (self.loss == "length_regularised"):
            raise ValueError("length_penalty above 0 and loss: length_regularised belong together")
        return self


class BaseRecipe(Section):
    """Keys that every recipe has."""

    preset: str | None = None
    """Published numbers that this recipe starts from: `paper` or `autoalign`; of an evaluation the benchmarks
    of a published table, `rlcd` or `self_rewarding`."""
    seed: int = 0
    """Root of all random seeds."""
    policy: Policy = Policy()
    engine: EngineSettings = EngineSettings()
    report_to: tuple[Tracker, ...] = ()
    """Trackers that training steps, and the counts and judge quality of each model, are reported to, besides
    the run's own log."""

    @model_validator(mode="after")
    def _engine_has_what_its_kind_needs(self) -> Self:
        if self.engine.script is not None and self.engine.kind != "scripted":
            raise ValueError("engine.script is for engine.kind: scripted")
        if (self.engine.serve is not None) != (self.engine.kind == "server"):
            raise ValueError("engine.serve and engine.kind: server belong together")
        return self
