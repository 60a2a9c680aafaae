"""HumanEval, MBPP and their Chinese versions: their problems, and what a model is asked.

Nothing here runs code: `code_replies` makes a program of a reply, and `sandbox` runs it.
"""

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from selfalign.data import read_rows
from selfalign.data.fields import identifier, located, text
from selfalign.errors import DataError
from selfalign.records import Message, Messages

CodeBenchmark = Literal["humaneval", "mbpp", "humaneval_cn", "mbpp_cn"]

_MBPP_TEST = {str(task_id) for task_id in range(11, 511)}
# What a chat model is asked.
_QUESTIONS: dict[CodeBenchmark, str] = {
    "humaneval": (
        "Complete this Python function:\n\n```python\n{prompt}\n```\n\n"
        "Reply with the whole function in one Python code block, together with every import that it needs."
    ),
    "mbpp": (
        "Solve this task in Python:\n\n{task}\n\n"
        "The code must pass these tests:\n\n```python\n{tests}\n```\n\n"
        "Reply with the whole code in one Python code block, together with every import that it needs."
    ),
    "humaneval_cn": (
        "请补全这个 Python 函数：\n\n```python\n{prompt}\n```\n\n"
        "请在一个 Python 代码块中给出完整的函数，并写出它需要的全部 import。"
    ),
    "mbpp_cn": (
        "请用 Python 完成这个任务：\n\n{task}\n\n代码必须通过下列测试：\n\n```python\n{tests}\n```\n\n"
        "请在一个 Python 代码块中给出完整的代码，并写出它需要的全部 import。"
    ),
}


@dataclass(frozen=True)
class CodeProblem:
    """A problem whose answer is a Python function that tests check."""

    key: str
    """The task id of the data set."""
    messages: Messages
    """What a chat model is asked."""
    prefix: str
    """Code that a reply may continue, the entry point's signature last; empty in MBPP."""
    entry_point: str
    """Name of the function, or class, that the tests use."""
    tests: str
    """Code that raises unless the answer, run before it in the same module, is right."""
    reference: str
    """The data set's own answer, a whole program."""


def read_problems(location: str, benchmark: CodeBenchmark) -> list[CodeProblem]:
    """Read the problems of a benchmark from its original file, in file order; of MBPP the test split.

    The Chinese versions have the fields of the English ones. Windows line breaks become plain ones.

    Args:
        location: A path, or `hub:owner/name[:split]`; JSON lines or an array, gzipped or not.
        benchmark: Which one the file holds.

    Raises:
        DataError: The file can't be read, a field is missing or malformed, two rows share a task id, or no
            row of MBPP is of the test split.

    Source: 2107.03374 for HumanEval; 2108.07732 for MBPP, whose task ids 11 to 510 are the test
        split. The wording of the prompts is our choice.
    """
    rows: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, row in read_rows(location):
        with located(location, number):
            key = identifier(row, "task_id") or text(row, "task_id")
            if key in rows:
                raise DataError(f'"task_id" {key} is that of row {rows[key][0]} too; keep one of the two')
        rows[key] = number, row
    problems = []
    if benchmark in ("humaneval", "humaneval_cn"):
        for key, (number, row) in rows.items():
            with located(location, number):
                problems.append(_humaneval(key, row, benchmark))
        return problems
    for key, (number, row) in rows.items():
        if key in _MBPP_TEST:
            with located(location, number):
                problems.append(_mbpp(key, row, benchmark))
    if not problems:
        message = "no row is of the test split, whose task ids are 11 to 510; give the whole file"
        raise DataError(message, path=location)
    return problems


def _humaneval(key: str, row: Mapping[str, Any], benchmark: CodeBenchmark) -> CodeProblem:
    prompt, entry_point, test = _plain(row, "prompt"), text(row, "entry_point"), _plain(row, "test")
    # The prompt ends in a docstring, or in a bare signature that only a body makes whole.
    if entry_point not in _names(prompt + "\n    pass\n", "prompt"):
        raise DataError(f'"entry_point" is {entry_point!r}, which "prompt" does not define')
    if "check" not in _names(test, "test"):
        raise DataError('"test" does not define check(candidate)')
    question = _QUESTIONS[benchmark].format(prompt=prompt.strip("\n"))
    return CodeProblem(
        key=key,
        messages=(Message(role="user", content=question),),
        prefix=prompt,
        entry_point=entry_point,
        tests=f"{test}\n\ncheck({entry_point})\n",
        reference=prompt + _plain(row, "canonical_solution"),
    )


def _mbpp(key: str, row: Mapping[str, Any], benchmark: CodeBenchmark) -> CodeProblem:
    code, tests = _plain(row, "code"), _tests(row)
    setup = _plain(row, "test_setup_code") if row.get("test_setup_code") else ""
    defined = _names(code, "code")
    used = [node.id for node in ast.walk(_parsed(tests, "test_list")) if isinstance(node, ast.Name)]
    entry_point = next((name for name in used if name in defined), None)
    if entry_point is None:
        raise DataError('"test_list" uses nothing that "code" defines')
    question = _QUESTIONS[benchmark].format(task=_plain(row, "text").strip(), tests=tests)
    return CodeProblem(
        key=key,
        messages=(Message(role="user", content=question),),
        prefix="",
        entry_point=entry_point,
        tests=f"{setup}\n{tests}\n",
        reference=code,
    )


def _tests(row: Mapping[str, Any]) -> str:
    """Return the asserts of a task of MBPP, one a line."""
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise DataError('"test_list" is missing or not a list of tests; each must be text')
    return _unix("\n".join(tests))


def _plain(row: Mapping[str, Any], name: str) -> str:
    """Return a text field with plain line breaks."""
    return _unix(text(row, name))


def _unix(content: str) -> str:
    return content.replace("\r\n", "\n").replace("\r", "\n")


def _names(code: str, field: str) -> list[str]:
    """Return the functions, classes and variables that a field's code defines at its top level."""
    names = []
    for node in _parsed(code, field).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def _parsed(code: str, field: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MBPP has escapes that newer versions of Python dislike
            return ast.parse(code)
    except (SyntaxError, ValueError) as error:
        raise DataError(f'"{field}" is no Python code: {error}') from None
