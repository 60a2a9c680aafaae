"""What the page of an RLCD run shows beyond what every page does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign.records import PreferencePair
from selfalign.report.charts import Interval, interval_chart, ticks
from selfalign.report.concerns import given
from selfalign.report.dropped import ContrastFilters, Filter, filter_of, unpaired_contrasts
from selfalign.report.effects import BENCHMARKS, effects, measures_of, price, summary
from selfalign.report.figures import Figure, training_panels
from selfalign.report.problems import Problems
from selfalign.report.read import Manifest
from selfalign.report.rlcd_concerns import balance_of, rlcd_concerns
from selfalign.report.rlcd_sample import Answers, ContrastSample, Lengths, sample_answers, sample_contrasts
from selfalign.report.tables import Group, Row, count_row, judgment_counts, reason_rows
from selfalign.report.text import share, whole, words_of

_BYTES_OF_PAIRS = 2_200_000
_BYTES_OF_ANSWERS = 1_300_000
_BYTES_OF_DROPPED = 300_000
"""Sizes of what can be browsed, so that the page stays below 5 MB."""

Table = tuple[list[str], list[Row]]
"""Headings of the columns after the first, and the rows."""


def rlcd_page(
    root: Path, stages: Mapping[str, Manifest], recipe: Mapping[str, Any], problems: Problems
) -> dict[str, Any]:
    """Return all that the template of the method shows.

    Args:
        root: The run directory.
        stages: Manifests of the finished stages.
        recipe: The resolved recipe; empty for a run that was killed before it was written.
        problems: Told of what can't be read.
    """
    attempt = problems.attempt
    sample = _sample(root, stages, problems)
    lengths = sample.lengths if sample else {}
    preference, outputs = (measures_of(root, name, problems) for name in ("preference", "outputs"))
    return {
        "finished": "rlcd/outputs" in stages,
        "concerns": attempt("warnings", rlcd_concerns, stages, preference, outputs, lengths)
        or list(given(stages)),
        "summary": attempt("what training did", summary, root, problems),
        "effects": attempt("what training did", effects, root, problems) or [],
        "price": (BENCHMARKS, price(root)),
        "strength": attempt("contrast strength", strength_figure, stages.get("contrast/strength")),
        "counts": attempt("counts of the prompts", prompt_counts, stages) or [],
        "outcomes": attempt("outcomes", outcome_table, stages.get("contrast/pairs")),
        "balance": attempt("balance of the pairs", balance_of, stages),
        "lengths": length_table(lengths) if lengths else None,
        "trainings": training_panels(root, stages, [("Tuned model", "rlcd")], problems),
        "pairs_made": sum(each.pairs for each in lengths.values()),
        "shown": sample.shown if sample else (),
        "answers": _answers(root, stages, problems),
        "too_long": attempt("answers left out", _too_long, stages),
        "filters": attempt("what was dropped", _filters, root, stages, recipe, problems) or {},
    }


def _too_long(stages: Mapping[str, Manifest]) -> int | None:
    outputs = stages.get("rlcd/outputs")
    return None if outputs is None else int(outputs["figures"]["too_long"])


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


def _sample(root: Path, stages: Mapping[str, Manifest], problems: Problems) -> ContrastSample | None:
    if "contrast/pairs" not in stages:
        return None
    where = root / "contrast"
    return sample_contrasts(
        where / "pairs.jsonl", where / "contrasts.jsonl", problems, most_bytes=_BYTES_OF_PAIRS
    )


def _answers(root: Path, stages: Mapping[str, Manifest], problems: Problems) -> Sequence[Answers]:
    if "rlcd/outputs" not in stages:
        return ()
    return sample_answers(
        root / "data" / "held_out.jsonl",
        root / "rlcd" / "base_outputs.jsonl",
        root / "rlcd" / "policy_outputs.jsonl",
        problems,
        most_bytes=_BYTES_OF_ANSWERS,
    )


def _filters(
    root: Path, stages: Mapping[str, Manifest], recipe: Mapping[str, Any], problems: Problems
) -> dict[str, tuple[Filter, ...]]:
    """Return the contrasts that gave no pair, with examples; nothing before pairs are made."""
    made = stages.get("contrast/pairs")
    if made is None:
        return {}
    where = root / "contrast"
    paired = {
        str(pair.contrast_id)
        for name in ("pairs.jsonl", "held_out_pairs.jsonl")
        for pair in problems.rows(where / name, PreferencePair)
    }
    counts = {name: n for name, n in made["figures"]["outcomes"].items() if name != "kept"}
    examples = {}
    if any(counts.values()):
        examples = unpaired_contrasts(
            where / "contrasts.jsonl",
            where / "completions.jsonl",
            paired,
            ContrastFilters(**recipe["contrast"]["filters"]),
            problems,
        )
    return {"Contrasts": (filter_of("Contrasts without a pair", counts, examples, _BYTES_OF_DROPPED),)}
