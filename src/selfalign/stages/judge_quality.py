"""Judge quality: how well a model, as a judge, follows the human order of replies in any ranked data."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign.config import EvaluationRecipe
from selfalign.data import read_ranked
from selfalign.engines import open_engine
from selfalign.evaluation.judge_quality import (
    MEASURES,
    Measure,
    judge_quality,
    length_baseline,
    no_better_than,
    paired_difference,
)
from selfalign.evaluation.results import TaskResult
from selfalign.judging import mean_rewards
from selfalign.records import Judgment, RankedPrompt, Record
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_json, read_rows, write_json
from selfalign.seeds import derive_seed
from selfalign.stages.common import plain
from selfalign.stages.data import content_of, location_of
from selfalign.stages.eft import judged_replies
from selfalign.stages.grader import Judged
from selfalign.stages.head_to_head import held_out_file
from selfalign.stages.judge import judge, judge_cost, judge_outputs, judge_settings

VERSION = 1
JUDGMENTS = "judge_quality_judgments.jsonl"
LIKELIHOODS = "judge_quality_likelihoods.jsonl"


class Likelihood(Record):
    """How likely the model finds a human reply."""

    reply_id: str
    mean_logp: float | None
    """Mean log-probability a token, end of turn included; `None` where it doesn't fit into the context."""


def judge_quality_problem(recipe: EvaluationRecipe) -> str | None:
    """Say what measuring judges lacks here; `None` if it can be run."""
    if recipe.ranked is None:
        if recipe.of_run is None:
            return "needs ranked replies: give ranked.paths='[FILE]', or a run that held some out"
        file = held_out_file(recipe)
        if not file.is_file():
            return f"{file} is missing: the run holds out no prompts yet; or give ranked.paths='[FILE]'"
        with file.open(encoding="utf-8") as lines:
            if '"replies"' not in next(lines, ""):
                return "this run held out prompts without ranked replies: give ranked.paths='[FILE]'"
        return None
    missing = [path for path in recipe.ranked.paths if _is_missing(path)]
    return f"{missing[0]} is missing; ranked.paths names it" if missing else None


def measure_judge_quality(run: Run[EvaluationRecipe], name: str, model: Artifact) -> Artifact:
    """Have a model judge human-ranked replies and compare it with people, with length and with likelihood.

    Reads:
        the ranked data of the recipe, or the run's data/held_out.jsonl
    Writes:
        <name>/judge_quality.json, judge_quality_judgments.jsonl, judge_quality_likelihoods.jsonl
    """
    recipe = run.recipe
    asked = recipe.judging.model_copy(update={"model": None, "endpoint": None})
    local = recipe.engine.kind == "transformers"
    ranked = _ranked(recipe)
    replies = judged_replies(ranked)
    stage = Stage(
        name=f"{name}/judge_quality",
        version=VERSION,
        outputs=("judge_quality.json", *judge_outputs(asked, JUDGMENTS), *([LIKELIHOODS] if local else [])),
        settings={"limit": recipe.limit, **judge_settings(run, asked)},
        inputs={"model": model, "ranked": Artifact(run.root, _content(recipe))},
        expected=judge_cost(asked, len(replies)),
    )

    def body(work: Work) -> dict[str, Any]:
        figures = judge(run, work, {"policy": model}, replies, JUDGMENTS, asked)
        rewards = mean_rewards(read_rows(work.output(JUDGMENTS), Judgment))
        likelihoods = _likelihoods(recipe, work, model.path, replies) if local else None
        seed = derive_seed(recipe.seed, "bootstrap")
        result = _result(name, ranked, rewards, likelihoods, figures["parse_rate"], seed)
        write_json(work.output("judge_quality.json"), result.model_dump(mode="json"))
        return {**figures, "score": result.headline["value"]}

    return run.do(stage, body)


def _likelihoods(
    recipe: EvaluationRecipe, work: Work, model: Path, replies: Sequence[Judged]
) -> dict[str, float | None]:
    """Return the mean log-probability of each reply after its prompt, by `reply_id`."""
    from selfalign.engines.local import LocalEngine
    from selfalign.models.load import load_chat

    def score(shard: Sequence[Judged]) -> Iterator[Likelihood]:
        engine = open_engine(recipe.engine, recipe.policy, model)
        assert isinstance(engine, LocalEngine)  # noqa: S101 -- the kind was asked
        chat = load_chat(model, recipe.policy)
        texts = [(chat.prompt_ids(reply.messages), chat.completion_ids(reply.text)) for reply in shard]
        fitting = [len(prompt) + len(text) <= engine.max_length for prompt, text in texts]
        places = [place for place, fits in enumerate(fitting) if fits]
        for reply, fits in zip(shard, fitting, strict=True):
            if not fits:
                yield Likelihood(reply_id=reply.completion_id, mean_logp=None)
        for number, (logp, _) in engine.score([texts[place] for place in places]):
            reply, (_, text) = shard[places[number]], texts[places[number]]
            yield Likelihood(reply_id=reply.completion_id, mean_logp=logp / len(text))

    work.map_rows(
        LIKELIHOODS,
        replies,
        score,
        key=lambda reply: reply.completion_id,
        record=Likelihood,
        row_key=lambda row: row.reply_id,
    )
    return {row.reply_id: row.mean_logp for row in read_rows(work.output(LIKELIHOODS), Likelihood)}


def _result(
    name: str,
    ranked: Sequence[RankedPrompt],
    rewards: Mapping[str, float | None],
    likelihoods: Mapping[str, float | None] | None,
    parse_rate: float | None,
    seed: int,
) -> TaskResult:
    quality = judge_quality(ranked, rewards, parse_rate=parse_rate, seed=seed)
    length = length_baseline(ranked, seed=seed)
    lengths = {reply.reply_id: float(len(reply.text)) for prompt in ranked for reply in prompt.replies}
    measures: dict[str, Measure] = {measure: quality[measure] for measure in MEASURES}
    measures["parse_rate"] = _plain_share(parse_rate, len(rewards))
    measures["length"] = length["pairwise_accuracy"]
    measures["above_length"] = paired_difference(ranked, rewards, lengths, seed=seed)
    if likelihoods is not None:
        likely = judge_quality(ranked, likelihoods, parse_rate=None, seed=seed)
        measures["likelihood"] = likely["pairwise_accuracy"]
        measures["above_likelihood"] = paired_difference(ranked, rewards, likelihoods, seed=seed)
    note = no_better_than(quality, length)
    return TaskResult(
        task="judge_quality",
        model=name,
        metric="pairwise_accuracy",
        measures=measures,
        counts={key: quality[key] for key in ("prompts", "prompts_tied", "pairs", "pairs_unscored")},
        notes=() if note is None else (f"{name}: {note}",),
    )


def _plain_share(value: float | None, n: int) -> Measure:
    reason = "nothing was parsed" if value is None else "a count of judge calls, without an interval"
    return Measure(value=value, low=None, high=None, n=n, reason=reason)


def _ranked(recipe: EvaluationRecipe) -> list[RankedPrompt]:
    """Return the ranked prompts, as many as the limit allows."""
    if recipe.ranked is None:
        return list(read_rows(held_out_file(recipe), RankedPrompt))[: recipe.limit]
    prompts: dict[str, RankedPrompt] = {}
    for path in recipe.ranked.paths:
        found, _ = read_ranked(
            location_of(path, "ranked"), recipe.ranked.format, language=recipe.ranked.language
        )
        for prompt in found:
            prompts.setdefault(prompt.prompt_id, prompt)
    return list(prompts.values())[: recipe.limit]


def _content(recipe: EvaluationRecipe) -> str:
    if recipe.ranked is None:
        return content_of(str(held_out_file(recipe)), "ranked")
    contents = [content_of(path, "ranked") for path in recipe.ranked.paths]
    return hash_json([plain(recipe.ranked) | {"paths": contents}])


def _is_missing(path: str) -> bool:
    return not path.startswith("hub:") and not Path(location_of(path, "ranked")).is_file()
