"""What a reader of the report should know before believing it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfalign.report.read import Manifest, ModelRow
from selfalign.report.text import share

MOST_OF_ONE_SCORE = 0.8
MOST_GROWTH = 0.25
MOST_CHOSEN_LONGER = 0.75


@dataclass(frozen=True)
class Concern:
    """A warning and where it holds."""

    where: str
    message: str


def concerns(
    stages: Mapping[str, Manifest], models: Sequence[ModelRow], iterations: Sequence[int]
) -> list[Concern]:
    """Return the warnings that the stages gave, then those that follow from their figures.

    Args:
        stages: Manifests of the finished stages, in the order to tell them.
        models: The models measured so far, length as a judge last.
        iterations: Numbers of the iterations.

    Source: the four rules and their bounds are our choice, after the known ways in which a model that
    rewards itself goes wrong: a judge of length, a judge of one score, and answers that grow.
    """
    return [
        *given(stages),
        *_against_length(models),
        *one_score(stages),
        *_growth(stages, iterations),
        *_longer_chosen(stages, iterations),
    ]


def given(stages: Mapping[str, Manifest]) -> Iterator[Concern]:
    """Yield the warnings that the stages gave."""
    for stage, manifest in stages.items():
        yield from (Concern(stage, message) for message in manifest["warnings"])


def _against_length(models: Sequence[ModelRow]) -> Iterator[Concern]:
    if not models:
        return
    *judges, baseline = models
    length = baseline.quality["pairwise_accuracy"]
    below, unproven = [], []
    for model in judges:
        accuracy = model.quality["pairwise_accuracy"]
        if accuracy["value"] is None or length["value"] is None:
            continue
        if accuracy["value"] <= length["value"]:
            below.append(model.name)
        elif accuracy["low"] is None or length["high"] is None or accuracy["low"] <= length["high"]:
            unproven.append(model.name)
    if below:
        yield Concern(
            ", ".join(below),
            "pairwise accuracy is not above that of plain length: counting characters would judge as well",
        )
    if unproven:
        yield Concern(
            ", ".join(unproven),
            "not shown to judge better than plain length: the intervals of their pairwise accuracies overlap",
        )


def one_score(stages: Mapping[str, Manifest]) -> Iterator[Concern]:
    """Yield a warning for each judging stage that gave nearly always the same score."""
    for stage, manifest in stages.items():
        scores = manifest["figures"].get("scores", {})
        # EFT examples state scores too, but they are what was kept, not what the judge said.
        if "judgments" not in manifest["figures"] or not scores:
            continue
        score, most = max(scores.items(), key=lambda item: item[1])
        if most > MOST_OF_ONE_SCORE * sum(scores.values()):
            said = share(most / sum(scores.values()))
            yield Concern(stage, f"{said} of the scores are {score}: such a judge hardly tells replies apart")


def _growth(stages: Mapping[str, Manifest], iterations: Sequence[int]) -> Iterator[Concern]:
    for number in iterations:
        before = stages.get(f"iteration-{number - 1}/candidates")
        now = stages.get(f"iteration-{number}/candidates")
        if before is None or now is None:
            continue
        old, new = before["figures"]["mean_tokens"], now["figures"]["mean_tokens"]
        if new > (1 + MOST_GROWTH) * old:
            yield Concern(
                f"iteration-{number}",
                f"candidates grew from {old:.0f} to {new:.0f} tokens on average since the iteration before",
            )


def _longer_chosen(stages: Mapping[str, Manifest], iterations: Sequence[int]) -> Iterator[Concern]:
    for number in iterations:
        pairs = stages.get(f"iteration-{number}/pairs")
        longer = pairs["figures"]["chosen_longer"] if pairs else None
        if longer is not None and longer > MOST_CHOSEN_LONGER:
            yield Concern(
                f"iteration-{number}",
                f"the chosen text is the longer one in {share(longer)} of the pairs, which teaches length",
            )
