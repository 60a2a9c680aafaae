"""The objective benchmarks: which task of lm-eval each is, how it is asked, and what it lacks here.

Prompts, few-shot examples, metrics and their aggregation are lm-eval's own; `run` runs them.
"""

import importlib.util
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from selfalign.harness.data import FILES, is_local, missing_file

_INSTALL = "pip install 'selfalign[eval]'"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as lm-eval has it."""

    folder: str
    """Where among lm-eval's tasks its files are."""
    task: str
    """lm-eval's name of it; where this ends with `_`, what the names of its subjects' tasks begin with."""
    metric: str
    """The headline: a metric of lm-eval, with the filter that replies go through, if there is one."""
    questions: int
    """How many the whole of it has."""
    hub: str
    """The data set."""
    gated: bool = False
    """Whether its owners give access to whoever accepts their terms."""
    shots: int = 0
    """Examples before each question."""
    shots_from: Literal["lm-eval", "published"] = "lm-eval"
    """Whether that is lm-eval's default or, where lm-eval leaves it at none, the number in published use."""
    max_new_tokens: int = 256
    """Of a reply where lm-eval's task sets no limit of its own."""

    @property
    def has_subjects(self) -> bool:
        """Say whether lm-eval has a task for each subject."""
        return self.task.endswith("_")

    def names(self) -> list[str]:
        """Return the names of its tasks in lm-eval, which has to be installed."""
        if not self.has_subjects:
            return [self.task]
        return sorted(file.stem for file in self.directory().glob(f"{self.task}*.yaml"))

    def directory(self) -> Path:
        """Return the directory of its task files; lm-eval has to be installed."""
        spec = importlib.util.find_spec("lm_eval")
        assert spec is not None  # noqa: S101 -- `problem_of` was asked
        assert spec.origin is not None  # noqa: S101 -- likewise
        return Path(spec.origin).parent / "tasks" / self.folder


BENCHMARKS = {
    "math": Benchmark(
        folder="minerva_math",
        task="minerva_math_",
        metric="math_verify",
        questions=5000,
        hub="EleutherAI/hendrycks_math",
        shots=4,
        max_new_tokens=1024,
    ),
    "gsm8k": Benchmark(
        folder="gsm8k",
        task="gsm8k",
        metric="exact_match,flexible-extract",
        questions=1319,
        hub="openai/gsm8k",
        shots=5,
        max_new_tokens=512,
    ),
    "mmlu": Benchmark(
        folder="mmlu/default",
        task="mmlu_",
        metric="acc",
        questions=14042,
        hub="cais/mmlu",
        shots=5,
        shots_from="published",
    ),
    "gpqa": Benchmark(
        folder="gpqa/zeroshot",
        task="gpqa_diamond_zeroshot",
        metric="acc",
        questions=198,
        hub="Idavidrein/gpqa",
        gated=True,
    ),
    "cmmlu": Benchmark(
        folder="cmmlu",
        task="cmmlu_",
        metric="acc",
        questions=11582,
        hub="haonan-li/cmmlu",
        shots=5,
        shots_from="published",
    ),
    "ceval": Benchmark(
        folder="ceval",
        task="ceval-valid_",
        metric="acc",
        questions=1346,
        hub="ceval/ceval-exam",
        shots=5,
        shots_from="published",
    ),
    "ifeval": Benchmark("ifeval", "ifeval", "prompt_level_strict_acc", 541, "google/IFEval"),
    "arc_easy": Benchmark("arc", "arc_easy", "acc_norm", 2376, "allenai/ai2_arc"),
    "arc_challenge": Benchmark("arc", "arc_challenge", "acc_norm", 1172, "allenai/ai2_arc"),
    "hellaswag": Benchmark("hellaswag", "hellaswag", "acc_norm", 10042, "Rowan/hellaswag"),
    "siqa": Benchmark("siqa", "social_iqa", "acc", 1954, "lighteval/siqa"),
    "piqa": Benchmark("piqa", "piqa", "acc_norm", 1838, "baber/piqa"),
    "openbookqa": Benchmark("openbookqa", "openbookqa", "acc_norm", 500, "allenai/openbookqa"),
    "nq": Benchmark(
        folder="nq_open",
        task="nq_open",
        metric="exact_match,remove_whitespace",
        questions=3610,
        hub="google-research-datasets/nq_open",
    ),
}
"""By our names. The subset of GPQA is the diamond one; C-Eval is its validation split, the one with answers.

Source: the tasks of lm-eval 0.4.13. Five examples for MMLU, CMMLU and C-Eval are those of 2009.03300,
    2306.09212 and 2305.08322. Which of a task's metrics is the headline, and the length of replies to MATH
    and GSM8K, are our choice.
"""

NEEDS = {
    "math": ("sympy", "math_verify", "antlr4"),
    "ifeval": ("langdetect", "nltk", "immutabledict"),
}
"""Modules besides lm-eval."""

_ANTLR = "4.11"
_SENTENCES = "tokenizers/punkt_tab"


def problem_of(task: str, data_dir: Path | None) -> str | None:
    """Say what a benchmark lacks here and how to get it; `None` if it can be run. No model is needed.

    Args:
        task: One of `BENCHMARKS`.
        data_dir: Original files in the layout of `data.FILES`; a benchmark whose folder is there is
            taken from there alone, any other from the hub.
    """
    if importlib.util.find_spec("lm_eval") is None or importlib.util.find_spec("datasets") is None:
        return f"needs lm-eval; {_INSTALL}"
    lacking = [name for name in NEEDS.get(task, ()) if importlib.util.find_spec(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)}; {_INSTALL}"
    if task == "math" and not metadata.version("antlr4-python3-runtime").startswith(_ANTLR):
        return f"needs antlr4-python3-runtime {_ANTLR}, with which sympy reads LaTeX; {_INSTALL}"
    return (_sentences_problem() if task == "ifeval" else None) or _data_problem(task, data_dir)


def _sentences_problem() -> str | None:
    """Say how to get the sentence boundaries of NLTK, which lm-eval would fetch on its own."""
    import nltk

    try:
        nltk.data.find(_SENTENCES)
    except LookupError:
        return (
            "77 of its 834 instructions count sentences or words with NLTK's punkt_tab, which is not here; "
            f"python -m nltk.downloader punkt_tab, or put {_SENTENCES} into a directory named by NLTK_DATA"
        )
    return None


def _data_problem(task: str, data_dir: Path | None) -> str | None:
    if data_dir is None or not is_local(task, data_dir):
        return _hub_problem(task)
    benchmark = BENCHMARKS[task]
    subjects = [name.removeprefix(benchmark.task) for name in benchmark.names()]
    lacking = missing_file(task, data_dir, subjects)
    return None if lacking is None else f"{lacking} is missing; put the original file there"


def _hub_problem(task: str) -> str | None:
    """Say why a data set can't be had from the hub."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    name = BENCHMARKS[task].hub
    cache = os.environ.get("HF_DATASETS_CACHE") or f"{constants.HF_HOME}/datasets"
    if (Path(cache) / name.replace("/", "___")).is_dir():
        return None
    page = f"https://huggingface.co/datasets/{name}"
    instead = f", or put its original files into data_dir ({', '.join(FILES[task])})" if task in FILES else ""
    if constants.HF_HUB_OFFLINE:
        return f"{page} is not cached, and HF_HUB_OFFLINE is set; unset it{instead}"
    try:
        HfApi().auth_check(name, repo_type="dataset")
    except GatedRepoError:
        return f"{page} is gated; accept its terms there and set HF_TOKEN{instead}"
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        return f"{page} can't be reached ({error}); go online{instead}"
    return None
