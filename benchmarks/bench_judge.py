"""Time judging by the expected score, one forward pass, against three sampled rationales, and rate both.

Both judge the same human-rated replies with the same model and engine; the replies are cut into parts, and
the two take turns on each. Loading is left out. Before a time is printed, both must have judged every reply
as often as they should. Beside them stand two measures that ask for no judgment: plain length, and how
likely the model finds the reply. Then all of it again after the model was trained to judge on other prompts.
"""

import argparse
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from bench_judge_data import FILE, TRAIN, draw, train_judge
from bench_judge_tables import LEGEND, QUALITY, cost_table, quality_table, told
from rich.console import Console

from selfalign import __version__
from selfalign.config import BaseRecipe, Judge, Policy, Sampling
from selfalign.data.readers import read_ranked
from selfalign.errors import SelfAlignError
from selfalign.evaluation.judge_quality import Measure, judge_quality, paired_difference
from selfalign.judging import health, judge_messages, load_rubric, mean_rewards
from selfalign.models.chat import Chat
from selfalign.models.load import compute_dtype, load_chat, pick_device
from selfalign.models.source import EMBEDDED, find_model
from selfalign.records import Judgment, Message, RankedPrompt
from selfalign.runs.files import read_json
from selfalign.stages.eft import judged_replies
from selfalign.stages.grader import Grader, Judged
from selfalign.training.scoring import Scorer

Rewards = Mapping[str, float | None]
WARM_UP = Judged("warm-up", "warm-up", (Message(role="user", content="Name a colour."),), "Red.")
SEED = 0
EPILOG = """\
examples:
  make bench-judge QUICK=1                    does it work? under 3 minutes on 2 cores
  make bench-judge ARGS="--json judge.json"   the figures to quote; an hour or more
"""


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    replies: int
    parts: int
    """Of the replies; each measures both methods once."""
    max_length: int
    """Tokens of judge prompt and rationale together; prompts with a longer reply are not drawn."""
    max_new_tokens: int
    """Of a rationale."""
    steps: int
    """Of training; 0 trains nothing."""


QUICK = Plan(replies=24, parts=2, max_length=512, max_new_tokens=64, steps=0)
FULL = Plan(replies=200, parts=2, max_length=4096, max_new_tokens=256, steps=45)


@dataclass(frozen=True)
class Outcome:
    """What one method did."""

    seconds: float
    judgments: tuple[Judgment, ...]


class UnequalError(Exception):
    """The methods have not judged the same replies."""


def methods(max_new_tokens: int) -> dict[str, Judge]:
    """Return how to judge, by name: by the expected score, by three rationales, and by three bare scores.

    Nothing is asked for again. The bare scores are for models too small to end a rationale with a score.
    """
    bare = Judge(
        rubric="additive_score_only",
        reply_start="Score:",
        retries=0,
        sampling=Sampling(max_new_tokens=min(6, max_new_tokens)),
    )
    return {
        "expected": Judge(method="expected", rubric="additive_score_only"),
        "sampled": Judge(retries=0, sampling=Sampling(max_new_tokens=max_new_tokens)),
        "bare scores": bare,
    }


def judge_in_turns(
    recipe: BaseRecipe, judges: Mapping[str, Judge], model: Path, parts: Sequence[Sequence[Judged]]
) -> dict[str, Outcome]:
    """Judge each part by all methods, the first to last and then the last to first; loading is not timed."""
    graders = {name: Grader(recipe, judge, "bench", model) for name, judge in judges.items()}
    for grader in graders.values():
        list(grader([grader.task(WARM_UP, 0)]))
    seconds = dict.fromkeys(judges, 0.0)
    judgments: dict[str, list[Judgment]] = {name: [] for name in judges}
    order = list(judges)
    for part in parts:
        for name in order:
            samples = range(judges[name].calls)
            tasks = [graders[name].task(item, sample) for item in part for sample in samples]
            clock = perf_counter()
            judgments[name] += graders[name](tasks)
            seconds[name] += perf_counter() - clock
        order.reverse()
    return {name: Outcome(seconds[name], tuple(judgments[name])) for name in judges}


def check_same(
    replies: Sequence[Judged], judges: Mapping[str, Judge], outcomes: Mapping[str, Outcome]
) -> None:
    """Compare what was judged with what should be.

    Raises:
        UnequalError: A method has judged some reply more or less often than it should.
    """
    for name, outcome in outcomes.items():
        judged = Counter(
            judgment.completion_id
            for judgment in outcome.judgments
            if judgment.reason != "prompt_too_long"  # the engine has not looked at it
        )
        for reply in replies:
            found, wanted = judged.pop(reply.completion_id, 0), judges[name].calls
            if found != wanted:
                raise UnequalError(f"{name} has judged {reply.completion_id} {found} times, not {wanted}")
        if judged:
            raise UnequalError(f"{name} has judged {min(judged)}, which is none of the replies")


def cost(outcome: Outcome, replies: Sequence[Judged]) -> dict[str, Any]:
    """Return the speed of a method, and how its judgments went."""
    lengths = {reply.completion_id: len(reply.text) for reply in replies}
    return {
        "seconds": outcome.seconds,
        "replies_per_second": len(replies) / outcome.seconds,
        **health(outcome.judgments, lengths),
    }


def unasked(prompts: Sequence[RankedPrompt], model: Path, policy: Policy) -> dict[str, dict[str, float]]:
    """Return the length of each reply, and its mean log-probability a token, by `reply_id`."""
    replies = judged_replies(list(prompts))
    scores = Scorer(model, policy, TRAIN.micro_batch_tokens).score([(r.messages, r.text) for r in replies])
    return {
        "length": {reply.completion_id: float(len(reply.text)) for reply in replies},
        "likelihood": {r.completion_id: score.mean for r, score in zip(replies, scores, strict=True)},
    }


def rate(prompts: Sequence[RankedPrompt], rewards: Mapping[str, Rewards]) -> dict[str, dict[str, Measure]]:
    """Return the agreement of rewards with people, and how much better those named `expected` agree."""
    rated: dict[str, dict[str, Measure]] = {}
    for name, found in rewards.items():
        quality = judge_quality(prompts, found, parse_rate=None, seed=SEED)
        rated[name] = {measure: quality[measure] for measure in QUALITY}
        if name != "expected":
            difference = paired_difference(prompts, rewards["expected"], found, seed=SEED)
            rated[name]["difference"] = difference
    return rated


def measure(
    prompts: Sequence[RankedPrompt], recipe: BaseRecipe, judges: Mapping[str, Judge], model: Path, parts: int
) -> dict[str, Any]:
    """Return every figure of one model.

    Raises:
        UnequalError: The methods have not judged the same replies.
    """
    replies = judged_replies(list(prompts))
    outcomes = judge_in_turns(
        recipe, judges, model, [judged_replies(list(prompts[part::parts])) for part in range(parts)]
    )
    check_same(replies, judges, outcomes)
    rewards: dict[str, Rewards] = {name: mean_rewards(o.judgments) for name, o in outcomes.items()}
    rewards |= unasked(prompts, model, recipe.policy)
    return {
        "cost": {name: cost(outcome, replies) for name, outcome in outcomes.items()},
        "quality": rate(prompts, rewards),
        "rewards": rewards,
    }


def main() -> None:
    """Measure what the command line asks for; exits with 1 where the methods differ in what they judged."""
    options = _parser().parse_args()
    plan = QUICK if options.quick else FULL
    steps = plan.steps if options.eft is None else options.eft
    if not (options.data / FILE).is_file():
        raise SystemExit(f"{options.data / FILE} is missing; --data takes the directory that holds it")
    judges, recipe = methods(plan.max_new_tokens), BaseRecipe(seed=SEED)
    try:
        model = find_model(options.model).materialise()
        chat = load_chat(model, recipe.policy)
    except SelfAlignError as error:
        raise SystemExit(str(error)) from None
    ranked, _ = read_ranked(str(options.data / FILE), language=None)
    context = read_json(model / "config.json")["max_position_embeddings"]
    room = min(plan.max_length, context) - plan.max_new_tokens
    prompts, others = draw(ranked, plan.replies, lambda prompt: _longest(prompt, judges, chat) <= room, SEED)
    setting = _setting(options.model, recipe, judges, prompts)
    console = Console()
    console.print("\n".join(f"{name}: {value}" for name, value in setting.items()), markup=False)
    console.print(f"\n{LEGEND}", highlight=False)
    if options.quick:
        console.print("\nQuick: too few and too short for its figures to be quoted.")
    groups: list[dict[str, Any]] = []

    def show(title: str, path: Path, training: Mapping[str, Any] | None) -> None:
        try:
            with console.status(title):
                figures = measure(prompts, recipe, judges, path, plan.parts)
        except UnequalError as error:
            raise SystemExit(f"{title}: {error}; no time is shown") from None
        console.print()
        console.print(cost_table(title, figures["cost"]), quality_table(figures["quality"]))
        groups.append({"model": title, "training": training, **figures})
        if options.json is not None:
            text = json.dumps({"setting": setting, "groups": groups}, indent=2)
            options.json.write_text(f"{text}\n", encoding="utf-8")

    show("the model as it is", model, None)
    if steps:
        with TemporaryDirectory() as folder:
            rubric = judges["expected"].rubric
            with console.status("training"):
                trained, training = train_judge(
                    model, recipe.policy, others, chat, rubric, steps, Path(folder)
                )
            console.print(f"\n{told(training)}", highlight=False)
            show("the model after EFT", trained, training)


def _longest(prompt: RankedPrompt, judges: Mapping[str, Judge], chat: Chat) -> int:
    """Return the tokens of the longest judge prompt of a prompt's replies."""
    rubrics = [load_rubric(judge.rubric) for judge in judges.values()]
    return max(
        len(chat.prompt_ids(judge_messages(rubric, prompt.messages, reply.text)))
        for rubric in rubrics
        for reply in prompt.replies
    )


def _setting(
    model: str, recipe: BaseRecipe, judges: Mapping[str, Judge], prompts: Sequence[RankedPrompt]
) -> dict[str, str]:
    """Return what the figures depend on, by name."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
    device = pick_device(recipe.policy)
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    sampled, bare, engine = judges["sampled"], judges["bare scores"], recipe.engine
    return {
        "versions": f"selfalign {__version__}, {versions}, Python {platform.python_version()}",
        "machine": f"{processor}, {torch.get_num_threads()} threads; runs on {device}",
        "model": f"{model}, {compute_dtype(recipe.policy, device)}",
        "expected": f"rubric {judges['expected'].rubric}, one forward pass, nothing decoded",
        "sampled": f"rubric {sampled.rubric}, {sampled.samples} replies of up to "
        f"{sampled.sampling.max_new_tokens} tokens, temperature {sampled.sampling.temperature}, top-p "
        f"{sampled.sampling.top_p}; at most {engine.batch_size} sequences and "
        f"{engine.batch_tokens} tokens at once",
        "bare scores": f"rubric {bare.rubric}, {bare.samples} replies of up to "
        f"{bare.sampling.max_new_tokens} tokens that begin with {bare.reply_start!r}",
        "judged": f"{sum(len(prompt.replies) for prompt in prompts)} replies to {len(prompts)} prompts of "
        f"{Path(FILE).name}, drawn with seed {SEED}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help=f"directory that holds {FILE}"
    )
    parser.add_argument("--quick", action="store_true", help="few replies, short rationales, no training")
    parser.add_argument(
        "--eft", type=int, metavar="N", help="steps of training; 45 if not given, with --quick 0: none"
    )
    parser.add_argument(
        "--model", default=EMBEDDED, help="name or directory of the model; the embedded one otherwise"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and figures there")
    return parser


if __name__ == "__main__":
    main()
