"""Time our training against TRL's: the same token ids, batch sizes and learning rate, on the processor.

Every measurement is a process of its own, the sides take turns, and the clock runs while the model trains:
loading and tokenising are left out on both sides, the reference pass of DPO is in on both. Before a time is
printed, the first batch, which warms up both sides, must have the same figures on all of them.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import isclose
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from bench_train_data import FILES, MAX_LENGTH
from bench_train_worker import BETA, LEARNING_RATE, Job, Measurement, Precision, Side, Task
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selfalign import __version__
from selfalign.config import Policy
from selfalign.errors import SelfAlignError
from selfalign.models.load import compute_dtype
from selfalign.models.source import EMBEDDED, find_model

WORKER = Path(__file__).with_name("bench_train_worker.py")
SIDES: tuple[Side, ...] = get_args(Side)
TOLERANCE: dict[Precision, float] = {"bfloat16": 2e-2, "float32": 1e-5}
"""Largest relative difference of the first batch's figures."""
TASKS: dict[Task, tuple[str, str]] = {
    "dpo": ("DPO", "pairs"),
    "sft": ("SFT on chosen answers", "examples"),
    "judge": ("SFT on judgments", "examples"),
}
EPILOG = """\
three tasks:
  dpo    preference pairs, half from each file of the data directory
  sft    the chosen completions of such pairs; the loss is of the completions alone
  judge  three judgments of each of four candidates a prompt, in our judge's own words;
         what their prompts share, we compute once a micro-batch

needs 12 GB of memory: TRL's defaults hold a second model, the reference.

examples:
  make bench-train QUICK=1                    is it as it was? under 3 minutes on 2 cores
  make bench-train ARGS="--json train.json"   the figures to quote; up to 40 minutes
"""
LEGEND = (
    "Items and tokens a second are of the training steps and the reference pass; tokens are those of prompts "
    "and completions, each completion with its prompt, without padding. Memory is the peak while training, "
    "less what libraries held before it, float32 weights, gradients and AdamW's moments. The matrix "
    "share is what forward and backward passes need over what a matrix product of the model's own shape "
    "reaches, for the training steps. TRL tuned: no gradient checkpointing; DPO with the reference "
    "beforehand and pairs one by one; SFT packed."
)


@dataclass(frozen=True)
class Workload:
    """A task with its size.

    Items are pairs or examples: two batches at least, for AdamW's moments are there from the second step on.
    """

    task: Task
    items: int
    batch_size: int
    max_length: int


QUICK = (Workload("dpo", 4, 2, 256), Workload("sft", 4, 2, 256), Workload("judge", 4, 2, 576))
FULL = (
    Workload("dpo", 12, 4, MAX_LENGTH),
    Workload("sft", 12, 4, MAX_LENGTH),
    Workload("judge", 12, 6, 768),
)
ROUNDS: dict[Precision, int] = {"bfloat16": 2, "float32": 1}
"""Measurements a side."""
TIMEOUT = 30 * 60
"""Seconds that one measurement may take."""


@dataclass(frozen=True)
class Summary:
    """Medians over the rounds; rates are of the training steps and the reference pass."""

    items_per_second: float
    tokens_per_second: float
    reference_seconds: float | None
    """`None` where the task has no reference."""
    extra_bytes: float
    """Peak memory without weights, gradients and optimizer state."""
    matrix_share: float | None
    """What the training steps reach of the matrix rate; `None` for TRL."""


@dataclass(frozen=True)
class Result:
    """The measurements of one side, one a round, and what ended them early."""

    side: Side
    measurements: tuple[Measurement, ...]
    failure: str | None

    def summary(self, items: int) -> Summary | None:
        """Return what to show for so many items a round; `None` without a measurement."""
        rounds = self.measurements
        if not rounds:
            return None
        return Summary(
            items_per_second=median(items / m.seconds for m in rounds),
            tokens_per_second=median(m.tokens / m.seconds for m in rounds),
            reference_seconds=_median(m.reference_seconds for m in rounds),
            extra_bytes=median(m.peak_bytes - m.held_bytes for m in rounds),
            matrix_share=_median(m.matrix_share for m in rounds),
        )


class UnequalError(Exception):
    """The sides don't compute the same thing."""


def compare(
    jobs: Sequence[Job], rounds: int, measure: Callable[[Job], Measurement | str]
) -> tuple[Result, ...]:
    """Measure all sides in turn, round after round.

    A side that failed is not measured again.

    Args:
        jobs: One a side.
        rounds: Measurements a side.
        measure: Returns what was measured, or why nothing was.

    Raises:
        UnequalError: The first batch has other figures on one side than on the first one measured.
    """
    found: dict[Side, list[Measurement]] = {job.side: [] for job in jobs}
    failures: dict[Side, str] = {}
    first: tuple[Side, Measurement] | None = None
    for _ in range(rounds):
        for job in jobs:
            if job.side in failures:
                continue
            measured = measure(job)
            if isinstance(measured, str):
                failures[job.side] = measured
                continue
            first = first or (job.side, measured)
            _check_equal(first, (job.side, measured), TOLERANCE[job.precision])
            found[job.side].append(measured)
    return tuple(Result(side, tuple(rows), failures.get(side)) for side, rows in found.items())


def ratios(results: Sequence[Result], items: int) -> dict[Side, dict[str, float]]:
    """Return our speed and our memory over those of every other side; sides without figures are left out."""
    ours, *others = [(result.side, result.summary(items)) for result in results]
    return {
        side: {
            "speed": ours[1].items_per_second / theirs.items_per_second,
            "memory": ours[1].extra_bytes / theirs.extra_bytes,
        }
        for side, theirs in others
        if ours[1] is not None and theirs is not None
    }


def measure_apart(job: Job) -> Measurement | str:
    """Run a job in a process of its own; return what it measured, or how it ended."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "measurement.json"
        try:
            done = subprocess.run(  # noqa: S603 -- our own worker
                [sys.executable, str(WORKER), json.dumps(asdict(job)), str(target)],
                env={**os.environ, "HF_HUB_OFFLINE": "1"},  # all is here, and TRL would report its use
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not done after {TIMEOUT // 60} minutes"
        if done.returncode == 0:
            return Measurement(**json.loads(target.read_text(encoding="utf-8")))
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}, as when memory runs out; last: {last}"
    return last


def table_of(title: str, results: Sequence[Result], items: int) -> Table:
    """Lay out the figures of all sides, and below them our ratios to the others."""
    table = Table(title=title, title_justify="left")
    table.add_column("side", no_wrap=True)
    for column in ("items/s", "tokens/s", "reference\ns", "memory\nGB", "matrix\nshare"):
        table.add_column(column, justify="right")
    for result in results:
        shown = result.summary(items)
        if shown is None:
            table.add_row(result.side, "failed")
            continue
        table.add_row(
            result.side,
            f"{shown.items_per_second:.3f}",
            f"{shown.tokens_per_second:.1f}",
            "-" if shown.reference_seconds is None else f"{shown.reference_seconds:.1f}",
            f"{shown.extra_bytes / 1e9:.2f}",
            "-" if shown.matrix_share is None else f"{shown.matrix_share:.0%}",
        )
    table.add_section()
    for side, ratio in ratios(results, items).items():
        table.add_row(f"ours / {side}", f"{ratio['speed']:.2f}x", "", "", f"{ratio['memory']:.2f}x", "")
    return table


def main() -> None:
    """Measure what the command line asks for; exits with 1 where the sides differ or ours fails."""
    options = _parser().parse_args()
    for file in FILES:
        if not (options.data / file).is_file():
            raise SystemExit(f"{options.data / file} is missing; --data takes the directory that holds it")
    precisions, skipped = _precisions(options.precision, quick=options.quick)
    try:
        model = find_model(options.model).materialise().resolve()
    except SelfAlignError as error:
        raise SystemExit(str(error)) from None
    rounds: dict[Precision, int] = dict.fromkeys(ROUNDS, 1) if options.quick else ROUNDS
    setting = _setting(options.model, rounds) | ({"skipped": skipped} if skipped else {})
    console = Console()
    console.print(
        "\n".join(f"{name}: {value}" for name, value in setting.items()), highlight=False, markup=False
    )
    console.print(f"\n{LEGEND}", highlight=False)
    groups: list[dict[str, Any]] = []
    for precision in precisions:
        for workload in QUICK if options.quick else FULL:
            if workload.task not in options.tasks:
                continue
            jobs = [
                Job(side, precision, data=str(options.data), model=str(model), seed=0, **asdict(workload))
                for side in SIDES
            ]
            results = _show(console, workload, jobs, rounds[precision])
            groups.append(_group(workload, precision, results))
            if options.json is not None:
                text = json.dumps({"setting": setting, "groups": groups}, indent=2)
                options.json.write_text(f"{text}\n", encoding="utf-8")
    if any(side["side"] == "ours" and side["failure"] for group in groups for side in group["sides"]):
        raise SystemExit(1)


def _show(console: Console, workload: Workload, jobs: Sequence[Job], rounds: int) -> tuple[Result, ...]:
    task, items = TASKS[workload.task]
    title = f"{task}, {jobs[0].precision}: {workload.items} {items} in batches of {workload.batch_size}"

    def measure(job: Job) -> Measurement | str:
        with console.status(f"{title}: {job.side}"):
            return measure_apart(job)

    try:
        results = compare(jobs, rounds, measure)
    except UnequalError as error:
        raise SystemExit(f"{title}: {error}") from None
    console.print()
    console.print(table_of(title, results, workload.items), highlight=False)
    for result in results:
        if result.failure is not None:
            console.print(f"{result.side} failed: {escape(result.failure)}", highlight=False)
    return results


def _group(workload: Workload, precision: Precision, results: Sequence[Result]) -> dict[str, Any]:
    """Return a table as JSON."""
    summaries = {result.side: result.summary(workload.items) for result in results}
    return {
        **asdict(workload),
        "precision": precision,
        "sides": [
            {**asdict(result), "summary": asdict(summary) if summary else None}
            for result, summary in zip(results, summaries.values(), strict=True)
        ],
        "ours_over": ratios(results, workload.items),
    }


def _setting(model: str, rounds: dict[Precision, int]) -> dict[str, str]:
    """Return what the figures depend on, by name."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch"))
    gpu = "the GPU is not used" if torch.cuda.is_available() else "no GPU on this machine"
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "versions": f"selfalign {__version__}, {versions}, Python {platform.python_version()}",
        "machine": f"{processor}, {torch.get_num_threads()} threads; {gpu}: figures of the processor alone",
        "model": model,
        "training": f"AdamW, float32 weights, constant rate {LEARNING_RATE}, gradients clipped to norm 1, "
        f"DPO with beta {BETA}; rounds: {rounds}, of which the medians are shown",
    }


def _precisions(wanted: Sequence[Precision] | None, *, quick: bool) -> tuple[list[Precision], str | None]:
    """Return the precisions to measure, and why one is left out or `None`; the quick one takes one."""
    named = list(wanted or TOLERANCE)
    skipped = None
    if "bfloat16" in named and compute_dtype(Policy(device="cpu"), torch.device("cpu")) != torch.bfloat16:
        skipped = "bfloat16, which this processor does not compute in"
        named.remove("bfloat16")
    if not named:
        raise SystemExit(f"nothing to measure; skipped: {skipped}")
    return named[:1] if quick and wanted is None else named, skipped


def _check_equal(one: tuple[Side, Measurement], other: tuple[Side, Measurement], tolerance: float) -> None:
    for name, value in one[1].check.items():
        theirs = other[1].check[name]
        if not isclose(value, theirs, rel_tol=tolerance):
            raise UnequalError(
                f"{name} of the first batch is {value!r} ({one[0]}) but {theirs!r} ({other[0]}), more than "
                f"{tolerance:g} apart; no time is shown, for the sides don't compute the same"
            )


def _median(values: Iterable[float | None]) -> float | None:
    """Return the median; `None` where no round has a value."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks, precisions = tuple(TASKS), tuple(TOLERANCE)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help=f"directory that holds {' and '.join(FILES)}"
    )
    parser.add_argument("--quick", action="store_true", help="few and short items, one precision, one round")
    parser.add_argument(
        "--tasks",
        type=_some_of(tasks),
        default=tasks,
        metavar="A,B",
        help=f"of {','.join(tasks)}; all if not given",
    )
    parser.add_argument(
        "--precision",
        type=_some_of(precisions),
        metavar="A,B",
        help=f"of {','.join(precisions)}; both if not given, the first alone with --quick",
    )
    parser.add_argument(
        "--model", default=EMBEDDED, help="name or directory of the model; the embedded one otherwise"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write settings and every measurement there"
    )
    return parser


def _some_of(names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a reader of names with commas between them."""

    def read(text: str) -> tuple[str, ...]:
        asked = text.split(",")
        if unknown := set(asked) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(names)}")
        return tuple(name for name in names if name in asked)

    return read


if __name__ == "__main__":
    main()
