"""Measure the memory of judging and pairing: a million stored candidates, in a process of its own.

The prompts and candidates are made up, of realistic length; the scripted engine judges. Before a figure is
printed, every candidate must have been judged, and every prompt have given a pair or been dropped.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_memory_worker import Job, Measurement
from rich.console import Console
from rich.table import Table

from selfalign import __version__
from selfalign.config import Judge
from selfalign.records import Completion, Judgment, Message, PreferencePair, Prompt, content_id
from selfalign.runs.files import read_json, read_rows, write_rows

ROWS = 1_000_000
QUICK_ROWS = 50_000
CANDIDATES = 4
"""Of each prompt."""
VOCABULARY = (
    "the of and to in is that for it as with on be by this are from or an which at can one if will other "
    "about each how their many some would these more time way people number water part sound work place "
    "year because different through sentence great where help answer question reason example language"
)
PROMPT_WORDS, CANDIDATE_WORDS = (15, 90), (20, 130)
EPILOG = """\
examples:
  make bench-memory QUICK=1                     is it as it was? half a minute
  make bench-memory ARGS="--json memory.json"   the figures to quote; several minutes
"""
LEGEND = (
    "Peak memory: what was resident at most since the measured process began, Python and its libraries "
    "included; that of pairing is the peak of both."
)


@dataclass(frozen=True)
class Counts:
    """What was read and written."""

    prompts: int
    candidates: int
    judgments: int
    pairs: int
    dropped: int
    """Prompts without a pair."""


class UnequalError(Exception):
    """A row was lost or doubled."""


def make_run(root: Path, rows: int, samples: int, seed: int) -> Job:
    """Write prompts and candidates as the stages before would have left them, and return how to judge them.

    Args:
        root: The run directory.
        rows: Candidates; the last prompt may have fewer than the others.
        samples: Judgments of each candidate.
        seed: Of all texts.
    """
    draw = random.Random(seed)  # noqa: S311 -- reproducible texts, no secret
    said = draw.choices(VOCABULARY.split(), k=200_000)
    directory = root / "iteration-1"

    def text(bounds: tuple[int, int]) -> str:
        begin, length = draw.randrange(len(said) - bounds[1]), draw.randint(*bounds)
        return " ".join(said[begin : begin + length])

    def prompts() -> Iterator[Prompt]:
        for number in range(ceil(rows / CANDIDATES)):
            content = f"Question {number}: {text(PROMPT_WORDS)}?"
            yield Prompt.of([Message(role="user", content=content)], source="made")

    def candidates() -> Iterator[Completion]:
        for number, prompt in enumerate(read_rows(directory / "prompts.jsonl", Prompt)):
            for sample in range(min(CANDIDATES, rows - CANDIDATES * number)):
                answer = text(CANDIDATE_WORDS)
                yield Completion(
                    completion_id=content_id(prompt.prompt_id, str(sample)),
                    prompt_id=prompt.prompt_id,
                    sample=sample,
                    text=answer,
                    finish_reason="stop",
                    num_tokens=answer.count(" ") + 1,
                )

    count = write_rows(directory / "prompts.jsonl", prompts())
    return Job(str(root), count, write_rows(directory / "candidates.jsonl", candidates()), samples)


def measure_apart(job: Job) -> Measurement:
    """Judge and pair in a process of its own.

    Raises:
        SystemExit: It failed; with its last word.
    """
    target = Path(job.root) / "measurement.json"
    worker = Path(__file__).with_name("bench_memory_worker.py")
    command = [sys.executable, str(worker), json.dumps(asdict(job)), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- our own file
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SystemExit(f"the measured process ended with {done.returncode}: {last}")
    return Measurement(**json.loads(target.read_text(encoding="utf-8")))


def check(job: Job) -> Counts:
    """Count what was written, and that nothing is missing or there twice.

    Raises:
        UnequalError: A candidate was not judged as often as it should be, or the prompts do not add up.
    """
    directory = Path(job.root) / "iteration-1"
    judged = Counter(row.completion_id for row in read_rows(directory / "judgments.jsonl", Judgment))
    judgments = judged.total()
    for candidate in read_rows(directory / "candidates.jsonl", Completion):
        times = judged.pop(candidate.completion_id, 0)
        if times != job.samples:
            raise UnequalError(f"{candidate.completion_id} was judged {times} times, not {job.samples}")
    if judged:
        raise UnequalError(f"{min(judged)} was judged, which is no candidate")
    pairs = Counter(row.prompt_id for row in read_rows(directory / "pairs.jsonl", PreferencePair))
    dropped = sum(read_json(directory / "metrics.json")["pairs"]["dropped"].values())
    if pairs.total() != len(pairs) or len(pairs) + dropped != job.prompts:
        raise UnequalError(f"{pairs.total()} pairs and {dropped} dropped prompts, of {job.prompts}")
    return Counts(job.prompts, job.candidates, judgments, len(pairs), dropped)


def table_of(counts: Counts, measured: Measurement) -> Table:
    """Lay out both stages."""
    table = Table(title="judging and pairing with the scripted engine", title_justify="left")
    for column in ("", "rows", "seconds", "candidates/s", "peak memory, MB"):
        table.add_column(column, justify="right" if column else "left")
    stages = (
        ("judging", counts.judgments, measured.judging_seconds, measured.judging_peak),
        ("pairing", counts.pairs, measured.pairing_seconds, measured.peak),
    )
    for name, rows, seconds, peak in stages:
        rate = counts.candidates / seconds
        table.add_row(name, f"{rows:,}", f"{seconds:.1f}", f"{rate:,.0f}", f"{peak / 1e6:,.0f}")
    return table


def main() -> None:
    """Make, measure, check and show; exits with 1 where a row was lost or doubled."""
    options = _parser().parse_args()
    rows = options.rows or (QUICK_ROWS if options.quick else ROWS)
    console = Console()
    setting = _setting(rows, options.samples)
    lines = "\n".join(f"{name}: {value}" for name, value in setting.items())
    console.print(f"{lines}\n\n{LEGEND}\n", markup=False, highlight=False)
    with TemporaryDirectory() as folder:
        with console.status("making prompts and candidates"):
            job = make_run(Path(folder), rows, options.samples, seed=0)
        with console.status("judging and pairing"):
            measured = measure_apart(job)
        try:
            with console.status("counting"):
                counts = check(job)
        except UnequalError as error:
            raise SystemExit(f"{error}; no figure is shown") from None
    console.print(table_of(counts, measured), highlight=False)
    console.print(
        f"{counts.prompts:,} prompts: {counts.pairs:,} pairs, {counts.dropped:,} without; memory before the "
        f"first row: {measured.memory_before / 1e6:,.0f} MB",
        highlight=False,
    )
    if options.json is not None:
        result = {"setting": setting, "counts": asdict(counts), **asdict(measured)}
        options.json.write_text(f"{json.dumps(result, indent=2)}\n", encoding="utf-8")


def _setting(rows: int, samples: int) -> dict[str, str]:
    """Return what the figures depend on, by name."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("pydantic", "numpy", "jinja2"))
    return {
        "versions": f"selfalign {__version__}, {versions}, Python {platform.python_version()}",
        "machine": f"{platform.machine()}, one core",
        "made": f"{rows:,} candidates of {'-'.join(map(str, CANDIDATE_WORDS))} words, {CANDIDATES} to a "
        f"prompt of {'-'.join(map(str, PROMPT_WORDS))} words",
        "judging": f"{samples} judgments a candidate, rubric {Judge().rubric}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=_positive, metavar="N", help=f"candidates (default: {ROWS:,})")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROWS:,} candidates if not told otherwise"
    )
    parser.add_argument(
        "--samples", type=_positive, default=1, metavar="K", help="judgments of a candidate (default: 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and figures there")
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


if __name__ == "__main__":
    main()
