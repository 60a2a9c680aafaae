"""Time the near-duplicate filter: 100,000 prompts, each asked about and then added, on one core.

The prompts are real ones and others grown from them. Before a time is printed, the decisions must be those of
ROUGE-L as the `rouge_score` package computes it, and, wherever all pairs can be compared, those of doing so.
"""

import argparse
import csv
import gzip
import json
import platform
import random
import re
import resource
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import log
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from rich.console import Console
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from selfalign import __version__
from selfalign.dedup import NearDuplicates, words

THRESHOLD = 0.7
MIN_WORDS, MAX_WORDS = 4, 150
"""The lengths that the method's own filter lets through."""
FIELDS: dict[str, str] = {
    "alpaca/alpaca_en_demo.json": "instruction",
    "alpaca_eval/results/text_davinci_003/model_outputs.json": "instruction",
    "cmmlu/test/*.csv": "Question",
    "gsm8k/test.jsonl": "question",
    "gsm8k/train.jsonl": "question",
    "hh_rlhf/harmless-base/test.jsonl.gz": "chosen",
    "ifeval/input_data.jsonl": "prompt",
    "math/test.jsonl": "problem",
    "mbpp/mbpp.jsonl": "text",
    "oasst2_quality_flat/oasst2_evaluation_fine_tuning.jsonl": "prompt_text",
    "self_instruct/seed_tasks.jsonl": "instruction",
    "self_instruct/user_oriented_instructions.jsonl": "instruction",
}
"""Files with prompts, and the field that holds them."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
EPILOG = """\
examples:
  make bench-dedup QUICK=1                    is it as it was? up to a minute
  make bench-dedup ARGS="--json dedup.json"   the figures to quote: 100,000 prompts; 3 minutes
"""
LEGEND = (
    "Seconds are of the processor: both sides run in one thread, so they are those of the clock on a machine "
    "that does nothing else. Each text is asked about and then added, duplicate or not, so that the last one "
    "meets all others. Exponent: of the growth from the size above; 1 is linear, all pairs are 2. All pairs: "
    "each text against every earlier one by rapidfuzz's compiled LCS, in turn with ours; its decisions were "
    "the same."
)


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    grown: int
    """Texts made; a size is the first so many, so that all sizes have the same mix."""
    checked: int
    """Texts whose decisions are compared with those of rouge_score."""
    sizes: tuple[int, ...]
    all_pairs_up_to: int
    rounds: int
    """Measurements a side at sizes where all pairs are compared too; elsewhere one."""


QUICK = Plan(100_000, 200, (3_125, 6_250, 12_500, 25_000), 6_250, 1)
FULL = Plan(100_000, 400, (6_250, 12_500, 25_000, 50_000, 100_000), 12_500, 2)


@dataclass(frozen=True)
class Row:
    """One size; processor seconds, medians over the rounds."""

    texts: int
    seconds: float
    duplicates: int
    all_pairs_seconds: float | None
    """`None` where all pairs were not compared."""


class UnequalError(Exception):
    """Two ways to find near duplicates decide differently."""


def real_prompts(data: Path) -> dict[str, str]:
    """Return the distinct prompts of 4 to 150 words, each with the file pattern it is from.

    Of a conversation it is the first turn.
    """
    prompts: dict[str, str] = {}
    for pattern, field in FIELDS.items():
        for path in sorted(data.glob(pattern)):
            for row in _rows(path):
                text = row[field].removeprefix("\n\nHuman: ").split("\n\nAssistant:")[0].strip()
                if MIN_WORDS <= len(words(text)) <= MAX_WORDS:
                    prompts.setdefault(text, pattern)
    return prompts


def grow(prompts: Mapping[str, str], size: int, seed: int) -> list[str]:
    """Return so many distinct texts in random order: the prompts, and others made from them.

    Of the others three in four are the first sentences of a prompt followed by the last of another one of the
    same file; one in four is a prompt, or such a text, with 2 to 50 % of its words changed: replaced by a
    word of another prompt, dropped, or followed by one. New words are made up nowhere, so that the vocabulary
    grows less than that of as many real prompts would; this makes it harder.
    """
    draw = random.Random(seed)  # noqa: S311 -- a reproducible draw, no secret
    real = list(prompts)
    files: defaultdict[str, list[str]] = defaultdict(list)
    for text, pattern in prompts.items():
        files[pattern].append(text)
    texts, known = draw.sample(real, min(size, len(real))), set(real)
    while len(texts) < size:
        one = draw.choice(real)
        if draw.random() < 0.75:
            text = _join(one, draw.choice(files[prompts[one]]), draw)
        else:
            text = _edit(draw.choice(texts), one, draw)
        if text not in known and MIN_WORDS <= len(words(text)) <= MAX_WORDS:
            known.add(text)
            texts.append(text)
    draw.shuffle(texts)
    return texts


def ours(texts: Sequence[str]) -> list[str | None]:
    """Return for each text the first near duplicate before it, as the library finds it."""
    seen = NearDuplicates(THRESHOLD)
    found: list[str | None] = []
    for text in texts:
        found.append(seen.find(text))
        seen.add(text)
    return found


def all_pairs(texts: Sequence[str]) -> list[str | None]:
    """Return the same by comparing each text with every earlier one.

    Words are numbered, and each is one character of a string, which rapidfuzz aligns fastest.
    """
    numbers: dict[str, int] = {}
    strings = ["".join(chr(numbers.setdefault(w, len(numbers))) for w in words(text)) for text in texts]
    lengths = np.array([len(string) for string in strings])
    found: list[str | None] = [None]
    for index in range(1, len(texts)):
        matches = cdist([strings[index]], strings[:index], scorer=LCSseq.similarity)[0]
        like = np.flatnonzero(2 * matches / (lengths[index] + lengths[:index]) > THRESHOLD)
        found.append(texts[like[0]] if like.size else None)
    return found


class _Words(Tokenizer):
    """Our words, each text split once: rouge_score's own are the same for ASCII and none for Chinese."""

    def __init__(self) -> None:
        self._words: dict[str, list[str]] = {}

    def tokenize(self, text: str) -> list[str]:
        if text not in self._words:
            self._words[text] = words(text)
        return self._words[text]


def by_rouge_score(texts: Sequence[str]) -> list[str | None]:
    """Return the same by the `rouge_score` package, which compares one pair at a time."""
    score = RougeScorer(["rougeL"], tokenizer=_Words()).score
    # It rounds three times, so that exactly 0.7 may read as more; the next F1 of such texts is 3e-4 away.
    above = THRESHOLD + 1e-9
    return [
        next((one for one in texts[:index] if score(one, text)["rougeL"].fmeasure > above), None)
        for index, text in enumerate(texts)
    ]


def timed(
    find: Callable[[Sequence[str]], list[str | None]], texts: Sequence[str]
) -> tuple[float, list[str | None]]:
    """Return the processor seconds that it took to find the near duplicates, and these."""
    start = process_time()
    found = find(texts)
    return process_time() - start, found


def measure(texts: Sequence[str], rounds: int, *, with_all_pairs: bool) -> Row:
    """Time both ways in turn, or ours alone, and compare their decisions.

    Raises:
        UnequalError: They decide differently.
    """
    our_seconds: list[float] = []
    their_seconds: list[float] = []
    for _ in range(rounds):
        seconds, found = timed(ours, texts)
        our_seconds.append(seconds)
        if with_all_pairs:
            seconds, theirs = timed(all_pairs, texts)
            their_seconds.append(seconds)
            check_equal(texts, found, theirs)
    return Row(
        texts=len(texts),
        seconds=median(our_seconds),
        duplicates=sum(text is not None for text in found),
        all_pairs_seconds=median(their_seconds) if with_all_pairs else None,
    )


def check_equal(texts: Sequence[str], ours: Sequence[str | None], theirs: Sequence[str | None]) -> None:
    """Compare decisions text by text, and which text is returned.

    Raises:
        UnequalError: One differs.
    """
    for text, one, other in zip(texts, ours, theirs, strict=True):
        if one != other:
            raise UnequalError(f"the first near duplicate of {text!r} is {one!r} (ours) but {other!r}")


def exponent(small: Row, large: Row) -> float:
    """Return the power of the number of texts by which the time grew."""
    return log(large.seconds / small.seconds) / log(large.texts / small.texts)


def table_of(rows: Sequence[Row]) -> Table:
    """Lay out the sizes, from small to large."""
    table = Table(title=f"near duplicates, ROUGE-L F1 > {THRESHOLD}", title_justify="left")
    for column in (
        "texts",
        "seconds",
        "texts/s",
        "exponent",
        "duplicates",
        "all pairs\ns",
        "all pairs\n/ ours",
    ):
        table.add_column(column, justify="right")
    for above, row in zip([None, *rows[:-1]], rows, strict=True):
        theirs = row.all_pairs_seconds
        table.add_row(
            f"{row.texts:,}",
            f"{row.seconds:.2f}",
            f"{row.texts / row.seconds:,.0f}",
            "-" if above is None else f"{exponent(above, row):.2f}",
            f"{row.duplicates:,}",
            "-" if theirs is None else f"{theirs:.2f}",
            "-" if theirs is None else f"{theirs / row.seconds:.1f}x",
        )
    return table


def main() -> None:
    """Check, measure and show; exits with 1 where decisions differ."""
    options = _parser().parse_args()
    plan = QUICK if options.quick else FULL
    if missing := [pattern for pattern in FIELDS if not any(options.data.glob(pattern))]:
        raise SystemExit(f"not in {options.data}: {', '.join(missing)}; --data takes the directory with them")
    console = Console()
    prompts = real_prompts(options.data)
    texts = grow(prompts, plan.grown, seed=0)
    setting = _setting(prompts, texts)
    console.print("\n".join(f"{name}: {value}" for name, value in setting.items()), markup=False)
    try:
        check = _check(prompts, plan.checked)
        console.print(f"check: {check['what']}\n\n{LEGEND}\n", markup=False, highlight=False)
        rows: list[Row] = []
        for size in plan.sizes:
            compared = size <= plan.all_pairs_up_to
            with console.status(f"{size:,} texts"):
                rows.append(measure(texts[:size], plan.rounds if compared else 1, with_all_pairs=compared))
    except UnequalError as error:
        raise SystemExit(f"{error}; no time is shown") from None
    console.print(table_of(rows), highlight=False)
    overall = exponent(rows[0], rows[-1])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    console.print(
        f"exponent from {rows[0].texts:,} to {rows[-1].texts:,} texts: {overall:.2f}; "
        f"peak memory of the process: {memory / 1e6:,.0f} MB",
        highlight=False,
    )
    if options.json is not None:
        result = {
            "setting": setting,
            "check": check,
            "rows": [asdict(row) for row in rows],
            "exponent": overall,
            "peak_bytes": memory,
        }
        options.json.write_text(f"{json.dumps(result, indent=2)}\n", encoding="utf-8")


def _check(prompts: Mapping[str, str], size: int) -> dict[str, Any]:
    """Compare our decisions with those of rouge_score on texts grown from few prompts: many are alike.

    Raises:
        UnequalError: One differs.
    """
    few = random.Random(1).sample(list(prompts.items()), size // 4)  # noqa: S311 -- a reproducible draw
    texts = grow(dict(few), size, seed=1)
    theirs_seconds, theirs = timed(by_rouge_score, texts)
    found = ours(texts)
    check_equal(texts, found, theirs)
    duplicates = sum(text is not None for text in found)
    return {
        "what": f"{size} texts grown from {size // 4} prompts: all decisions, {duplicates} of them "
        f"duplicates, are those of rouge_score, which took {theirs_seconds:.1f} s one pair at a time",
        "texts": size,
        "duplicates": duplicates,
        "rouge_score_seconds": theirs_seconds,
    }


def _setting(prompts: Mapping[str, str], texts: Sequence[str]) -> dict[str, str]:
    """Return what the figures depend on, by name."""
    chinese = sum(pattern.startswith("cmmlu") for pattern in prompts.values())
    lengths = np.percentile([len(words(text)) for text in texts], (10, 50, 90))
    versions = ", ".join(f"{name} {version(name)}" for name in ("rapidfuzz", "rouge_score", "numpy"))
    return {
        "versions": f"selfalign {__version__}, {versions}, Python {platform.python_version()}",
        "machine": f"{platform.machine()}, one core",
        "prompts": f"{len(prompts):,} distinct real ones of {MIN_WORDS} to {MAX_WORDS} words, {chinese:,} of "
        "them Chinese",
        "texts": f"{min(len(prompts), len(texts)):,} of these, and others grown from them to {len(texts):,}: "
        "3 in 4 are sentences of two prompts of the same file, 1 in 4 is an earlier text with 2 to 50 % of "
        "its words changed; each size is the first so many",
        "words": f"{', '.join(f'{n:.0f}' for n in lengths)} at the 10th, 50th and 90th percentile",
    }


def _rows(path: Path) -> Iterator[Any]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as lines:
        if path.suffix == ".csv":
            yield from csv.DictReader(lines)
        elif path.suffix == ".json":
            yield from json.load(lines)
        else:
            yield from map(json.loads, lines)


def _join(one: str, other: str, draw: random.Random) -> str:
    first, last = _SENTENCE_END.split(one), _SENTENCE_END.split(other)
    space = " " if " " in one + other else ""
    return space.join([*first[: draw.randint(1, len(first))], *last[draw.randrange(len(last)) :]])


def _edit(text: str, other: str, draw: random.Random) -> str:
    """Change words, or characters where there are no spaces, into those of the other text."""
    rate, new = draw.uniform(0.02, 0.5), other.split() if " " in other else list(other)
    edited: list[str] = []
    for word in text.split() if " " in text else text:
        kinds = ([draw.choice(new)], [], [word, draw.choice(new)])
        edited += draw.choice(kinds) if draw.random() < rate else [word]
    return (" " if " " in text else "").join(edited)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="directory with the prompt files"
    )
    parser.add_argument("--quick", action="store_true", help="sizes up to a quarter, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and figures there")
    return parser


if __name__ == "__main__":
    main()
