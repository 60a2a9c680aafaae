"""The code in replies of every shape, made up and made of the published answers."""

from dataclasses import replace
from pathlib import Path

import pytest

from selfalign.evaluation.code_replies import extract_code, program
from selfalign.evaluation.code_tasks import CodeProblem, read_problems
from selfalign.records import Message

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
HUMANEVAL = DATA / "humaneval" / "HumanEval.jsonl.gz"
CHINESE = DATA / "humaneval_xl" / "python" / "Chinese.jsonl"
MBPP = DATA / "mbpp" / "mbpp.jsonl"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data files are not here")

PREFIX = 'import math\n\ndef helper():\n    return 1\n\ndef area(r: float) -> float:\n    """Area."""\n'
AREA = CodeProblem(
    key="Own/0",
    messages=(Message(role="user", content="?"),),
    prefix=PREFIX,
    entry_point="area",
    tests="assert area(0) == 0\n",
    reference="",
)
DOUBLE = replace(AREA, prefix="", entry_point="double", tests="assert double(1) == 2\n")
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
        pytest.param(f"```\nmy idea\n```python\n{WHOLE}\n```", id="after one that is left open"),
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
