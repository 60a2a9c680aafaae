"""Code benchmarks on their published files, their reference answers in the sandbox, and pass@k."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from selfalign.errors import DataError
from selfalign.evaluation.code_replies import extract_code, program
from selfalign.evaluation.code_tasks import read_problems
from selfalign.evaluation.sandbox import Limits, run_program, run_programs, sandbox_problem

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
HUMANEVAL = DATA / "humaneval" / "HumanEval.jsonl.gz"
EXAMPLE = DATA / "humaneval" / "example_problem.jsonl"
CHINESE = DATA / "humaneval_xl" / "python" / "Chinese.jsonl"
MBPP = DATA / "mbpp" / "mbpp.jsonl"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data files are not here")
needs_sandbox = pytest.mark.usefixtures("working_sandbox")


@pytest.fixture(scope="module")
def working_sandbox():
    problem = sandbox_problem()
    if problem is not None:
        pytest.skip(f"no sandbox here: {problem}")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Reading


HUMANEVAL_ROW = {
    "task_id": "Own/0",
    "prompt": 'import math\n\ndef helper():\n    return 1\n\ndef area(r: float) -> float:\n    """Area."""\n',
    "entry_point": "area",
    "canonical_solution": "    return math.pi * r * r * helper()\n",
    "test": "def check(candidate):\n    assert candidate(0) == 0\n",
}
MBPP_ROW = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "def half(n):\r\n  return n / 2\r\ndef double(n):\r\n  return n * 2\r\n",
    "test_setup_code": "one = 1\r\n",
    "test_list": ["assert set([double(one)]) == {2}", "assert double(half(4)) == 4"],
}


def test_a_humaneval_row_becomes_a_problem(tmp_path):
    (problem,) = read_problems(write(tmp_path / "a", HUMANEVAL_ROW), "humaneval")
    assert problem.key == "Own/0"
    assert problem.prefix == HUMANEVAL_ROW["prompt"]
    assert problem.tests.endswith("\ncheck(area)\n")
    assert problem.reference == HUMANEVAL_ROW["prompt"] + HUMANEVAL_ROW["canonical_solution"]
    (message,) = problem.messages
    assert message.role == "user"
    assert f"```python\n{HUMANEVAL_ROW['prompt']}```" in message.content


def test_an_mbpp_row_becomes_a_problem_that_shows_its_tests(tmp_path):
    (problem,) = read_problems(write(tmp_path / "a", MBPP_ROW), "mbpp")
    assert (problem.key, problem.entry_point, problem.prefix) == ("11", "double", "")
    assert problem.tests == "one = 1\n\n" + "\n".join(MBPP_ROW["test_list"]) + "\n"
    assert problem.reference == MBPP_ROW["code"].replace("\r\n", "\n")
    (message,) = problem.messages
    assert MBPP_ROW["text"] in message.content
    assert "```python\n" + "\n".join(MBPP_ROW["test_list"]) + "\n```" in message.content
    assert "one = 1" not in message.content


def test_the_chinese_versions_ask_in_chinese_and_are_otherwise_the_same(tmp_path):
    for row, english, chinese in (
        (HUMANEVAL_ROW, "humaneval", "humaneval_cn"),
        (MBPP_ROW, "mbpp", "mbpp_cn"),
    ):
        (one,) = read_problems(write(tmp_path / "a", row), english)
        (other,) = read_problems(write(tmp_path / "a", row), chinese)
        assert "Python 代码块" in other.messages[0].content
        assert replace(one, messages=other.messages) == other


@pytest.mark.parametrize(
    ("benchmark", "change", "message"),
    [
        ("humaneval", {"task_id": None}, 'the field "task_id" is missing or null'),
        ("humaneval", {"prompt": None}, 'the field "prompt" is missing or null'),
        ("humaneval", {"prompt": "def area(:"}, '"prompt" is no Python code: invalid syntax'),
        (
            "humaneval",
            {"entry_point": "volume"},
            '"entry_point" is \'volume\', which "prompt" does not define',
        ),
        ("humaneval", {"test": "assert True"}, '"test" does not define check(candidate)'),
        ("humaneval", {"test": 3}, '"test" is a number; it must be text'),
        ("humaneval", {"canonical_solution": None}, 'the field "canonical_solution" is missing or null'),
        ("humaneval", {"task_id": "Own/0"}, '"task_id" Own/0 is that of row 1 too'),
        ("mbpp", {"text": None}, 'the field "text" is missing or null'),
        ("mbpp", {"code": "def double(n) return"}, '"code" is no Python code'),
        ("mbpp", {"test_list": []}, '"test_list" is missing or not a list of tests'),
        ("mbpp", {"test_list": "assert double(1) == 2"}, '"test_list" is missing or not a list of tests'),
        ("mbpp", {"test_list": ["assert double(1) = 2"]}, '"test_list" is no Python code'),
        ("mbpp", {"test_list": ["assert triple(1) == 3"]}, '"test_list" uses nothing that "code" defines'),
    ],
)
def test_a_malformed_row_is_named(tmp_path, benchmark, change, message):
    good = HUMANEVAL_ROW if benchmark == "humaneval" else MBPP_ROW
    bad = {**good, "task_id": "Own/1" if benchmark == "humaneval" else 12, **change}
    path = write(tmp_path / "rows.jsonl", good, bad)
    with pytest.raises(DataError) as error:
        read_problems(path, benchmark)
    assert str(error.value).startswith(f"{path}, row 2: {message}")


def test_a_file_without_test_rows_of_mbpp_is_refused(tmp_path):
    path = write(tmp_path / "a", {**MBPP_ROW, "task_id": 10}, {**MBPP_ROW, "task_id": 511})
    with pytest.raises(DataError, match="no row is of the test split"):
        read_problems(path, "mbpp")


@needs_data
def test_the_published_files_have_their_published_numbers_of_problems():
    humaneval, chinese = (
        read_problems(str(HUMANEVAL), "humaneval"),
        read_problems(str(CHINESE), "humaneval_cn"),
    )
    mbpp = read_problems(str(MBPP), "mbpp")
    assert [problem.key for problem in humaneval] == [f"HumanEval/{i}" for i in range(164)]
    assert [problem.key for problem in mbpp] == [str(i) for i in range(11, 511)]
    assert len(chinese) == 80
    with gzip.open(HUMANEVAL, "rt") as file:
        assert [problem.entry_point for problem in humaneval] == [
            json.loads(line)["entry_point"] for line in file
        ]
    entry_points = {problem.key: problem.entry_point for problem in mbpp}
    assert (entry_points["11"], entry_points["77"], entry_points["367"]) == (
        "remove_Occ",
        "is_Diff",
        "is_tree_balanced",
    )


# Known verdicts


@needs_data
@needs_sandbox
@pytest.mark.parametrize(("file", "benchmark"), [(HUMANEVAL, "humaneval"), (CHINESE, "humaneval_cn")])
def test_every_reference_answer_passes(file, benchmark):
    problems = read_problems(str(file), benchmark)
    outcomes = dict(run_programs({p.key: program(p.reference, p) for p in problems}))
    assert {key: o for key, o in outcomes.items() if o.status != "passed"} == {}
    assert len(outcomes) == len(problems)


@needs_data
@needs_sandbox
@pytest.mark.slow
def test_every_reference_answer_of_mbpp_passes():
    test_every_reference_answer_passes(MBPP, "mbpp")


@needs_data
@needs_sandbox
def test_an_answer_that_returns_nothing_passes_nowhere():
    problems = read_problems(str(HUMANEVAL), "humaneval")
    programs = {p.key: program(f"def {p.entry_point}(*a, **k):\n    pass\n", p) for p in problems}
    assert {outcome.status for _, outcome in run_programs(programs)} == {"failed"}


@needs_data
@needs_sandbox
def test_the_published_samples_of_the_example_get_their_published_verdicts():
    """The three last of the six pass: the published pass@1 is 0.5, at 3 s a program."""
    (problem,) = read_problems(str(EXAMPLE), "humaneval")
    rows = (EXAMPLE.parent / "example_samples.jsonl").read_text().splitlines()
    completions = [json.loads(row)["completion"] for row in rows]
    codes = [extract_code(completion, problem) for completion in completions]
    assert codes == [problem.prefix + completion + "\n" for completion in completions]
    statuses = [run_program(program(code, problem), Limits(wall_seconds=3)).status for code in codes]
    assert statuses == ["failed", "timed_out", "failed", "passed", "passed", "passed"]
