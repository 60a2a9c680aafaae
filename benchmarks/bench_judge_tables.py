"""What the judge benchmark shows."""

from collections.abc import Mapping
from typing import Any

from bench_judge_data import TRAIN
from rich.table import Table

from selfalign.evaluation.judge_quality import Measure

QUALITY = (
    "pairwise_accuracy",
    "pairwise_accuracy_longer_better",
    "pairwise_accuracy_longer_worse",
    "tie_rate",
)
LEGEND = (
    "Scored: judgments that have a score. Mass: the mean probability that the model goes on with a score at "
    "all. Calls: those a judgment took. Accuracy: of the pairs of replies to one prompt of which people "
    "preferred one, those that get the higher reward; equal rewards are wrong, and pairs with an unscored "
    "reply are left out. Longer better, longer worse: the same where the longer reply is the better or the "
    "worse. Ties: pairs with equal rewards. Likelihood: the mean log-probability of the reply's tokens. "
    "Difference: the accuracy of the expected score less this one, over pairs that both scored. Intervals "
    "are 95 % bootstrap intervals over prompts."
)


def cost_table(title: str, costs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Lay out what judging cost, and below it how many times faster the first method is."""
    table = Table(title=title, title_justify="left")
    table.add_column("judge", no_wrap=True)
    for column in ("seconds", "replies/s", "scored", "mass", "calls"):
        table.add_column(column, justify="right")
    for name, found in costs.items():
        table.add_row(
            name,
            f"{found['seconds']:.1f}",
            f"{found['replies_per_second']:.2f}",
            _percent(found["parse_rate"]),
            _percent(found["mean_mass"]),
            f"{found['mean_attempts']:.2f}",
        )
    table.add_section()
    first, *others = costs
    for name in others:
        faster = costs[first]["replies_per_second"] / costs[name]["replies_per_second"]
        table.add_row(f"{first} / {name}", "", f"{faster:.1f}x", "", "", "")
    return table


def quality_table(rated: Mapping[str, Mapping[str, Measure]]) -> Table:
    """Lay out how well rewards agree with people."""
    table = Table()
    table.add_column("reward", no_wrap=True)
    for column in ("accuracy", "pairs", "longer\nbetter", "longer\nworse", "ties", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in rated.items():
        accuracy, better, worse, ties = (found[measure] for measure in QUALITY)
        table.add_row(
            name,
            _interval(accuracy),
            str(accuracy["n"]),
            _percent(better["value"]),
            _percent(worse["value"]),
            _percent(ties["value"]),
            _interval(found["difference"], sign="+") if "difference" in found else "",
        )
    return table


def told(training: Mapping[str, Any]) -> str:
    """Say how the model was trained, on how many examples of each score."""
    scores = ", ".join(f"{count} of {score}" for score, count in training["scores"].items())
    return (
        f"EFT on other prompts: {training['steps']} steps of {TRAIN.batch_size}, learning rate "
        f"{TRAIN.learning_rate:g}, in {training['seconds']:.0f} s; the score line alone: {scores}; loss "
        f"{training['loss_first']:.2f} -> {training['loss_last']:.2f}"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _interval(found: Measure, sign: str = "") -> str:
    """Return value, low and high in per cent; a dash is undefined."""
    if found["value"] is None:
        return "-"
    value, low, high = (
        "-" if x is None else f"{100 * x:{sign}.0f}" for x in (found["value"], found["low"], found["high"])
    )
    return f"{value} ({low}, {high})"
