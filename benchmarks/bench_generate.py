"""Time the embedded engine against transformers' `generate`: the same prompts, limits and sampling.

Every measurement is a process of its own, and the sides take turns chunk by chunk of prompts. The clock
runs while they generate; loading is left out. The draws differ, so tokens a second are compared: useful ones,
up to the end of each turn. Nothing is shown unless all sides answered the same prompts, as often and within
the limit.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from bench_generate_worker import FILE, TEMPERATURE, TOP_P, Job, Measurement, Side, precision
from rich.console import Console
from rich.table import Table

from selfalign import __version__
from selfalign.config import EngineSettings
from selfalign.errors import SelfAlignError
from selfalign.models.source import EMBEDDED, find_model

WORKER = Path(__file__).with_name("bench_generate_worker.py")
SIDES: tuple[Side, ...] = get_args(Side)[:-1]
"""Those that every machine has: all but vLLM."""
SAMPLES = 4
"""Completions of each prompt."""
EPILOG = """\
examples:
  make bench-generate QUICK=1                       is it as it was? under 3 minutes on 2 cores
  make bench-generate ARGS="--json generate.json"   the figures to quote; half an hour to an hour with vLLM
"""
LEGEND = (
    "Useful tokens: up to the end of each turn. One by one: `generate` for one prompt and its samples at a "
    "time, for some of the prompts. Static: `generate` for batches of so many sequences, prompts sorted by "
    "length. vLLM: as our server engine asks it. Memory is the most that was resident, libraries and weights "
    "included."
)


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    sides: tuple[Side, ...]
    chunks: int
    """How often the sides take turns."""
    prompts: int
    """Of a chunk."""
    max_new_tokens: int
    every: int = 1
    """Of how many prompts one is asked one by one, whose rate does not depend on their number."""


QUICK = Plan(("ours", "one by one", "static 64"), 1, 16, 32)
FULL = Plan(SIDES, 1, 64, 256, every=4)


@dataclass(frozen=True)
class Total:
    """What a side did over all chunks."""

    side: Side
    tokens: int
    """Useful ones."""
    seconds: float
    peak_bytes: int | None

    @property
    def rate(self) -> float:
        """Return useful tokens a second."""
        return self.tokens / self.seconds


class UnequalError(Exception):
    """The sides did not do the same work."""


def compare(jobs: Sequence[Sequence[Job]], measure: Callable[[Job], Measurement]) -> tuple[Total, ...]:
    """Measure all sides in turn, chunk after chunk.

    Args:
        jobs: For each chunk, one job a side, the sides in the same order.
        measure: Does a job.

    Raises:
        UnequalError: A side answered other prompts than the first one, or not as often, or beyond the limit.
    """
    found: dict[Side, list[Measurement]] = {job.side: [] for job in jobs[0]}
    for chunk in jobs:
        for job in chunk:
            measured = measure(job)
            found[job.side].append(measured)
            _check_equal(job, measured, found[chunk[0].side][-1])
    return tuple(
        Total(
            side,
            sum(sum(map(sum, m.tokens.values())) for m in rows),
            sum(m.seconds for m in rows),
            max((m.peak_bytes for m in rows if m.peak_bytes is not None), default=None),
        )
        for side, rows in found.items()
    )


def ratios(totals: Sequence[Total]) -> dict[Side, float]:
    """Return our useful tokens a second over those of every other side."""
    ours, *others = totals
    return {theirs.side: ours.rate / theirs.rate for theirs in others}


def measure_apart(job: Job) -> Measurement:
    """Run a job in a process of its own.

    Raises:
        SystemExit: It failed; with the last line that it said.
    """
    with TemporaryDirectory() as folder:
        target = Path(folder) / "measurement.json"
        done = subprocess.run(  # noqa: S603 -- our own worker
            [sys.executable, str(WORKER), json.dumps(asdict(job)), str(target)],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise SystemExit(f"{job.side} ended with {done.returncode}: {last}")
        return Measurement(**json.loads(target.read_text(encoding="utf-8")))


def table_of(title: str, totals: Sequence[Total]) -> Table:
    """Lay out the figures of all sides, and our ratio to each."""
    table = Table(title=title, title_justify="left")
    table.add_column("side", no_wrap=True)
    for column in ("useful\ntokens", "s", "tokens/s", "ours is\nfaster by", "memory\nGB"):
        table.add_column(column, justify="right")
    faster = ratios(totals)
    for total in totals:
        table.add_row(
            total.side,
            f"{total.tokens:,}",
            f"{total.seconds:.1f}",
            f"{total.rate:.1f}",
            f"{faster[total.side]:.2f}x" if total.side in faster else "",
            "-" if total.peak_bytes is None else f"{total.peak_bytes / 1e9:.2f}",
        )
    return table


def main() -> None:
    """Measure what the command line asks for; exits with 1 where a side fails or the sides differ."""
    options = _parser().parse_args()
    if not (options.data / FILE).is_file():
        raise SystemExit(f"{options.data / FILE} is missing; --data takes the directory that holds it")
    try:
        model = find_model(options.model).materialise().resolve()
    except SelfAlignError as error:
        raise SystemExit(str(error)) from None
    plan = QUICK if options.quick else FULL
    if options.vllm is not None:
        plan = replace(plan, sides=(*plan.sides, "vLLM"))
    setting = _setting(options.model, plan)
    console = Console()
    lines = "\n".join(f"{name}: {value}" for name, value in setting.items())
    console.print(f"{lines}\n\n{LEGEND}\n", highlight=False, markup=False)

    def measure(job: Job) -> Measurement:
        with console.status(f"prompts from {job.first}: {job.side}"):
            return measure_apart(job)

    try:
        totals = compare(_jobs(plan, str(options.data), str(model), options.vllm), measure)
    except UnequalError as error:
        raise SystemExit(str(error)) from None
    title = f"{plan.chunks * plan.prompts} prompts, {SAMPLES} completions of each"
    console.print(table_of(title, totals), highlight=False)
    if options.json is not None:
        sides = [{**asdict(total), "tokens_per_second": total.rate} for total in totals]
        group: dict[str, Any] = {"plan": asdict(plan), "sides": sides, "ours_over": ratios(totals)}
        options.json.write_text(f"{json.dumps({'setting': setting, **group}, indent=2)}\n", encoding="utf-8")


def _jobs(plan: Plan, data: str, model: str, vllm: str | None = None) -> list[list[Job]]:
    """Return the jobs of each chunk of prompts, one a side."""
    return [
        [
            Job(
                side,
                chunk * plan.prompts,
                plan.prompts,
                SAMPLES,
                plan.max_new_tokens,
                data,
                model,
                vllm,
                plan.every if side == "one by one" else 1,
            )
            for side in plan.sides
        ]
        for chunk in range(plan.chunks)
    ]


def _check_equal(job: Job, measured: Measurement, first: Measurement) -> None:
    same = measured.tokens.keys() <= first.tokens.keys()
    if not same or len(measured.tokens) != len(range(0, len(first.tokens), job.every)):
        raise UnequalError(f"{job.side} answered other prompts than the first side; no time is shown")
    for prompt, tokens in measured.tokens.items():
        if len(tokens) != job.samples or max(tokens) > job.max_new_tokens:
            raise UnequalError(
                f"{job.side} gave prompt {prompt} completions of {tokens} tokens, where {job.samples} of "
                f"{job.max_new_tokens} at most were asked for; no time is shown"
            )


def _setting(model: str, plan: Plan) -> dict[str, str]:
    """Return what the figures depend on, by name."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
    gpu = "the GPU is not used" if torch.cuda.is_available() else "no GPU on this machine"
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "versions": f"selfalign {__version__}, {versions}, Python {platform.python_version()}",
        "machine": f"{processor}, {torch.get_num_threads()} threads; {gpu}: figures of the processor alone",
        "model": f"{model} in {precision()}",
        "sampling": f"temperature {TEMPERATURE}, top-p {TOP_P}, up to {plan.max_new_tokens} new tokens",
        "ours": f"batches of up to {EngineSettings().batch_size} sequences",
        "turns": f"{plan.chunks}, of {plan.prompts} prompts each",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help=f"directory that holds {FILE}"
    )
    parser.add_argument("--quick", action="store_true", help="few prompts, short completions, fewer sides")
    parser.add_argument("--model", default=EMBEDDED, help="its name, as in a recipe (default: %(default)s)")
    parser.add_argument(
        "--vllm", metavar="PYTHON", help="of an environment with vLLM, to compare with it too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    return parser


if __name__ == "__main__":
    main()
