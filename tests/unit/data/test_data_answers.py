import json
from collections import Counter

import pytest

from selfalign.data import read_answers
from selfalign.errors import DataError

USER = {"role": "user", "content": "Why?"}
ROW = {"prompt": "Why?", "completion": "Because."}


@pytest.fixture
def read(tmp_path):
    """Write rows to a file and read the answers of it; what was dropped comes with them."""

    def read(*rows):
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        dropped: Counter[str] = Counter()
        return list(read_answers(str(path), dropped)), dropped

    return read


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"instruction": "Why?", "response": "Because."},
        {"prompt_text": "Why?", "response_text": "Because.", "quality_score": None},
        {
            "prompt": [{"role": "user", "content": "Why?"}],
            "completion": [{"role": "assistant", "content": "Because."}],
        },
        {"instruction": "Why?", "completions": [{"response": "Because."}]},
        {"prompt": "Why?", "completions": [{"completion": "Because."}]},
    ],
)
def test_every_form_says_the_same(read, row):
    (answer,), _ = read(row)
    assert [(turn.role, turn.content) for turn in answer.messages] == [("user", "Why?")]
    assert (answer.text, answer.score, answer.completion_id) == ("Because.", None, None)


@pytest.mark.parametrize(
    ("fields", "score"),
    [
        ({"score": 2}, 2.0),
        ({"reward": -0.5}, -0.5),
        ({"overall_score": 8.5, "fine-grained_score": 4.25}, 8.5),
        ({"overall_score": None, "fine-grained_score": 4.25}, 4.25),
        ({"annotations": {"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "5"}}}, 4.5),
        ({"annotations": {"honesty": {"Rating": "N/A"}, "helpfulness": {"Rating": "5"}}}, 5.0),
        ({"annotations": {"honesty": {"Rating": "N/A"}}}, None),
        ({"score": None}, None),
        ({}, None),
    ],
)
def test_the_score_is_where_files_of_the_field_have_it(read, fields, score):
    (answer,), _ = read(ROW | fields)
    assert answer.score == score


def test_ultrafeedback_gives_an_answer_a_completion_in_order(read):
    answers, _ = read(
        {
            "instruction": "Why?",
            "completions": [{"response": str(n), "overall_score": n, "critique": f"c{n}"} for n in range(4)],
        }
    )
    assert [(a.row, a.text, a.score, a.critique) for a in answers] == [
        (1, str(n), n, f"c{n}") for n in range(4)
    ]
    assert len({a.prompt_id for a in answers}) == 1


def test_a_judgment_may_name_its_completion_alone(read):
    (answer,), _ = read({"completion_id": "c", "score": 3, "text": "Score: 3"})
    assert (answer.messages, answer.text, answer.completion_id) == (None, None, "c")
    assert (answer.score, answer.critique) == (3.0, "Score: 3")


def test_blank_completions_and_prompts_without_a_question_are_counted(read):
    answers, dropped = read({"prompt": "Why?", "completion": " "}, {"prompt": "", "completion": "a"})
    assert (answers, dropped) == ([], {"empty": 2})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Because."}, "needs"),
        ({"prompt": "Why?"}, '"completion"'),
        ({"prompt": "Why?", "completion": [{"role": "user", "content": "x"}]}, "assistant turn"),
        (ROW | {"score": "good"}, "finite number"),
        (ROW | {"num_tokens": 1.5}, "whole number"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(read, row, message):
    with pytest.raises(DataError, match=message) as refused:
        read(ROW, row)
    assert refused.value.row == 2
