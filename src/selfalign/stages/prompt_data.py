"""Reading prompts to contrast, and holding some out."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from selfalign.config import RLCDRecipe
from selfalign.data import read_prompts as read_prompt_file
from selfalign.eft import normalised
from selfalign.errors import DataError
from selfalign.records import Prompt
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import write_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import about_tokens, plain
from selfalign.stages.data import content_of, location_of, said

VERSION = 1


@dataclass(frozen=True)
class PromptSets:
    """Prompts to learn from and prompts held out; none is in both."""

    train: Artifact
    held_out: Artifact


def read_prompts(run: Run[RLCDRecipe]) -> PromptSets:
    """Read prompts, drop repeated ones, and hold some out by a seeded draw.

    Writes:
        data/prompts.jsonl, data/held_out.jsonl

    Raises:
        DataError: Fewer than two prompts are left.
    """
    recipe = run.recipe
    data = recipe.data
    contents = [content_of(path, kind) for path in data.paths for kind in _kinds(path)]
    settings = {**plain(data), "paths": contents, "seed": recipe.seed}
    stage = Stage("data/read", VERSION, ("prompts.jsonl", "held_out.jsonl"), settings)
    if run.planning and run.inspect(stage).state != "done":
        stage = replace(stage, expected=_figures(*_read(recipe)))

    def body(work: Work) -> dict[str, Any]:
        train, held_out, dropped = _read(recipe)
        write_rows(work.output("prompts.jsonl"), train)
        write_rows(work.output("held_out.jsonl"), held_out)
        return _figures(train, held_out, dropped)

    prompts = run.do(stage, body)
    return PromptSets(prompts, prompts.sibling("held_out.jsonl"))


def _read(recipe: RLCDRecipe) -> tuple[list[Prompt], list[Prompt], Counter[str]]:
    data = recipe.data
    kept: dict[str, Prompt] = {}
    dropped: Counter[str] = Counter()
    for path in data.paths:
        for kind in _kinds(path):
            found, lost = read_prompt_file(location_of(path, kind), data.format, language=data.language)
            dropped += lost
            for prompt in found:
                if kept.setdefault(normalised(prompt.messages), prompt) is not prompt:
                    dropped["duplicate_prompt"] += 1
    prompts = sorted(kept.values(), key=lambda p: derive_seed(recipe.seed, "split", p.prompt_id))
    if data.limit is not None and len(prompts) > data.limit:
        dropped["over_limit"] += len(prompts) - data.limit
        prompts = prompts[: data.limit]
    if len(prompts) < 2:
        raise DataError(f"{len(prompts)} prompts ({said(dropped)}); give more", path=", ".join(data.paths))
    held_out = min(len(prompts) - 1, max(1, round(data.held_out_fraction * len(prompts))))
    return prompts[held_out:], prompts[:held_out], dropped


def _kinds(path: str) -> tuple[str, ...]:
    return ("ift", "ranked") if path == "starter" else ("",)


def _figures(train: list[Prompt], held_out: list[Prompt], dropped: Counter[str]) -> dict[str, Any]:
    def of(prompts: list[Prompt]) -> dict[str, int]:
        texts = (message.content for prompt in prompts for message in prompt.messages)
        return {"rows": len(prompts), "tokens": about_tokens(texts)}

    return {**of(train), "held_out": of(held_out), "dropped": dict(dropped)}
