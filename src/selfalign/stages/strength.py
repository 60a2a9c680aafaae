"""How much the model follows system messages at all, before anything is spent on training."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from selfalign.config import RLCDRecipe
from selfalign.engines import close_engine
from selfalign.evaluation.bootstrap import mean_interval
from selfalign.records import Contrast, Messages, PreferencePair, Record
from selfalign.rlcd import OwnSystem, under_principle
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows
from selfalign.seeds import derive_seed

VERSION = 1


class Strength(Record):
    """Length-normalised log-probability gaps of one pair: chosen minus rejected, in nats a token."""

    pair_id: str
    group: str
    neutral: float
    """Under the prompt alone."""
    positive: float
    """Under the positive principle."""
    negative: float
    """Under the negative principle."""

    @property
    def contrast(self) -> float:
        """Return how far the principles move the gap; near 0 the model ignores them."""
        return self.positive - self.negative


def measure_strength(
    run: Run[RLCDRecipe], policy: Artifact, contrasts: Artifact, pairs: Artifact
) -> Artifact:
    """Measure the contrast of a sample of the pairs and warn where there is none.

    Reads:
        contrast/contrasts.jsonl, contrast/pairs.jsonl
    Writes:
        contrast/strength.jsonl
    """
    recipe = run.recipe
    settings = recipe.contrast
    stage = Stage(
        name="contrast/strength",
        version=VERSION,
        outputs=("strength.jsonl",),
        settings={
            "pairs": settings.strength_pairs,
            "own_system": settings.own_system,
            "precision": recipe.policy.precision,
            "chat_template": recipe.policy.chat_template,
            "seed": recipe.seed,
        },
        inputs={"policy": policy, "contrasts": contrasts, "pairs": pairs},
        expected={"rows": min(settings.strength_pairs, pairs.rows)},
    )

    def body(work: Work) -> dict[str, Any]:
        from selfalign.training.scoring import Scorer

        by_prompt = defaultdict(list)
        for contrast in read_rows(contrasts.path, Contrast):
            by_prompt[contrast.prompt_id].append(contrast)
        drawn = sorted(
            read_rows(pairs.path, PreferencePair),
            key=lambda p: derive_seed(recipe.seed, work.stage, p.pair_id),
        )[: settings.strength_pairs]
        close_engine()
        scorer = Scorer(policy.path, recipe.policy, recipe.dpo.train.micro_batch_tokens)

        def measure(shard: Sequence[PreferencePair]) -> Iterator[Strength]:
            contrasts = [
                next(c for c in by_prompt[pair.prompt_id] if c.contrast_id == pair.contrast_id)
                for pair in shard
            ]
            scores = iter(
                scorer.score(
                    [
                        (messages, text)
                        for pair, contrast in zip(shard, contrasts, strict=True)
                        for messages in _contexts(pair, contrast, settings.own_system)
                        for text in (pair.chosen, pair.rejected)
                    ]
                )
            )
            for pair, contrast in zip(shard, contrasts, strict=True):
                neutral, positive, negative = (next(scores).mean - next(scores).mean for _ in range(3))
                yield Strength(
                    pair_id=pair.pair_id,
                    group=f"{contrast.language}/{contrast.group}",
                    neutral=neutral,
                    positive=positive,
                    negative=negative,
                )

        work.map_rows(
            "strength.jsonl",
            drawn,
            measure,
            key=lambda pair: pair.pair_id,
            record=Strength,
            row_key=lambda row: row.pair_id,
        )
        return _figures(work, derive_seed(recipe.seed, "bootstrap"))

    return run.do(stage, body)


def _contexts(pair: PreferencePair, contrast: Contrast, own_system: OwnSystem) -> tuple[Messages, ...]:
    """Return the prompt alone, under the positive principle and under the negative one."""
    sides = (contrast.positive, contrast.negative)
    return pair.messages, *(under_principle(contrast.messages, text, own_system) for text in sides)


def _figures(work: Work, seed: int) -> dict[str, Any]:
    rows = list(read_rows(work.output("strength.jsonl"), Strength))
    groups = defaultdict(list)
    for row in rows:
        groups[row.group].append(row.contrast)
    overall = mean_interval([row.contrast for row in rows], seed=seed)
    if overall["low"] is None or overall["low"] <= 0:
        work.warn(
            "the pairs show no contrast: the model's preference between the two completions does not depend "
            "on the system message; training on them teaches little. Try an instruct model or sampling"
        )
    return {
        "rows": len(rows),
        "contrast": overall,
        "contrast_by_group": {
            name: mean_interval(values, seed=seed) for name, values in sorted(groups.items())
        },
        "neutral_gap": mean_interval([row.neutral for row in rows], seed=seed),
    }
