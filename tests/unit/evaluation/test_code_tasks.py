"""Code benchmarks on their published files, and the code in replies of every shape."""

import gzip
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from selfalign.errors import DataError
from selfalign.evaluation.code_replies import extract_code, program
from selfalign.evaluation.code_tasks import CodeProblem, pass_at_k, read_problems
from selfalign.evaluation.sandbox import Limits, run_program, run_programs, sandbox_problem
from selfalign.records import Message

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
    assert problem.raw_prompt == problem.prefix == HUMANEVAL_ROW["prompt"]
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
    assert problem.raw_prompt is None


def test_a_base_model_sees_tasks_two_to_four_of_the_file_as_examples(tmp_path):
    examples = [
        {**MBPP_ROW, "task_id": i, "text": f"Text {i}.", "code": f"def double(n): return {i}"}
        for i in range(1, 6)
    ]
    (problem,) = read_problems(write(tmp_path / "a", MBPP_ROW, *examples), "mbpp")
    tests = "\n".join(MBPP_ROW["test_list"])
    shown = [
        f"Task: Text {i}.\nTests:\n{tests}\nPython code:\n```python\ndef double(n): return {i}\n```\n\n"
        for i in (2, 3, 4)
    ]
    own = f"Task: {MBPP_ROW['text']}\nTests:\n{tests}\nPython code:\n```python\n"
    assert problem.raw_prompt == "".join(shown) + own


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
    assert all(problem.raw_prompt.count("```python\n") == 4 for problem in mbpp)


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


# Replies


AREA = CodeProblem(
    key="Own/0",
    messages=(Message(role="user", content="?"),),
    raw_prompt=HUMANEVAL_ROW["prompt"],
    prefix=HUMANEVAL_ROW["prompt"],
    entry_point="area",
    tests="assert area(0) == 0\n",
    reference="",
)
DOUBLE = replace(AREA, prefix="", entry_point="double", tests="assert double(1) == 2\n")
PREFIX = AREA.prefix
WHOLE = "import math\n\ndef area(r):\n    return math.pi * r * r"
BODY = "    return math.pi * r * r"


@pytest.mark.parametrize(
    "tag", ["python", "py", "Python", "python3", "", " python", "{.python}", "py title=a.py"]
)
def test_a_block_with_any_tag_is_read(tag):
    assert extract_code(f"Here you are:\n\n```{tag}\n{WHOLE}\n```\n\nIt is short.", AREA) == WHOLE


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(f"```python\n{WHOLE}\n```", id="alone"),
        pytest.param(f"````python\n{WHOLE}\n````", id="four backticks"),
        pytest.param(f"Sure!\n```python\n{WHOLE}", id="cut off"),
        pytest.param(
            f"Sure!\r\n```python\r\n{WHOLE}\r\n```\r\nBye".replace("\n", "\r\n").replace("\r\r", "\r"),
            id="windows",
        ),
        pytest.param(
            f"First:\n```bash\npip install numpy\n```\nThen:\n```python\n{WHOLE}\n```", id="shell before"
        ),
        pytest.param(f"```python\n{WHOLE}\n```\nUse it:\n```python\nprint(area(2))\n```", id="example after"),
        pytest.param(
            f"Use it so:\n```python\nprint(area(2))\n```\n```python\n{WHOLE}\n```", id="example before"
        ),
        pytest.param(f"```\narea(2) -> 12.57\n```\n```python\n{WHOLE}\n```", id="output before"),
        pytest.param(
            f"```python\n{WHOLE}\n```\nOr:\n```python\ndef area(r):\n    return 3\n```", id="the first of two"
        ),
        pytest.param(
            f"```python\n{WHOLE}\n```python\ndef area(r):\n    return 3\n```", id="closed by the next"
        ),
        pytest.param("- So:\n  ```python\n  " + WHOLE.replace("\n", "\n  ") + "\n  ```\n", id="in a list"),
        pytest.param(f"```text\nidea\n```\n```text\n{WHOLE}\n```\n", id="wrong tag"),
        pytest.param("    " + WHOLE.replace("\n", "\n    "), id="indented as a whole"),
    ],
)
def test_the_block_that_defines_the_function_is_the_answer(reply):
    assert extract_code(reply, AREA).rstrip("\n").replace("\n  \n", "\n\n") == WHOLE


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        pytest.param(WHOLE, WHOLE, id="code alone"),
        pytest.param(f"Here you are:\n\n{WHOLE}\n\nIt works well.\n", WHOLE + "\n\n", id="prose around"),
        pytest.param(
            f"Import the module\nfrom the library.\n{WHOLE}\nDone!", WHOLE + "\n", id="prose like code"
        ),
        pytest.param(
            f"{WHOLE}\n\nprint(area(2))\nprint(area(",
            WHOLE + "\n\nprint(area(2))\n",
            id="cut off in an example",
        ),
        pytest.param(
            f"Sure:\n@cache\n{WHOLE[13:]}\nEnjoy it.", "@cache\n" + WHOLE[13:] + "\n", id="a decorator"
        ),
        pytest.param(f"Sure:\nPI = 3\n{WHOLE}\nEnjoy it.", f"PI = 3\n{WHOLE}\n", id="a constant"),
        pytest.param(
            f"{WHOLE}\n\nif __name__ == '__main__':\n    print(area(1))\n",
            f"{WHOLE}\n\nif __name__ == '__main__':\n    print(area(1))\n",
            id="a main guard",
        ),
    ],
)
def test_a_whole_function_without_a_block_is_found_among_prose(reply, code):
    assert extract_code(reply, AREA) == code


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        pytest.param(BODY, BODY, id="body alone"),
        pytest.param(f"\n{BODY}\n", f"\n{BODY}\n", id="a blank line first"),
        pytest.param(f"{BODY}\n\n\ndef other():\n    pass\n", f"{BODY}\n\n", id="another function"),
        pytest.param(f"{BODY}\n\nprint(area(2))\n", f"{BODY}\n", id="an example"),
        pytest.param(f"{BODY}\n\n\n{WHOLE}\n", f"{BODY}\n\n", id="the function again"),
        pytest.param(f"{BODY}\n```\n\nThat is all.", BODY, id="a fence after it"),
        pytest.param(f"{BODY}\n\nif __name__ == '__main__':\n    x(", f"{BODY}\n", id="a main guard"),
        pytest.param(
            f"    s = '''\nno end\n'''\n{BODY}\nend",
            f"    s = '''\nno end\n'''\n{BODY}",
            id="an unindented text",
        ),
        pytest.param(f"    x = [\n1,\n]\n{BODY}\nend", f"    x = [\n1,\n]\n{BODY}", id="an unindented list"),
        pytest.param(
            f"    x = 1\n# why\n{BODY}\nend", f"    x = 1\n# why\n{BODY}", id="an unindented comment"
        ),
        pytest.param(
            "    import math\n\n    return 1\n\ndef area(r):\n",
            "    import math\n\n    return 1\n",
            id="an import",
        ),
        pytest.param(BODY.strip(), BODY, id="indentation lost"),
        pytest.param(
            "if r:\n        return 1\n    return 2",
            "    if r:\n        return 1\n    return 2",
            id="of one line",
        ),
        pytest.param(
            "if r:\n    return 1\nreturn 2", "    if r:\n        return 1\n    return 2", id="of all lines"
        ),
        pytest.param(f"The body:\n```python\n{BODY}\n```\nEnd.", BODY, id="in a block"),
        pytest.param(
            "```python\nif r:\n    return 1\nreturn 2\n```",
            "    if r:\n        return 1\n    return 2",
            id="block, lost",
        ),
    ],
)
def test_a_body_continues_the_prompt_as_far_as_it_goes(reply, body):
    assert extract_code(reply, AREA) == f"{PREFIX}{body}\n"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (
            "def double(n):\n    return 2 * n\n```\n\nTask: Next.\nPython code:\n```python\ndef f(): 1\n```",
            "def double(n):\n    return 2 * n",
        ),
        ("double = lambda n: 2 * n\n```", "double = lambda n: 2 * n"),
        ("double: object = lambda n: 2 * n\n```", "double: object = lambda n: 2 * n"),
        ("class double(int): pass\n```", "class double(int): pass"),
        ("async def double(n): pass", "async def double(n): pass"),
        ("import math\ndef other(n):\n    return n\n```\nTask:", "Task:"),
        ("```python\ndef other(n):\n    return n\n```\nBye", "def other(n):\n    return n"),
        ("I can't.", "I can't."),
        ("", ""),
    ],
)
def test_a_problem_without_a_prefix_takes_whole_code_only(reply, code):
    assert extract_code(reply, DOUBLE) == code


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\nEnd.\nOf it.", "\n```", "\n\n```\n```python\nx"])
def test_a_reply_cut_anywhere_gives_code(end):
    for cut in range(len(WHOLE) + 1):
        for reply in (WHOLE[:cut] + end, f"```python\n{WHOLE[:cut]}{end}", f"x = (\n{WHOLE[:cut]}{end}"):
            code = extract_code(reply, AREA)
            assert code.strip("\n") in reply or code.startswith(PREFIX)


def test_code_that_is_no_python_is_returned_to_fail():
    broken = "def area(r)\n    return 1"
    assert extract_code(f"So:\n```python\n{broken}\n```", AREA) == broken
    assert extract_code("I can't help with that.", AREA) == "I can't help with that."


@pytest.mark.parametrize(
    "text",
    [
        "(" * 50_000,
        "-" * 100_000 + "1",
        "x" + ".a" * 50_000,
        "lambda:" * 5_000 + "1",
        "f'{" * 200,
        "a\0b",
        "not " * 20_000,
        "9**9**9**9",
        "'x' * 10**10",
    ],
)
def test_no_text_breaks_the_extractor(text):
    for reply in (
        text,
        f"```\n{text}",
        f"    {text}",
        f"def area(r):\n    return {text}\n",
        f"area = {text}",
    ):
        assert isinstance(extract_code(reply, AREA), str)


def test_the_program_brings_the_imports_and_helpers_of_the_prompt():
    before, code, tests = program("def area(r):\n    return 0 * helper()", AREA)
    assert before == "import math\n\ndef helper():\n    return 1\n\n"
    assert (code, tests) == ("def area(r):\n    return 0 * helper()", AREA.tests)
    assert program("code", DOUBLE) == ("", "code", DOUBLE.tests)


@needs_data
@pytest.mark.parametrize(
    ("file", "benchmark"), [(HUMANEVAL, "humaneval"), (CHINESE, "humaneval_cn"), (MBPP, "mbpp")]
)
def test_a_published_answer_is_found_whole_in_every_wrapping(file, benchmark):
    for problem in read_problems(str(file), benchmark):
        answer = problem.reference.strip("\n")
        for reply in (
            f"```python\n{answer}\n```",
            f"Sure, here it is:\n\n```\n{answer}\n```\n\nIt walks through the input once.\n",
            f"```py\n{answer}",
            f"{answer}\n```\n\nTask: Another one.",
            answer,
        ):
            assert extract_code(reply, problem) == answer, problem.key
        assert (
            extract_code(f"Here it is:\n\n{answer}\n\nThis is right.\n", problem).strip("\n").endswith(answer)
        )


@needs_data
@pytest.mark.parametrize(("file", "benchmark"), [(HUMANEVAL, "humaneval"), (CHINESE, "humaneval_cn")])
def test_a_published_body_is_found_whole_in_every_continuation(file, benchmark):
    for problem in read_problems(str(file), benchmark):
        body = problem.reference.removeprefix(problem.prefix).rstrip()
        for ending in ("", "\n", "\n\n\ndef main():\n    pass\n", "\n\nprint(1)\n", "\n```\nDone."):
            assert extract_code(body + ending, problem).rstrip() == problem.prefix + body, problem.key


# pass@k


def test_pass_at_k_is_the_share_of_all_draws_of_k_that_hold_a_pass():
    """The oracle draws every subset of k samples."""
    for n in range(1, 7):
        for c in range(n + 1):
            samples = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                draws = list(itertools.combinations(samples, k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_known_values():
    """1 - C(3, 2) / C(5, 2) = 0.7; with one sample it is the verdict itself."""
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert (pass_at_k(1, 1, 1), pass_at_k(1, 0, 1)) == (1.0, 0.0)
    assert pass_at_k(200, 100, 100) == pytest.approx(1.0)
    for wrong in ((1, 2, 1), (1, 0, 2), (2, -1, 1), (2, 1, 0)):
        with pytest.raises(ValueError, match="no pass@"):
            pass_at_k(*wrong)
