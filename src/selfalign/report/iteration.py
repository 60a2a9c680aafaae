"""What the report shows of one iteration of self-rewarding: each of its big files is read once."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from selfalign.records import Completion, Prompt
from selfalign.report import dropped
from selfalign.report.problems import Problems
from selfalign.report.read import Manifest
from selfalign.report.sample import (
    DrawnPairs,
    Judged,
    ShownPair,
    draw_pairs,
    read_judgments,
    shown_pairs,
    token_counts,
)
from selfalign.seeds import derive_seed

SHARE_OF_DROPPED = 0.25
"""Share of the bytes of an iteration that examples of what was dropped may take."""


@dataclass(frozen=True)
class IterationSample:
    """An iteration as far as its stages are finished; what is not is empty or `None`."""

    lengths: Counter[int] = field(default_factory=Counter)
    """Candidates by their tokens."""
    judged: Judged | None = None
    pairs: DrawnPairs | None = None
    shown: tuple[ShownPair, ...] = ()
    filters: tuple[dropped.Filter, ...] = ()


def sample_iteration(
    directory: Path,
    stages: Mapping[str, Manifest],
    recipe: Mapping[str, Any],
    most_bytes: int,
    problems: Problems,
) -> IterationSample:
    """Read what an iteration left.

    Args:
        directory: Its directory.
        stages: Manifests of all finished stages of the run; files of others are not read.
        recipe: The resolved recipe.
        most_bytes: Size of all shown text as HTML, at most.
        problems: Told of what can't be read.
    """

    def done(stage: str) -> bool:
        return f"{directory.name}/{stage}" in stages

    pairs = draw_pairs(directory / "pairs.jsonl", problems) if done("pairs") else None
    without = (
        {} if pairs is None else dropped.prompts_without(directory / "prompts.jsonl", pairs.prompts, problems)
    )
    lengths: Counter[int] = Counter()
    theirs: list[Completion] = []
    if done("candidates"):
        rows = problems.rows(directory / "candidates.jsonl", Completion)
        lengths = token_counts(_keeping(rows, without, theirs))
    wanted = {row.completion_id for row in theirs}
    wanted |= {key for pair in (pairs.drawn if pairs else ()) for key in (pair.chosen_id, pair.rejected_id)}
    judged = read_judgments(directory / "judgments.jsonl", wanted, problems) if done("judgments") else None
    examples = {}
    if pairs is not None:
        what = f"{directory.name}: examples of prompts without a pair"
        given = judged.of if judged else {}
        rules = problems.attempt(what, _rules, recipe, directory.name)
        if rules is not None:
            examples = problems.attempt(what, dropped.unpaired, without.values(), theirs, given, rules) or {}
    own = int(SHARE_OF_DROPPED * most_bytes)
    shown = () if pairs is None else shown_pairs(pairs.drawn, judged or Judged(), most_bytes=most_bytes - own)
    what = f"{directory.name}: what was dropped"
    filters = problems.attempt(
        what, _filters, directory, stages, recipe, examples, judged, own // 3, problems
    )
    return IterationSample(lengths, judged, pairs, shown, tuple(filters or ()))


def _keeping(
    rows: Iterator[Completion], prompts: Mapping[str, Prompt], kept: list[Completion]
) -> Iterator[Completion]:
    """Pass rows on and keep those of some prompts."""
    for row in rows:
        if row.prompt_id in prompts:
            kept.append(row)
        yield row


def _rules(recipe: Mapping[str, Any], directory: str) -> dropped.PairRules:
    settings = recipe["pairs"]
    names = ("strategy", "min_margin", "keep_truncated", "near_best", "length_cost")
    seed = derive_seed(recipe["seed"], f"{directory}/pairs")
    return dropped.PairRules(**{name: settings[name] for name in names}, seed=seed)


def _filters(
    directory: Path,
    stages: Mapping[str, Manifest],
    recipe: Mapping[str, Any],
    unpaired: Mapping[str, list[dropped.Example]],
    judged: Judged | None,
    most_bytes: int,
    problems: Problems,
) -> list[dropped.Filter]:
    """Return what the stages of an iteration dropped, in their order."""
    filters: list[dropped.Filter] = []
    names = ("prompts", "candidates", "judgments", "pairs")
    figures = {name: stages.get(f"{directory.name}/{name}", {}).get("figures") or {} for name in names}
    make = partial(dropped.filter_of, most_bytes=most_bytes)
    filters += [  # of what was made elsewhere, the rows that could not be used are not kept
        make(f"{name.capitalize()} that were read", counted["dropped"], {})
        for name, counted in figures.items()
        if name != "judgments" and "from" in counted
    ]
    if (counted := figures["prompts"]) and "from" not in counted:
        accepted = {row.prompt_id for row in problems.rows(directory / "prompts.jsonl", Prompt)}
        bounds = {name: recipe["prompts"][name] for name in ("min_words", "max_words")}
        refused = {}
        if sum(counted["dropped"].values()):
            refused = dropped.refused_prompts(
                directory / "generations.jsonl", accepted, len(accepted), bounds, problems
            )
        filters.append(make("Generated prompts", counted["dropped"], refused))
    if (counted := figures["judgments"]) and judged is not None:
        examples = dropped.unscored(judged.unscored)
        filters.append(make("Judgments without a score", counted["unscored"], examples))
    if (counted := figures["pairs"]) and "from" not in counted:
        filters.append(make("Prompts without a pair", counted["dropped"], unpaired))
    return filters
