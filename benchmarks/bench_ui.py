"""Time the live page on a run of 100,000 candidates: how soon it opens, and how soon it answers a filter.

The rows are made up, of realistic length, a few of a megabyte among them. The page is served by a process of
its own and asked over HTTP as a browser asks. Every count that it shows is compared with what was made.
"""

import argparse
import json
import platform
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import psutil
from bench_memory import CANDIDATE_WORDS, CANDIDATES, PROMPT_WORDS, VOCABULARY
from rich.console import Console
from rich.table import Table

from selfalign import __version__
from selfalign.records import Completion, Judgment, Message, PreferencePair, Prompt, content_id
from selfalign.runs.files import write_json, write_rows

ROWS, QUICK_ROWS = 100_000, 12_000
ITERATIONS = 3
JUDGMENTS = 3
"""Of each candidate."""
RATIONALE_WORDS = (30, 60)
LONG_EVERY, LONG_CHARACTERS = 20_000, 1_000_000
"""A candidate in so many is this long."""
TIMES = 3
EPILOG = """\
examples:
  make bench-ui QUICK=1                 is it as it was? a quarter of a minute
  make bench-ui ARGS="--json ui.json"   the figures to quote; a minute
"""
LEGEND = (
    "Seconds from the request to the last byte of the page: of the first request after the server's start, "
    f"and the slowest of {TIMES} further ones. The goal: a page in 2, a filter in 1."
)
QUESTIONS = (
    ("list of runs", ""),
    ("a run, opened", "runs/made"),
    ("candidates, best first", "runs/made/candidates"),
    ("candidates by words and reward", "runs/made/candidates?text=number+water&score_from=3"),
    ("candidates by length, page 500", "runs/made/candidates?sort=length&page=500"),
    ("candidates of an iteration", "runs/made/candidates?place=iteration-2&text=question"),
    ("judgments by words in rationale", "runs/made/judgments?text=language+if&score_to=2"),
    ("pairs by margin and words", "runs/made/pairs?margin_from=2&text=place+work&sort=margin"),
    ("prompts by words", "runs/made/prompts?text=people+each&sort=margin"),
    ("all that is known of a prompt", "runs/made/prompt?id={prompt}"),
)


@dataclass(frozen=True)
class Made:
    """What a run was made of."""

    prompts: int
    candidates: int
    judgments: int
    pairs: int
    prompt: str
    """Id of one of the prompts."""


@dataclass(frozen=True)
class Answered:
    """How long the page took to answer."""

    question: str
    first: float
    slowest: float


class UnequalError(Exception):
    """The page shows another number of rows than there are."""


class Maker:
    """Makes rows of one iteration after the other; the same ones every time."""

    def __init__(self, seed: int = 0) -> None:
        """Take the seed of all texts."""
        self._draw = random.Random(seed)  # noqa: S311 -- reproducible texts, no secret
        self._said = self._draw.choices(VOCABULARY.split(), k=200_000)

    def text(self, bounds: tuple[int, int]) -> str:
        """Return so many words, from the fewest to the most."""
        begin = self._draw.randrange(len(self._said) - bounds[1])
        return " ".join(self._said[begin : begin + self._draw.randint(*bounds)])

    def prompt(self, name: str) -> Prompt:
        """Return a prompt."""
        content = f"Question {name}: {self.text(PROMPT_WORDS)}?"
        return Prompt.of([Message(role="user", content=content)], source="made")

    def candidates(self, prompt: Prompt, number: int) -> Iterator[Completion]:
        """Yield the candidates of a prompt, the first of which is the candidate of this number."""
        for sample in range(CANDIDATES):
            text = self.text(CANDIDATE_WORDS)
            if (number + sample) % LONG_EVERY == 0:
                text = text.ljust(LONG_CHARACTERS, "x")
            name = content_id(prompt.prompt_id, str(sample))
            yield Completion(
                completion_id=name,
                prompt_id=prompt.prompt_id,
                sample=sample,
                text=text,
                finish_reason="stop",
                num_tokens=text.count(" ") + 1,
            )

    def judgments(self, candidate: Completion) -> list[Judgment]:
        """Return the judgments of a candidate."""
        scores = [self._draw.randint(0, 5) for _ in range(JUDGMENTS)]
        return [
            Judgment(
                judgment_id=content_id(candidate.completion_id, str(sample)),
                completion_id=candidate.completion_id,
                prompt_id=candidate.prompt_id,
                sample=sample,
                score=score,
                reason=None,
                text=f"{self.text(RATIONALE_WORDS)}\nScore: {score}",
                attempts=1,
            )
            for sample, score in enumerate(scores)
        ]


def make_run(root: Path, rows: int) -> Made:
    """Write a finished run of so many candidates, rounded down to whole prompts of all iterations."""
    maker = Maker()
    prompts_each = rows // (ITERATIONS * CANDIDATES)
    pairs_made = 0
    for iteration in range(1, ITERATIONS + 1):
        prompts = [maker.prompt(f"{iteration}.{number}") for number in range(prompts_each)]
        candidates, judgments, pairs = [], [], []
        for prompt in prompts:
            rewards = {}
            for candidate in maker.candidates(prompt, len(candidates)):
                judged = maker.judgments(candidate)
                candidates.append(candidate)
                judgments += judged
                rewards[candidate] = sum(j.score or 0 for j in judged) / JUDGMENTS
            if max(rewards.values()) > min(rewards.values()):
                pairs.append(pair_of(prompt, rewards))
        pairs_made += len(pairs)
        for name, made in (
            ("prompts", prompts),
            ("candidates", candidates),
            ("judgments", judgments),
            ("pairs", pairs),
        ):
            write_rows(root / f"iteration-{iteration}" / f"{name}.jsonl", made)
    write_json(root / "recipe.resolved.json", {"method": "self_rewarding", "policy": {"model": "made"}})
    total = ITERATIONS * prompts_each
    counts = (total, total * CANDIDATES, total * CANDIDATES * JUDGMENTS, pairs_made)
    return Made(*counts, prompts[0].prompt_id)


def pair_of(prompt: Prompt, rewards: dict[Completion, float]) -> PreferencePair:
    """Return the pair of the best and the worst candidate."""
    chosen, rejected = max(rewards, key=rewards.__getitem__), min(rewards, key=rewards.__getitem__)
    return PreferencePair(
        pair_id=content_id(chosen.completion_id, rejected.completion_id),
        prompt_id=prompt.prompt_id,
        messages=prompt.messages,
        chosen_id=chosen.completion_id,
        rejected_id=rejected.completion_id,
        chosen=chosen.text or "",
        rejected=rejected.text or "",
        reward_chosen=rewards[chosen],
        reward_rejected=rewards[rejected],
        margin=rewards[chosen] - rewards[rejected],
        chosen_tokens=chosen.num_tokens,
        rejected_tokens=rejected.num_tokens,
    )


def measure(runs: Path, made: Made) -> tuple[list[Answered], int]:
    """Serve the page, ask all questions, and return the times and the server's peak memory in bytes."""
    port = free_port()
    program = "from selfalign.cli.main import main; main()"
    words = ["ui", str(runs), "--no-browser", "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True)  # noqa: S603 -- our own command
    peak = 0
    try:
        assert server.stdout is not None  # noqa: S101 -- a pipe
        if "Ctrl-C" not in server.stdout.readline():
            raise SystemExit("the page was not served; no figure is shown")
        found = []
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}/", timeout=60, trust_env=False) as http:
            for question, address in QUESTIONS:
                seconds = [ask(http, address.format(prompt=made.prompt), made) for _ in range(1 + TIMES)]
                found.append(Answered(question, seconds[0], max(seconds[1:])))
                peak = max(peak, psutil.Process(server.pid).memory_info().rss)
    finally:
        server.terminate()
        server.wait()
    return found, peak


def ask(http: httpx2.Client, address: str, made: Made) -> float:
    """Return the seconds that a page took, once it is known to show all rows.

    Raises:
        UnequalError: It does not.
    """
    begun = time.perf_counter()
    answer = http.get(address)
    seconds = time.perf_counter() - begun
    answer.raise_for_status()
    kind = address.removeprefix("runs/made/")
    if kind in ("prompts", "candidates", "judgments", "pairs"):
        shown = re.search(r'role="status"><strong>([\d,]+) ', answer.text)
        if shown is None or int(shown[1].replace(",", "")) != getattr(made, kind):
            raise UnequalError(f"the page shows {shown and shown[1]} {kind}, not {getattr(made, kind):,}")
    return seconds


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def main() -> None:
    """Make, serve, ask and show; exits with 1 where the page shows another number of rows than there are."""
    options = _parser().parse_args()
    rows = options.rows or (QUICK_ROWS if options.quick else ROWS)
    console = Console()
    setting = {
        "versions": f"selfalign {__version__}, duckdb {version('duckdb')}, fastapi {version('fastapi')}, "
        f"Python {platform.python_version()}",
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
    }
    with TemporaryDirectory() as folder:
        with console.status("making a run"):
            made = make_run(Path(folder) / "made", rows)
            size = sum(file.stat().st_size for file in Path(folder).rglob("*.jsonl"))
        setting["run"] = (
            f"{made.prompts:,} prompts, {made.candidates:,} candidates, {made.judgments:,} judgments, "
            f"{made.pairs:,} pairs; {size / 1e6:,.0f} MB"
        )
        lines = "\n".join(f"{name}: {value}" for name, value in setting.items())
        console.print(f"{lines}\n\n{LEGEND}\n", markup=False, highlight=False)
        try:
            with console.status("asking the page"):
                found, peak = measure(Path(folder), made)
        except UnequalError as error:
            raise SystemExit(f"{error}; no figure is shown") from None
    table = Table("", "first, s", "later, s")
    for row in found:
        table.add_row(row.question, f"{row.first:.2f}", f"{row.slowest:.2f}")
    console.print(table, highlight=False)
    console.print(f"memory of the server: {peak / 1e6:,.0f} MB", highlight=False)
    if options.json is not None:
        result = {"setting": setting, "seconds": [asdict(row) for row in found], "memory": peak}
        options.json.write_text(f"{json.dumps(result, indent=2)}\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, metavar="N", help=f"candidates (default: {ROWS:,})")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROWS:,} candidates if not told otherwise"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and figures there")
    return parser


if __name__ == "__main__":
    main()
