"""Reading a run's held-out answers, and the votes by people on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from selfalign.evaluation.head_to_head import head_to_head
from selfalign.evaluation.votes import Vote, outcomes_of
from selfalign.records import Completion, Messages, Prompt, RankedPrompt
from selfalign.runs.files import read_json, read_rows

VOTES = "votes.jsonl"
_ANSWERS = "head_to_head_answers.jsonl"
Answers = Mapping[str, Mapping[str, Completion]]
"""By model, in the order of training, and by prompt."""


@dataclass(frozen=True)
class HumanComparison:
    """What people said of a model beside an earlier one."""

    model: str
    other: str
    figures: Mapping[str, Any]
    """As `head_to_head` returns them."""


def held_out_prompts(root: Path) -> dict[str, Messages]:
    """Return the prompts that a run held out from training, by id; none where it holds out none yet.

    Raises:
        DataError: A row is damaged.
    """
    file = root / "data" / "held_out.jsonl"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8") as lines:
        ranked = '"replies"' in next(lines, "")
    record: type[RankedPrompt] | type[Prompt] = RankedPrompt if ranked else Prompt
    return {row.prompt_id: row.messages for row in read_rows(file, record)}


def held_out_answers(root: Path) -> Answers:
    """Return each model's answers to the held-out prompts, from `selfalign eval` or an RLCD run's own.

    Raises:
        DataError: A row is damaged.
    """
    if (root / "evaluation" / "plan.json").is_file():
        models = read_json(root / "evaluation" / "plan.json")["models"]
        found = {
            name: _answers(root / "evaluation" / name / _ANSWERS)
            for name in models
            if (root / "evaluation" / name / "manifests" / "head_to_head_answers.json").is_file()
        }
        if found:
            return found
    if not (root / "rlcd" / "manifests" / "outputs.json").is_file():
        return {}
    files = {"M0": "base_outputs.jsonl", "RLCD": "policy_outputs.jsonl"}
    return {name: _answers(root / "rlcd" / file) for name, file in files.items()}


def read_votes(root: Path) -> list[Vote]:
    """Return the votes on the models of a run in the order in which they were given.

    Raises:
        DataError: A row is damaged.
    """
    return list(read_rows(root / VOTES, Vote)) if (root / VOTES).is_file() else []


def human_comparisons(votes: Sequence[Vote], answers: Answers) -> list[HumanComparison]:
    """Return what the votes add up to for every two models voted on, later models last.

    Votes on a model that is no longer there are left out.
    """
    order = list(answers)
    known = [vote for vote in votes if vote.one in answers and vote.other in answers]
    by_pair = sorted(known, key=lambda vote: (order.index(vote.one), -order.index(vote.other)))
    return [
        HumanComparison(one, other, head_to_head(outcomes_of(given, answers[one], answers[other])))
        for (one, other), given in groupby(by_pair, key=lambda vote: (vote.one, vote.other))
    ]


def _answers(file: Path) -> dict[str, Completion]:
    return {row.prompt_id: row for row in read_rows(file, Completion)}
