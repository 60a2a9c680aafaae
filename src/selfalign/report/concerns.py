"""What a reader of the report should know before believing it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfalign.report.read import Manifest
from selfalign.report.text import share

MOST_GROWTH = 0.25
MOST_CHOSEN_LONGER = 0.75


@dataclass(frozen=True)
class Concern:
    """A warning and where it holds."""

    where: str
    message: str


def concerns(stages: Mapping[str, Manifest], iterations: Sequence[int]) -> list[Concern]:
    """Return the warnings that the stages gave, then those that follow from their figures.

    Args:
        stages: Manifests of the finished stages, in the order to tell them.
        iterations: Numbers of the iterations.

    Source: the rules and their bounds are our choice, after a known way in which a model that rewards itself
    goes wrong: answers that grow. Judges of length or of one score are told of by the stages themselves.
    """
    return [
        *given(stages),
        *_growth(stages, iterations),
        *_longer_chosen(stages, iterations),
    ]


def given(stages: Mapping[str, Manifest]) -> Iterator[Concern]:
    """Yield the warnings that the stages gave."""
    for stage, manifest in stages.items():
        yield from (Concern(stage, message) for message in manifest["warnings"])


def grouped(concerns: Iterable[Concern]) -> dict[str, list[str]]:
    """Return where each warning holds, in the order in which the warnings were first given."""
    places: dict[str, list[str]] = {}
    for concern in concerns:
        places.setdefault(concern.message, []).append(concern.where)
    return places


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
