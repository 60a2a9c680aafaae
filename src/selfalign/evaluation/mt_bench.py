"""MT-Bench: its files, and what the judge is asked.

A judge gives each of the two turns of a question 1 to 10 points. Questions, reference answers and the judge's
prompts are read from the user's copy in FastChat's layout; none of their text is ours.

Source: Zheng et al. 2023 (arXiv 2306.05685), single-answer grading.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfalign.data import read_rows
from selfalign.data.fields import Row, kind, located, objects, text, whole
from selfalign.errors import DataError
from selfalign.records import Message, Messages, Record, content_id

Turn = Literal[1, 2]
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""Sampling temperature of the answers by category; 0 in all others."""
WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories that the judge grades beside a reference answer."""
_WRONG_REFERENCES = {
    104: "59ecf5b076de08f1",
    105: "3b93a782710fd341",
    109: "2967116c34f2a019",
    111: "d4e82dabf93d7c42",
    113: "8cf103ac85d858c0",
    114: "c3eac72dc8deae3a",
    120: "07115e8ed0c7f1a5",
    122: "a1e0a19b34d89a06",
    124: "80a5eb1f2f4f3014",
    125: "9eed5fe4a5013c0b",
    126: "d6102487d93c88e0",
    128: "fdc0eda878b902d3",
    130: "adb91d70708d80bf",
}
"""Content ids of the published reference answers that are wrong, by question."""
_SHOWN = {
    "single-v1": ("question", "answer"),
    "single-math-v1": ("question", "ref_answer_1", "answer"),
    "single-v1-multi-turn": ("question_1", "answer_1", "question_2", "answer_2"),
    "single-math-v1-multi-turn": (
        *("question_1", "ref_answer_1", "question_2", "ref_answer_2"),
        *("answer_1", "answer_2"),
    ),
}
"""The judge prompts of single-answer grading, and what each has to show."""


class Question(Record):
    """A question of two turns."""

    question_id: int
    category: str
    turns: tuple[str, str]


@dataclass(frozen=True)
class JudgePrompt:
    """A system message, which may be empty, and a template for `str.format`."""

    system: str
    template: str


@dataclass(frozen=True)
class MTBench:
    """The benchmark as the user's files have it."""

    questions: tuple[Question, ...]
    references: Mapping[int, tuple[str, str]]
    """Reference answers to both turns by `question_id`."""
    prompts: Mapping[str, JudgePrompt]
    """By name."""


def read_mt_bench(folder: Path, references: Path | None = None) -> MTBench:
    """Read `question.jsonl`, `judge_prompts.jsonl` and `reference_answer/gpt-4.jsonl` of a folder.

    Args:
        folder: In FastChat's layout.
        references: Another file of reference answers, such as a corrected one, in the same row format.

    Raises:
        DataError: A file can't be read, a row is malformed or repeats an earlier one, a question that is
            graded beside a reference has none, or a judge prompt is missing or doesn't show what it has to.
    """
    file = folder / "question.jsonl"
    questions: dict[int, Question] = {}
    for number, row in read_rows(str(file)):
        with located(str(file), number):
            name = _question_id(row, questions)
            questions[name] = Question(question_id=name, category=text(row, "category"), turns=_turns(row))
    answers = _read_references(references or folder / "reference_answer" / "gpt-4.jsonl")
    lacking = [q.question_id for q in questions.values() if q.category in WITH_REFERENCE]
    if lacking := [name for name in lacking if name not in answers]:
        raise DataError(
            f"there is no reference answer to {', '.join(map(str, lacking))}; add the rows",
            path=references or folder / "reference_answer" / "gpt-4.jsonl",
        )
    return MTBench(tuple(questions.values()), answers, _read_prompts(folder / "judge_prompts.jsonl"))


def wrong_references(bench: MTBench) -> list[int]:
    """Return the questions whose reference answer is one of those published that are known to be wrong.

    They are 13 with the published file and none with one that corrects them all.
    """
    return [
        question.question_id
        for question in bench.questions
        if (turns := bench.references.get(question.question_id)) is not None
        and content_id(*(turn.strip() for turn in turns)) == _WRONG_REFERENCES.get(question.question_id)
    ]


def judge_request(bench: MTBench, question: Question, turn: Turn, answers: Sequence[str]) -> Messages:
    """Return the messages that ask a judge to grade one turn; for the second the whole conversation is shown.

    The answers stand unfenced, as in the published templates: a model that writes to its judge may sway it.

    Args:
        bench: Has the templates and reference answers.
        question: Of the benchmark.
        turn: To grade.
        answers: The model's, up to that turn at least, unchanged.
    """
    reference = question.category in WITH_REFERENCE
    prompt = bench.prompts[f"single{'-math' if reference else ''}-v1{'-multi-turn' if turn == 2 else ''}"]
    values = {"question": question.turns[0], "answer": answers[0]}
    shown = {"question": question.turns, "answer": answers}
    if reference:
        shown["ref_answer"] = bench.references[question.question_id]
    for name, texts in shown.items():
        values |= {f"{name}_{number}": content for number, content in enumerate(texts, start=1)}
    asked = Message(role="user", content=prompt.template.format(**values))
    return (Message(role="system", content=prompt.system), asked) if prompt.system.strip() else (asked,)


def _question_id(row: Row, earlier: Mapping[int, object]) -> int:
    name = whole(row, "question_id")
    if name is None:
        raise DataError('the field "question_id" is missing or null')
    if name in earlier:
        raise DataError(f'"question_id" {name} is there twice; remove one of the rows')
    return name


def _turns(row: Row) -> tuple[str, str]:
    match row.get("turns"):
        case [str(first), str(second)] if first.strip() and second.strip():
            return first, second
        case list(turns):
            raise DataError(f'"turns" has {len(turns)} items; it must be two texts that are not empty')
        case other:
            raise DataError(f'"turns" is {kind(other)}; it must be a list of two texts')


def _read_references(file: Path) -> dict[int, tuple[str, str]]:
    references: dict[int, tuple[str, str]] = {}
    for number, row in read_rows(str(file)):
        with located(str(file), number):
            choices = objects(row, "choices")
            if len(choices) != 1:
                raise DataError(f'"choices" has {len(choices)} items; it must be one reference answer')
            references[_question_id(row, references)] = _turns(choices[0])
    return references


def _read_prompts(file: Path) -> dict[str, JudgePrompt]:
    prompts: dict[str, JudgePrompt] = {}
    for number, row in read_rows(str(file)):
        with located(str(file), number):
            name = text(row, "name")
            if name not in _SHOWN:
                continue
            if name in prompts:
                raise DataError(f"the judge prompt {name} is there twice; remove one of the rows")
            template = text(row, "prompt_template")
            marks = {field: f"<<{field}>>" for field in _SHOWN[name]}
            try:
                shown = template.format(**marks)
            except (AttributeError, IndexError, KeyError, ValueError) as error:
                raise DataError(
                    f'"prompt_template" of {name} can\'t be filled ({error}); it may name '
                    f"{', '.join(marks)}, and any other brace is written twice"
                ) from None
            if lacking := [field for field, mark in marks.items() if mark not in shown]:
                raise DataError(f'"prompt_template" of {name} doesn\'t show {", ".join(lacking)}')
            prompts[name] = JudgePrompt(text(row, "system_prompt"), template)
    if lacking := [name for name in _SHOWN if name not in prompts]:
        raise DataError(f"there is no judge prompt {', '.join(lacking)}; add it", path=file)
    return prompts
