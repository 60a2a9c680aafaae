"""Reading the user's data into records, once, and splitting it by prompt."""

from collections import Counter
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.data import read_ift, read_ranked
from selfalign.eft import RankedSplit, split_ranked
from selfalign.errors import DataError
from selfalign.records import RankedPrompt, SFTExample
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_file, write_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import about_tokens, plain

VERSION = 1


@dataclass(frozen=True)
class DataSets:
    """The three row files that a run starts from; no prompt is in two of them."""

    ift: Artifact
    ranked: Artifact
    """Ranked prompts for EFT."""
    held_out: Artifact
    """Ranked prompts to measure the judge on."""


@dataclass(frozen=True)
class _Read:
    ift: list[SFTExample]
    ift_dropped: Counter[str]
    split: RankedSplit
    ranked_dropped: Counter[str]


def read_data(run: Run[SelfRewardingRecipe]) -> DataSets:
    """Read IFT data and ranked data, drop and count what can't be used, and split the ranked prompts.

    Writes:
        data/ift.jsonl, data/ranked.jsonl, data/held_out.jsonl
    """
    recipe = run.recipe
    settings = {
        "ift": plain(recipe.data.ift) | {"path": content_of(recipe.data.ift.path, "ift")},
        "ranked": plain(recipe.data.ranked)
        | {"paths": [content_of(path, "ranked") for path in recipe.data.ranked.paths]},
        "seed": recipe.seed,
    }
    stage = Stage("data/read", VERSION, ("ift.jsonl", "ranked.jsonl", "held_out.jsonl"), settings)
    if run.planning and run.inspect(stage).state != "done":
        # Reading takes seconds, so a plan reads too: its figures are true, and bad data shows early.
        stage = replace(stage, expected=_figures(_read(recipe)))

    def body(work: Work) -> dict[str, Any]:
        read = _read(recipe)
        write_rows(work.output("ift.jsonl"), read.ift)
        write_rows(work.output("ranked.jsonl"), read.split.train)
        write_rows(work.output("held_out.jsonl"), read.split.evaluation)
        return _figures(read)

    ift = run.do(stage, body)
    return DataSets(ift, ift.sibling("ranked.jsonl"), ift.sibling("held_out.jsonl"))


def _read(recipe: SelfRewardingRecipe) -> _Read:
    data = recipe.data
    ift, ift_dropped = read_ift(
        location_of(data.ift.path, "ift"),
        data.ift.format,
        selection=data.ift.selection,
        language=data.ift.language,
        limit=data.ift.limit,
    )
    if not ift:
        raise DataError(
            f"no example can be used ({said(ift_dropped)}); relax data.ift.selection or data.ift.language",
            path=data.ift.path,
        )
    ranked: list[RankedPrompt] = []
    dropped: Counter[str] = Counter()
    for path in data.ranked.paths:
        found, lost = read_ranked(
            location_of(path, "ranked"), data.ranked.format, language=data.ranked.language
        )
        ranked += found
        dropped += lost
    split = split_ranked(
        ranked,
        [example.messages for example in ift],
        evaluation_fraction=data.ranked.evaluation_fraction,
        limit=data.ranked.limit,
        seed=derive_seed(recipe.seed, "split"),
    )
    if not split.train or not split.evaluation:
        raise DataError(
            f"{len(ranked)} ranked prompts leave {len(split.train)} to learn judging from and "
            f"{len(split.evaluation)} to measure it on ({said(dropped + split.dropped)}); give more ranked "
            "data, or a smaller data.ift.limit where both come from one file",
            path=", ".join(data.ranked.paths),
        )
    return _Read(ift, ift_dropped, split, dropped)


def _figures(read: _Read) -> dict[str, Any]:
    return {
        "rows": len(read.ift),
        "tokens": about_tokens(e.completion + "".join(m.content for m in e.messages) for e in read.ift),
        "dropped": dict(read.ift_dropped),
        "ranked": _ranked_figures(read.split.train),
        "held_out": _ranked_figures(read.split.evaluation),
        "ranked_dropped": dict(read.ranked_dropped + read.split.dropped),
    }


def _ranked_figures(prompts: list[RankedPrompt]) -> dict[str, int]:
    replies = [reply.text for prompt in prompts for reply in prompt.replies]
    return {"rows": len(prompts), "replies": len(replies), "tokens": about_tokens(replies)}


def location_of(path: str, kind: str) -> str:
    """Return the file behind a path of the recipe; `starter` is one of the embedded files, by kind."""
    return str(resources.files("selfalign") / "starter" / f"{kind}.jsonl") if path == "starter" else path


def content_of(path: str, kind: str) -> str:
    """Return what a location's content hashes to, so that a moved file is the same file.

    Args:
        path: A file, a hub location (returned as it is), or `starter`.
        kind: Which starter file is meant: `ift` or `ranked`.
    """
    location = Path(location_of(path, kind))
    return hash_file(location) if location.is_file() else path


def said(dropped: Counter[str]) -> str:
    """Return counts by reason in words."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none dropped"
