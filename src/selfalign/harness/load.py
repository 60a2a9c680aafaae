"""The tasks of a benchmark as lm-eval loads them, with their data from the hub or from original files."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfalign.errors import EvaluationError
from selfalign.harness.data import Splits, is_local, read_local
from selfalign.harness.tasks import BENCHMARKS

FEWSHOT_SEED = 1234
"""Draws the examples of GSM8K; lm-eval's own, so that they are those that others have."""
DRAWN_LETTER = (1122, 1129)
"""Keys of the prompts of IFEval that are left out: they name no letter, and their check draws one."""

Tasks = dict[str, Any]
"""Task objects of lm-eval by name."""


def load_tasks(task: str, data_dir: Path | None, seed: int) -> Tasks:
    """Return the tasks of a benchmark, one for each subject that has questions.

    Only the benchmark's own folder is looked through, which takes lm-eval milliseconds instead of seconds.

    Args:
        task: One of `BENCHMARKS` that has no problem here.
        data_dir: Original files. With those of this benchmark, nothing is asked of the hub.
        seed: Orders the choices of each question of GPQA.

    Raises:
        DataError: A file is malformed.
        EvaluationError: lm-eval can't load it, such as from the hub.
    """
    from lm_eval.tasks import TaskManager

    benchmark = BENCHMARKS[task]
    manager = TaskManager(include_path=str(benchmark.directory()), include_defaults=False)
    subjects = {name: str(manager.task_index[name].cfg.get("dataset_name")) for name in benchmark.names()}
    changes: dict[str, dict[str, Any]] = {name: {"num_fewshot": benchmark.shots} for name in subjects}
    if data_dir is not None and is_local(task, data_dir):
        splits = read_local(task, data_dir, list(subjects.values()))
        changes = {
            name: {**changes[name], **_from_memory(task, splits[subject])}
            for name, subject in subjects.items()
            if subject in splits
        }
    for change in changes.values():
        if task == "gpqa":
            change["process_docs"] = _shuffling(seed)
        elif task == "ifeval":
            change["process_docs"] = _without_drawn_letters
    # Inside a group, what is said of a task changes lm-eval's own; at top level it would be a new task.
    members = [{"task": name, **change} for name, change in changes.items()]
    try:
        tasks: Tasks = manager.load([{"group": f"selfalign_{task}", "task": members}])["tasks"]
    except (OSError, RuntimeError, ValueError) as error:
        raise EvaluationError(f"{task}: lm-eval can't load it: {error}") from error
    for loaded in tasks.values():
        loaded.set_fewshot_seed(FEWSHOT_SEED)
    return tasks


def spread(sizes: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """Return how many questions to take of each subject, so that they are as even as the sizes allow.

    Subjects of which there is one more than of others are spread over the order of the subjects.
    """
    if limit is None:
        return dict(sizes)
    taken = dict.fromkeys(sizes, 0)
    left = min(limit, sum(sizes.values()))
    while left:
        open_ones = [name for name in sizes if taken[name] < sizes[name]]
        number = min(left, len(open_ones))
        for place in range(number):
            taken[open_ones[place * len(open_ones) // number]] += 1
        left -= number
    return taken


def group_of(tasks: Tasks) -> Any:
    """Return tasks as a group of lm-eval, which takes the mean of each metric over all their questions."""
    from lm_eval.api.group import AggMetricConfig, Group

    metrics = dict.fromkeys(metric for loaded in tasks.values() for metric in loaded.aggregation())
    group = Group("all", aggregate_metric_list=[AggMetricConfig(metric) for metric in metrics])
    for loaded in tasks.values():
        group.add(loaded)
    return group


def _from_memory(task: str, splits: Splits) -> dict[str, Any]:
    """Return what makes lm-eval take rows that were read already."""
    from datasets import Dataset, DatasetDict

    data = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})

    def custom_dataset(**_: Any) -> DatasetDict:
        return data

    # MATH names a training split, but takes its examples from its own code.
    return {"custom_dataset": custom_dataset, **({"training_split": None} if task == "math" else {})}


def _shuffling(seed: int) -> Callable[[Any], Any]:
    """Return what orders the choices of each question of GPQA.

    lm-eval's own takes another order each time it is called, and it is called to ask and again to score.
    """
    from datasets import Dataset
    from lm_eval.tasks.gpqa.zeroshot.utils import preprocess

    def process_docs(rows: Dataset) -> Dataset:
        shuffled = []
        for row in rows:
            right = preprocess(row["Correct Answer"])
            choices = [preprocess(row[f"Incorrect Answer {number}"]) for number in (1, 2, 3)] + [right]
            random.Random(f"{seed} {row['Record ID']}").shuffle(choices)  # noqa: S311 -- no secret
            named = {f"choice{place}": choice for place, choice in enumerate(choices, start=1)}
            answer = f"({'ABCD'[choices.index(right)]})"
            shuffled.append({"id": row["Record ID"], "Question": row["Question"], **named, "answer": answer})
        return Dataset.from_list(shuffled)

    return process_docs


def _without_drawn_letters(rows: Any) -> Any:
    """Leave out the prompts of IFEval whose verdict would be drawn."""
    return rows.select([place for place, key in enumerate(rows["key"]) if key not in DRAWN_LETTER])
