"""What a reader of an RLCD run's report should know before believing it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from selfalign.report.concerns import MOST_CHOSEN_LONGER, MOST_GROWTH, Concern, given
from selfalign.report.effects import Measure
from selfalign.report.read import Manifest
from selfalign.report.rlcd_sample import Lengths
from selfalign.report.text import share

MOST_SAME = 0.5


@dataclass(frozen=True)
class Balance:
    """What went into pairing and what came out; both are contrasts, held-out ones included."""

    contrasts: int
    kept: int
    dropped: int

    @property
    def holds(self) -> bool:
        """Return whether every contrast is accounted for."""
        return self.contrasts == self.kept + self.dropped


def balance_of(stages: Mapping[str, Manifest]) -> Balance | None:
    """Return the balance of the pairing, from counts of different stages; `None` until pairs are made."""
    completions, pairs = stages.get("contrast/completions"), stages.get("contrast/pairs")
    if completions is None or pairs is None:
        return None
    figures = pairs["figures"]
    return Balance(
        contrasts=completions["figures"]["rows"] // 2,  # a completion for each side
        kept=figures["rows"] + figures["held_out_pairs"]["rows"],
        dropped=sum(n for outcome, n in figures["outcomes"].items() if outcome != "kept"),
    )


def rlcd_concerns(
    stages: Mapping[str, Manifest],
    preference: Mapping[str, Measure] | None,
    outputs: Mapping[str, Measure] | None,
    lengths: Mapping[str, Lengths],
) -> list[Concern]:
    """Return the warnings that the stages gave, then those that follow from what was measured.

    Args:
        stages: Manifests of the finished stages, in the order to tell them.
        preference: What the preference of held-out pairs came to; `None` if not measured.
        outputs: What the answers to held-out prompts came to; `None` if not measured.
        lengths: Lengths of the pairs to train on, by group; empty if none are made.

    Source: the rules and their bounds are our choice: system messages that are not followed, pairs that
    teach length, and a training without a proven effect.
    """
    return [
        *given(stages),
        *_lost(balance_of(stages)),
        *_same(stages.get("contrast/pairs")),
        *_longer(lengths),
        *(() if preference is None else _unproven(preference["implicit_reward_accuracy"])),
        *(() if outputs is None else _growth(outputs)),
    ]


def _lost(balance: Balance | None) -> Iterator[Concern]:
    if balance is not None and not balance.holds:
        yield Concern("contrast", "kept and dropped contrasts do not add up: the counts below are wrong")


def _same(pairs: Manifest | None) -> Iterator[Concern]:
    outcomes = pairs["figures"]["outcomes"] if pairs else {}
    same = outcomes.get("identical", 0) + outcomes.get("near_identical", 0)
    if same > MOST_SAME * sum(outcomes.values()):
        said = share(same / sum(outcomes.values()))
        yield Concern(
            "contrast",
            f"both sides are (nearly) the same in {said} of the contrasts: system messages do little",
        )


def _longer(lengths: Mapping[str, Lengths]) -> Iterator[Concern]:
    longer, every = (sum(getattr(each, name) for each in lengths.values()) for name in ("longer", "pairs"))
    if longer > MOST_CHOSEN_LONGER * every:
        yield Concern(
            "contrast",
            f"the chosen text is the longer one in {share(longer / every)} of pairs, which teaches length",
        )


def _unproven(accuracy: Measure) -> Iterator[Concern]:
    if accuracy["value"] is None:
        return
    if accuracy["high"] is not None and accuracy["high"] < 0.5:
        yield Concern("rlcd", "training moved held-out pairs the wrong way: the negative side gained")
    elif accuracy["low"] is None or accuracy["low"] <= 0.5:
        yield Concern(
            "rlcd",
            "no effect is shown on held-out pairs: the interval of the implicit-reward accuracy reaches 50 %",
        )


def _growth(outputs: Mapping[str, Measure]) -> Iterator[Concern]:
    before, after = outputs["tokens_before"]["value"], outputs["tokens_after"]["value"]
    if before is not None and after is not None and after > (1 + MOST_GROWTH) * before:
        yield Concern("rlcd", f"answers grew from {before:.0f} to {after:.0f} tokens on average")
