"""The report's tables, as the words that stand in their cells.

A cell of `None` is unknown: its stage is not finished, or there is nothing to take a mean of. A reason for
dropping that a finished stage does not name has been met 0 times.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from selfalign.report.changes import Change
from selfalign.report.read import MEASURES, Manifest, ModelRow
from selfalign.report.text import share, signed, whole, words_of

UNITS = {"five_best": "replies", "exact_match": "prompts", "spearman": "prompts", "kendall_tau_b": "prompts"}
"""What the measures of judge quality that are not over pairs are over."""


@dataclass(frozen=True)
class Row:
    """A labelled row of a table."""

    label: str
    cells: tuple[str | None, ...]


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Cell:
    """A measure of a model; what is undefined is `None`."""

    value: str | None
    change: str | None = None
    """Against the model before."""
    paired: str | None = None
    """Interval of the change, where both models were measured on the same replies."""
    verdict: str | None = None
    """Which way that interval lies: `gained`, `lost` or `open`."""
    interval: str | None = None
    n: int = 0
    """Pairs, replies or prompts that the measure is over; 0 where it is over none of these."""
    note: int | None = None
    """Number of the note that says why something is undefined."""


@dataclass(frozen=True)
class JudgeTable:
    """Models by measures, and the notes that the cells refer to, counted from 1."""

    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...]


def judge_table(models: Sequence[ModelRow], changes: Mapping[str, Change]) -> JudgeTable:
    """Return the judge quality of the models: a column for each measure, then the parse rate.

    Args:
        models: In the order of training.
        changes: Of the pairwise accuracy against the model before, by the name of the later one.
    """
    notes: dict[str, int] = {}

    def note(reason: str | None) -> int | None:
        return None if reason is None else notes.setdefault(reason, len(notes) + 1)

    rows = []
    before: Mapping[str, Any] = {}
    for model in models:
        quality = model.quality
        earlier = before if model.where else {}  # length is no model after the last one
        cells = [
            Cell(
                value=_two_places(quality[key]["value"]),
                change=_change(earlier.get(key, {}).get("value"), quality[key]["value"]),
                interval=_interval(quality[key]),
                n=quality[key]["n"],
                note=note(quality[key]["reason"]),
            )
            for key, _ in MEASURES
        ]
        if (change := changes.get(model.name)) is not None:
            cells[0] = replace(
                cells[0],
                change=signed(change.value),
                paired=_between(change.low, change.high, signed),
                verdict=change.verdict,
            )
        rate = quality["parse_rate"]
        parsed = Cell(None, note=note("nothing was parsed")) if rate is None else Cell(share(rate))
        rows.append((model.name, (*cells, parsed)))
        before = {} if model.where == "judge" else quality  # no model after a fixed judge is its next version
    return JudgeTable(tuple(rows), tuple(notes))


def iteration_counts(stages: Mapping[str, Manifest], iterations: Sequence[int]) -> list[Group]:
    """Return what the stages of the iterations counted, a column for each iteration."""

    def of(stage: str) -> list[Manifest | None]:
        return [stages.get(f"iteration-{number}/{stage}") for number in iterations]

    prompts, candidates, judgments, pairs = map(of, ("prompts", "candidates", "judgments", "pairs"))
    read = [m if m and "from" in m["figures"] else None for m in pairs]
    made = [m if m and "from" not in m["figures"] else None for m in pairs]
    return [
        Group(
            "Prompts",
            (
                *_read_from(prompts),
                count_row("wanted", prompts, _wanted),
                count_row("accepted", prompts, lambda m: whole(m["figures"]["rows"])),
                *reason_rows("dropped", prompts, "dropped"),
            ),
        ),
        Group(
            "Candidates",
            (
                *_read_from(candidates),
                count_row("sampled", candidates, lambda m: whole(m["figures"]["rows"])),
                *reason_rows("finish reason", candidates, "finish_reasons"),
                count_row(
                    "prompts with identical candidates",
                    candidates,
                    lambda m: whole(m["figures"]["prompts_with_identical_candidates"]),
                ),
            ),
        ),
        judgment_counts(judgments),
        Group(
            "Pairs",
            (
                *_read_from(pairs),
                count_row("kept", pairs, lambda m: whole(m["figures"]["pairs"])),
                *reason_rows("prompts without a pair", made, "dropped"),
                *reason_rows("dropped", read, "dropped"),
                count_row("mean margin", pairs, lambda m: _two_places(m["figures"]["mean_margin"])),
                count_row("chosen is the longer", pairs, lambda m: _share(m["figures"]["chosen_longer"])),
                count_row("mean tokens, chosen", pairs, lambda m: _tenth(m["figures"]["mean_chosen_tokens"])),
                count_row(
                    "mean tokens, rejected", pairs, lambda m: _tenth(m["figures"]["mean_rejected_tokens"])
                ),
                *_without_length_control(pairs),
            ),
        ),
        *_attack_counts([stages.get(f"iteration-{number}/attacks") for number in iterations]),
    ]


def _read_from(manifests: Sequence[Manifest | None]) -> Iterator[Row]:
    """Yield the files that rows were read from, where any were not made by the run."""
    if any(m and "from" in m["figures"] for m in manifests):
        yield count_row("read from", manifests, lambda m: Path(m["figures"].get("from", "–")).name)


def _wanted(prompts: Manifest) -> str | None:
    """Return how many prompts were to be generated, `None` where they were read."""
    number = prompts["parts"].get("prompts.per_iteration")
    return None if number is None else whole(number)


def _without_length_control(pairs: Sequence[Manifest | None]) -> Iterator[Row]:
    """Yield what the pairs would be without length control, where an iteration has any."""
    if not any(m and "uncontrolled" in m["figures"] for m in pairs):
        return

    def of(manifest: Manifest) -> Mapping[str, Any]:
        return manifest["figures"].get("uncontrolled", manifest["figures"])  # type: ignore[no-any-return]

    yield count_row("without length control: kept", pairs, lambda m: whole(of(m)["pairs"]))
    yield count_row(
        "without length control: chosen is the longer", pairs, lambda m: _share(of(m)["chosen_longer"])
    )
    yield count_row(
        "without length control: mean tokens, chosen", pairs, lambda m: _tenth(of(m)["mean_chosen_tokens"])
    )


def _attack_counts(attacks: Sequence[Manifest | None]) -> Iterator[Group]:
    """Yield how the judge took the attacks, if any were tried."""
    names = dict.fromkeys(name for m in attacks if m for name in m["figures"].get("worked", {}))
    if names:
        yield Group(
            "Attacks on the judge",
            (
                count_row("scored", attacks, lambda m: whole(m["figures"]["attacks"])),
                count_row("worked", attacks, lambda m: _share(m["figures"]["attacks_worked"])),
                *(count_row(f"worked: {words_of(name)}", attacks, partial(_worked, name)) for name in names),
            ),
        )


def data_counts(stages: Mapping[str, Manifest]) -> list[Group]:
    """Return what was read from the user's data, in one column."""
    read = [stages.get("data/read")]

    def size(part: str) -> Callable[[Manifest], str]:
        return lambda m: f"{m['figures'][part]['rows']:,} ({m['figures'][part]['replies']:,} replies)"

    return [
        Group(
            "IFT examples",
            (
                count_row("kept", read, lambda m: whole(m["figures"]["rows"])),
                *reason_rows("dropped", read, "dropped"),
            ),
        ),
        Group(
            "Ranked prompts",
            (
                count_row("to learn judging from", read, size("ranked")),
                count_row("held out to measure the judge", read, size("held_out")),
                *reason_rows("dropped", read, "ranked_dropped"),
            ),
        ),
    ]


def eft_counts(stages: Mapping[str, Manifest]) -> list[Group]:
    """Return what the judge learns from, in one column: rankings, or what became of judgments."""
    trained = stages.get("eft/train")
    if trained is not None and "rankings" in trained["figures"]:
        cells = (
            count_row("rankings to learn from", [trained], lambda m: whole(m["figures"]["rankings"])),
            count_row("replies too long", [trained], lambda m: whole(m["figures"]["too_long"])),
        )
        return [Group("Ranked prompts", cells)]
    examples = [stages.get("eft/examples")]
    return [
        judgment_counts([stages.get("eft/judgments")]),
        Group(
            "Replies as EFT examples",
            (
                count_row("judged", examples, lambda m: whole(m["figures"]["replies"])),
                count_row("agreed", examples, lambda m: whole(sum(m["figures"]["scores_agreed"].values()))),
                count_row("kept after balancing", examples, lambda m: whole(m["figures"]["rows"])),
                *reason_rows("dropped", examples, "dropped"),
            ),
        ),
    ]


def score_table(examples: Manifest | None) -> tuple[list[str], list[Row]] | None:
    """Return the scores that EFT examples state, and how many state each before and after balancing."""
    if examples is None:
        return None
    before, after = examples["figures"]["scores_agreed"], examples["figures"]["scores"]
    scores = sorted(before.keys() | after.keys(), key=float)
    return scores, [
        Row(label, tuple(whole(counted.get(score, 0)) for score in scores))
        for label, counted in (("agreed", before), ("kept after balancing", after))
    ]


def judgment_counts(judgments: Sequence[Manifest | None]) -> Group:
    """Return what became of judgments, a column for each manifest; a measure that none has is left out."""

    def row(label: str, figure: str, words: Callable[[float | None], str | None]) -> Row:
        return count_row(label, judgments, lambda m: words(m["figures"][figure]))

    measures = (
        row("entropy of scores, bits", "score_entropy", _two_places),
        row("ties within a prompt", "tie_rate", _share),
        row("repeated judgments agree", "agreement", _share),
        row("correlation of reward and length", "length_correlation", _two_places),
        row("probability that a score is said", "mean_mass", _share),
    )
    return Group(
        "Judgments",
        (
            *_read_from(judgments),
            count_row("made", judgments, lambda m: whole(m["figures"]["judgments"])),
            row("parsed", "parse_rate", _share),
            *reason_rows("unscored", judgments, "unscored"),
            *(measure for measure in measures if any(measure.cells)),
        ),
    )


def count_row(
    label: str, manifests: Sequence[Manifest | None], value: Callable[[Manifest], str | None]
) -> Row:
    """Return a row with a cell for each manifest, `None` where its stage is not finished."""
    return Row(label, tuple(None if manifest is None else _known(manifest, value) for manifest in manifests))


def _known(manifest: Manifest, value: Callable[[Manifest], str | None]) -> str | None:
    """Return a cell, `None` where the version that did the stage did not count what stands there."""
    try:
        return value(manifest)
    except KeyError:
        return None


def reason_rows(prefix: str, manifests: Sequence[Manifest | None], figure: str) -> Iterator[Row]:
    """Yield a row for each reason that any of the stages counted, the most common first."""
    counts = [None if manifest is None else manifest["figures"].get(figure) for manifest in manifests]
    totals: Counter[str] = Counter()
    for counted in counts:
        totals.update(counted or {})
    for reason in sorted(totals, key=lambda name: (-totals[name], name)):
        cells = tuple(None if counted is None else whole(counted.get(reason, 0)) for counted in counts)
        yield Row(f"{prefix}: {words_of(reason)}", cells)


def _worked(attack: str, manifest: Manifest) -> str | None:
    return _share(manifest["figures"]["worked"][attack])


def _interval(measure: Mapping[str, Any]) -> str | None:
    return _between(measure["low"], measure["high"], lambda value: str(_two_places(value)))


def _between(low: float | None, high: float | None, written: Callable[[float], str]) -> str | None:
    return None if low is None or high is None else f"{written(low)} to {written(high)}"


def _change(before: float | None, now: float | None) -> str | None:
    return None if before is None or now is None else signed(now - before)


def _two_places(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}".replace("-", "−")


def _tenth(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f}"


def _share(value: float | None) -> str | None:
    return None if value is None else share(value)
