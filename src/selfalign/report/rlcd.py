"""What the page of an RLCD run shows beyond what every page does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign.report.charts import Interval, interval_chart, ticks
from selfalign.report.effects import BENCHMARKS, effects, measures_of, price, summary
from selfalign.report.figures import Figure, training_panels
from selfalign.report.read import Manifest
from selfalign.report.rlcd_concerns import balance_of, rlcd_concerns
from selfalign.report.rlcd_sample import Answers, ContrastSample, Lengths, sample_answers, sample_contrasts
from selfalign.report.tables import Group, Row, count_row, judgment_counts, reason_rows
from selfalign.report.text import share, whole, words_of

_BYTES_OF_PAIRS = 2_500_000
_BYTES_OF_ANSWERS = 1_500_000
"""Sizes of what can be browsed, so that the page stays below 5 MB."""

Table = tuple[list[str], list[Row]]
"""Headings of the columns after the first, and the rows."""


def rlcd_page(root: Path, stages: Mapping[str, Manifest], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the template of the method shows.

    Args:
        root: The run directory.
        stages: Manifests of the finished stages.
        data: What the manifest of the run says of its data; empty for a run that was killed before.
    """
    sample = _sample(root, stages)
    lengths = sample.lengths if sample else {}
    preference, outputs = measures_of(root, "preference"), measures_of(root, "outputs")
    return {
        "finished": "rlcd/outputs" in stages,
        "data_contents": {"prompt": data["paths"]} if data else {},
        "concerns": rlcd_concerns(stages, preference, outputs, lengths),
        "summary": summary(root),
        "effects": effects(root),
        "price": (BENCHMARKS, price(root)),
        "strength": strength_figure(stages.get("contrast/strength")),
        "counts": prompt_counts(stages),
        "outcomes": outcome_table(stages.get("contrast/pairs")),
        "balance": balance_of(stages),
        "lengths": length_table(lengths) if lengths else None,
        "trainings": training_panels(root, stages, [("Tuned model", "rlcd")]),
        "pairs_made": sum(each.pairs for each in lengths.values()),
        "shown": sample.shown if sample else (),
        "answers": _answers(root, stages),
        "too_long": stages["rlcd/outputs"]["figures"]["too_long"] if "rlcd/outputs" in stages else None,
    }


def strength_figure(strength: Manifest | None) -> Figure | None:
    """Return the contrast over all sampled pairs and by group, with 0 marked; `None` if not measured."""
    if strength is None or strength["figures"]["contrast"]["value"] is None:
        return None
    figures = strength["figures"]
    intervals = [
        Interval("all pairs", *(figures["contrast"][key] for key in ("value", "low", "high"))),
        *(
            Interval(name, measure["value"], measure["low"], measure["high"])
            for name, measure in figures["contrast_by_group"].items()
        ),
    ]
    ends = [end for each in intervals for end in (each.value, each.low, each.high) if end is not None]
    steps = ticks(min(0, *ends), max(0, *ends), 4)
    neutral = figures["neutral_gap"]["value"]
    return Figure(
        "Contrast in nats a token",
        f"{whole(figures['rows'])} pairs; under the prompt alone the gap is {neutral:+.3f}".replace("-", "−"),
        interval_chart("Contrast", intervals, steps=steps, reference=0),
    )


def prompt_counts(stages: Mapping[str, Manifest]) -> list[Group]:
    """Return what became of the prompts, in one column."""
    read, contrasts = [stages.get("data/read")], [stages.get("contrast/contrasts")]
    completions, pairs = [stages.get("contrast/completions")], [stages.get("contrast/pairs")]
    judged = stages.get("contrast/judgments")  # only where the recipe asks for a judge
    return [
        Group(
            "Prompts",
            (
                count_row("to learn from", read, lambda m: whole(m["figures"]["rows"])),
                count_row("held out", read, lambda m: whole(m["figures"]["held_out"]["rows"])),
                *reason_rows("dropped", read, "dropped"),
            ),
        ),
        Group(
            "Contrasts",
            (
                count_row("drawn", contrasts, lambda m: whole(m["figures"]["rows"])),
                *reason_rows("prompts dropped", contrasts, "dropped"),
            ),
        ),
        Group(
            "Completions",
            (
                count_row("made", completions, lambda m: whole(m["figures"]["rows"])),
                *reason_rows("finish reason", completions, "finish_reasons"),
            ),
        ),
        *([judgment_counts([judged])] if judged else []),
        Group(
            "Pairs",
            (
                count_row("to train on", pairs, lambda m: whole(m["figures"]["rows"])),
                count_row(
                    "of held-out prompts", pairs, lambda m: whole(m["figures"]["held_out_pairs"]["rows"])
                ),
            ),
        ),
    ]


def outcome_table(pairs: Manifest | None) -> Table | None:
    """Return the outcomes of the contrasts by group with totals: kept first, then the most common."""
    if pairs is None:
        return None
    by_group = pairs["figures"]["outcomes_by_group"]
    total: Counter[str] = sum((Counter(counts) for counts in by_group.values()), Counter())
    names = sorted(total, key=lambda name: (name != "kept", -total[name], name))

    def row(label: str, counts: Mapping[str, int]) -> Row:
        every = sum(counts.values())
        kept = share(counts.get("kept", 0) / every) if every else None
        return Row(label, (*(whole(counts.get(name, 0)) for name in names), whole(every), kept))

    rows = [row(group, counts) for group, counts in sorted(by_group.items())]
    return [*map(words_of, names), "all", "share kept"], [*rows, row("all groups", total)]


def length_table(lengths: Mapping[str, Lengths]) -> Table:
    """Return the mean tokens of chosen and rejected completions by group, and over all."""
    columns = zip(*((e.pairs, e.chosen, e.rejected, e.longer) for e in lengths.values()), strict=True)
    every = {"all groups": Lengths(*map(sum, columns))}
    headings = ["pairs", "chosen", "rejected", "chosen is longer"]
    return headings, [
        Row(
            group,
            (
                whole(each.pairs),
                f"{each.chosen / each.pairs:,.1f}",
                f"{each.rejected / each.pairs:,.1f}",
                share(each.longer / each.pairs),
            ),
        )
        for group, each in (*lengths.items(), *every.items())
    ]


def _sample(root: Path, stages: Mapping[str, Manifest]) -> ContrastSample | None:
    if "contrast/pairs" not in stages:
        return None
    where = root / "contrast"
    return sample_contrasts(where / "pairs.jsonl", where / "contrasts.jsonl", most_bytes=_BYTES_OF_PAIRS)


def _answers(root: Path, stages: Mapping[str, Manifest]) -> Sequence[Answers]:
    if "rlcd/outputs" not in stages:
        return ()
    return sample_answers(
        root / "data" / "held_out.jsonl",
        root / "rlcd" / "base_outputs.jsonl",
        root / "rlcd" / "policy_outputs.jsonl",
        most_bytes=_BYTES_OF_ANSWERS,
    )
