"""Running an objective benchmark through lm-eval, on an engine that is already open."""

import io
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfalign.errors import EvaluationError, UnscorableError
from selfalign.evaluation.judge_quality import Measure
from selfalign.evaluation.means import mean_measure
from selfalign.harness.data import is_local
from selfalign.harness.load import DRAWN_LETTER, FEWSHOT_SEED, Tasks, group_of, load_tasks, spread
from selfalign.harness.tasks import BENCHMARKS, problem_of

if TYPE_CHECKING:
    from selfalign.harness.model import Counting, TokenEngine

_GSM8K_EXAMPLES = 7473
"""Rows of the training split, from which examples are drawn."""
_NO_FILTER = ",none"

Row = dict[str, Any]


@dataclass(frozen=True)
class HarnessResult:
    """What a benchmark found of a model."""

    task: str
    metric: str
    """The headline among `measures`."""
    measures: dict[str, Measure]
    """By lm-eval's name of the metric, with that of the filter that replies go through, if there is one."""
    counts: dict[str, int]
    """Questions `asked` and `left_out`; of those asked, with `cut_contexts` and so on."""
    notes: tuple[str, ...]
    """What a reader has to know before comparing the figures."""
    settings: dict[str, Any]
    """How the model was asked, and with which versions."""
    rows: tuple[Row, ...]
    """One for each question, JSON-ready: `id`, `subject`, `prompt_hash`, `target`, `verdicts` by metric, and
    either `reply`, or `logps` and the `choice` that has the highest. None shows a text of GPQA."""


def run_task(
    task: str,
    engine: "TokenEngine",
    *,
    data_dir: Path | None,
    limit: int | None,
    chat: bool,
    seed: int,
    counting: "Counting" = lambda _total: lambda _done: None,
) -> HarnessResult:
    """Ask a model the questions of a benchmark.

    While it runs, nothing else should write to standard error: lm-eval's progress bars are caught there.

    Args:
        task: One of `BENCHMARKS`.
        engine: The model, already open.
        data_dir: Original files; see `problem_of`.
        limit: Most questions to ask, spread evenly over the subjects, the first ones of each; `None` for all.
        chat: Ask in the model's chat format, examples as earlier turns; otherwise it continues bare text.
        seed: Orders the choices of each question of GPQA, and resamples.
        counting: Told how many answers are asked for, one a choice where there are any, returns what is told
            how many there are.

    Raises:
        EvaluationError: Something is missing here.
        UnscorableError: The model has too few positions; or its answers mean nothing: its log-probabilities
            are not finite or the same for all choices, or it replies the same to every question.
        DataError: A file is malformed.
    """
    from lm_eval.evaluator import evaluate

    from selfalign.harness.model import HarnessModel

    benchmark = BENCHMARKS[task]
    problem = problem_of(task, data_dir)
    if problem is not None:
        raise EvaluationError(f"{task}: {problem}")
    _prepare(task)
    with _quietly():
        tasks = load_tasks(task, data_dir, seed)
        left_out = sum(_left_out(loaded) for loaded in tasks.values())
        taken = spread({name: len(loaded.eval_docs) for name, loaded in tasks.items()}, limit)
        tasks = {name: tasks[name] for name, number in taken.items() if number}
        group = group_of(tasks)
        model = HarnessModel(engine, chat=chat, max_new_tokens=benchmark.max_new_tokens, counting=counting)
        found = evaluate(
            model,
            {"tasks": tasks, "groups": {group.name: group}},
            samples=None if limit is None else {name: list(range(taken[name])) for name in tasks},
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    samples = {name.removeprefix(benchmark.task): found["samples"][name] for name in tasks}
    rows = tuple(row for subject, its in samples.items() for row in _rows(subject, its))
    _check_answers(task, rows)
    counts = {
        "asked": len(rows),
        "left_out": left_out,
        "cut_contexts": len(model.cut_contexts),
        "cut_replies": len(model.cut_replies),
        "tied": sum(row["logps"].count(max(row["logps"])) > 1 for row in rows if "logps" in row),
    }
    settings = _settings(task, next(iter(tasks.values())), data_dir, chat=chat)
    return HarnessResult(
        task=task,
        metric=benchmark.metric,
        measures=_measures(task, rows, found["results"][group.name], seed),
        counts=counts,
        notes=tuple(_notes(task, tasks, counts, settings)),
        settings=settings,
        rows=rows,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep lm-eval's notices and progress bars from the terminal."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def _prepare(task: str) -> None:
    """Make lm-eval's checks of replies work, and the same each time."""
    if task == "math" and threading.current_thread() is not threading.main_thread():
        raise EvaluationError("math: its check keeps time by signals; run it in the main thread")
    if task == "ifeval":
        import langdetect

        langdetect.DetectorFactory.seed = 0


def _left_out(loaded: Any) -> int:
    """Return how many rows of a task's data set are not asked."""
    split = loaded.config.test_split or loaded.config.validation_split
    return len(loaded.dataset[split]) - len(loaded.eval_docs)


def _rows(subject: str, samples: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each question, from lm-eval's samples: one for each question and filter of replies."""
    rows: dict[int, Row] = {}
    for sample in samples:
        row = rows.setdefault(sample["doc_id"], _row(subject, sample))
        for metric in sample["metrics"]:
            name, value = f"{metric},{sample['filter']}".removesuffix(_NO_FILTER), sample[metric]
            row["verdicts"][name] = [float(v) for v in value] if isinstance(value, list) else float(value)
    return list(rows.values())


def _row(subject: str, sample: Mapping[str, Any]) -> Row:
    doc, answers, target = sample["doc"], [answer for (answer,) in sample["resps"]], sample["target"]
    row = {
        "id": next((doc[name] for name in ("id", "key") if name in doc), sample["doc_id"]),
        "subject": subject or None,
        "prompt_hash": sample["prompt_hash"],
        "target": " | ".join(map(str, target)) if isinstance(target, list) else target,
        "verdicts": {},
    }
    if isinstance(answers[0], str):
        return {**row, "reply": answers[0]}
    logps = [logp for logp, _ in answers]
    return {**row, "logps": logps, "choice": logps.index(max(logps))}


def _check_answers(task: str, rows: Sequence[Row]) -> None:
    """Refuse answers that have nothing to do with the questions, whatever they would score.

    Raises:
        UnscorableError: They are such.
    """
    if all("logps" in row and len(set(row["logps"])) == 1 for row in rows):
        raise UnscorableError(f"{task}: the model gives all choices of a question the same log-probability")
    replies = [row["reply"] for row in rows if "reply" in row]
    if len(replies) > 1 and len(set(replies)) == 1:
        said = f"{replies[0][:40]!r}" if replies[0] else "nothing"
        raise UnscorableError(f"{task}: the model says {said} to each of {len(replies)} questions")


def _measures(task: str, rows: Sequence[Row], aggregated: Mapping[str, Any], seed: int) -> dict[str, Measure]:
    """Return each metric with its interval over questions; its value is lm-eval's own.

    Raises:
        EvaluationError: lm-eval takes another mean than this.
    """
    measures = {}
    for name in rows[0]["verdicts"]:
        verdicts = [row["verdicts"][name] for row in rows]
        values = [verdict if isinstance(verdict, list) else [verdict] for verdict in verdicts]
        measure = mean_measure(
            [value for its in values for value in its],
            undefined="no question was asked",
            seed=seed,
            clusters=[place for place, its in enumerate(values) for _ in its],
        )
        theirs = aggregated[name if "," in name else name + _NO_FILTER]
        if not math.isclose(theirs, measure["value"] or 0.0, abs_tol=1e-9):
            raise EvaluationError(
                f"{task}: lm-eval has {theirs} for {name} and we {measure['value']}; install the version of "
                "lm-eval that selfalign[eval] asks for"
            )
        measures[name] = measure
    return measures


def _settings(task: str, loaded: Any, data_dir: Path | None, *, chat: bool) -> dict[str, Any]:
    """Return how the questions of a benchmark were asked; `loaded` is one of its tasks."""
    benchmark = BENCHMARKS[task]
    replies = loaded.config.output_type == "generate_until"
    limit = (loaded.config.generation_kwargs or {}).get("max_gen_toks", benchmark.max_new_tokens)
    return {
        "task": benchmark.task,
        "task_version": loaded.VERSION,
        "lm_eval": metadata.version("lm_eval"),
        "data": "files" if is_local(task, data_dir) else f"hub:{benchmark.hub}",
        "shots": benchmark.shots,
        "shots_from": benchmark.shots_from,
        "fewshot_seed": FEWSHOT_SEED,
        "chat": chat,
        "max_new_tokens": limit if replies else None,
    }


def _notes(task: str, tasks: Tasks, counts: Mapping[str, int], settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what sets the figures apart from those of others."""
    benchmark = BENCHMARKS[task]
    if counts["asked"] + counts["left_out"] < benchmark.questions:
        which = "the first of each subject" if benchmark.has_subjects else "the first ones"
        yield f"{counts['asked']} of {benchmark.questions} questions: {which}"
    if counts["left_out"]:
        yield f"left out: the prompts {DRAWN_LETTER}, as their check draws a letter at random"
    if task == "gsm8k" and (rows := len(tasks["gsm8k"].dataset["train"])) < _GSM8K_EXAMPLES:
        yield f"examples are drawn from {rows} of {_GSM8K_EXAMPLES} training rows"
    if counts["cut_contexts"]:
        yield f"{counts['cut_contexts']} prompts are longer than the model's context and lost their beginning"
    if counts["cut_replies"]:
        yield f"{counts['cut_replies']} replies reached the limit of {settings['max_new_tokens']} tokens"
    if counts["tied"]:
        yield f"{counts['tied']} questions have several likeliest choices, of which the first is taken"
