"""Preference pairs made elsewhere, as the pairs of an iteration."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.data import read_pairs
from selfalign.errors import DataError
from selfalign.pairs import PairFigures, PairSelection
from selfalign.records import PreferencePair, Prompt
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import write_rows
from selfalign.stages.base import base_model
from selfalign.stages.data import DataSets, said
from selfalign.stages.elsewhere import content_or_absent, foreseen, not_held_out, token_counter

VERSION = 1


def import_pairs(run: Run[SelfRewardingRecipe], iteration: int, data: DataSets) -> tuple[Artifact, Artifact]:
    """Read the pairs of an iteration, and their prompts.

    Reads:
        data/held_out.jsonl
    Writes:
        iteration-<t>/pairs.jsonl, iteration-<t>/prompts.jsonl

    Returns:
        The prompts and the pairs.

    Raises:
        DataError: The file is missing or malformed, or no pair is left.
    """
    location = str(run.recipe.imports.of("pairs", iteration))
    base = base_model(run)
    stage = Stage(
        name=f"iteration-{iteration}/pairs",
        version=VERSION,
        outputs=("pairs.jsonl", "prompts.jsonl"),
        settings={"from": content_or_absent(location)},
        inputs={"held_out": data.held_out, "tokenizer": base},
    )
    stage = foreseen(
        run, stage, lambda: (p.chosen + p.rejected for p in read_pairs(location, len, Counter()))
    )

    def body(work: Work) -> dict[str, Any]:
        made = PairFigures()
        prompts: dict[str, Prompt] = {}
        usable = not_held_out(data.held_out, made.dropped)
        count = token_counter(run.recipe.policy, base)

        def pairs() -> Iterator[PreferencePair]:
            for pair in read_pairs(location, count, made.dropped):
                if usable(pair.messages):
                    prompts.setdefault(pair.prompt_id, Prompt.of(pair.messages, Path(location).name))
                    made.add(PairSelection([pair], Counter()))
                    yield pair

        if not write_rows(work.output("pairs.jsonl"), pairs()):
            raise DataError(f"no pair can be used ({said(made.dropped)}); give other ones", path=location)
        write_rows(work.output("prompts.jsonl"), prompts.values())
        counts = {"rows": made.pairs, "tokens": made.tokens, **made.health()}
        return {**counts, "prompts": {"rows": len(prompts)}, "from": location}

    pairs = run.do(stage, body)
    return pairs.sibling("prompts.jsonl"), pairs
