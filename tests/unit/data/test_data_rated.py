import json

import numpy as np
import pytest

from selfalign.data import read_ift, read_prompts, read_ranked
from selfalign.errors import DataError
from selfalign.records import content_id


@pytest.fixture
def file(tmp_path):
    """Return a function that writes rows and returns the file's path."""

    def write(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


def rated(prompt, response, quality, **fields):
    return {"prompt": prompt, "response": response, "quality": quality, **fields}


RATED = [
    rated("one", "a", 0.5),
    rated("two", "x", 0.5),
    rated("one", "b", 0.75),
    rated("two", "y", 0.5),
    rated("one", "c", None),
    rated("one", "d", 0.5),
    rated("one", "a", 0.25),
    rated("three", "z", 1),
    rated("three", " ", 1),
]


def test_rated_rows_are_grouped_by_prompt_and_ranked_by_quality_with_ties(file):
    prompts, dropped = read_ranked(file(*RATED), language="en")
    assert [prompt.messages[0].content for prompt in prompts] == ["one", "two"]
    one, two = ({reply.text: (reply.rank, reply.quality) for reply in prompt.replies} for prompt in prompts)
    assert one == {"b": (0, 0.75), "a": (1, 0.5), "d": (1, 0.5)}
    assert two == {"x": (0, 0.5), "y": (0, 0.5)}
    assert dropped == {"no_quality": 1, "duplicate_reply": 1, "empty": 1, "fewer_than_two_replies": 1}


def test_replies_stand_in_rank_order_whatever_the_order_of_the_file(file):
    rows = [row for row in RATED if row["quality"] != 0.25]
    expected = {prompt.prompt_id: prompt.replies for prompt in read_ranked(file(*rows), language=None)[0]}
    for replies in expected.values():
        assert [reply.rank for reply in replies] == sorted(reply.rank for reply in replies)
    for seed in range(5):
        shuffled = [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]
        found = read_ranked(file(*shuffled), language=None)[0]
        assert {prompt.prompt_id: prompt.replies for prompt in found} == expected


def test_rated_rows_give_the_best_reply_to_ift_and_each_prompt_once(file):
    examples, dropped = read_ift(file(*RATED), selection="all", language=None, limit=None)
    assert [(e.messages[0].content, e.completion) for e in examples] == [
        ("one", "b"),
        ("two", "x"),
        ("three", "z"),
    ]
    assert dropped == {"not_rank_0": 3, "no_quality": 1, "duplicate_prompt": 1, "empty": 1}
    prompts, dropped = read_prompts(file(*RATED))
    assert [prompt.messages[0].content for prompt in prompts] == ["one", "two", "three"]
    assert not dropped


def test_reply_ids_are_the_sources_own_or_come_from_prompt_and_text(file):
    rows = [
        {
            "prompt_text": "Hi",
            "prompt_id": 7,
            "response_text": "a",
            "response_id": "r1",
            "quality_score": 1.0,
        },
        {"prompt_text": "Hi", "prompt_id": 7, "response_text": "b", "quality_score": 0.0},
    ]
    [prompt], _ = read_ranked(file(*rows, name="flat.jsonl"), language=None)
    assert [reply.reply_id for reply in prompt.replies] == ["r1", content_id(prompt.prompt_id, "b")]
    assert prompt.source == "flat.jsonl:7"


def test_a_prompt_id_that_stands_for_two_prompts_is_refused(file):
    location = file(rated("one", "a", 0.5, prompt_id="p"), rated("two", "b", 0.5, prompt_id="p"))
    with pytest.raises(DataError, match='row 2: the prompt_id "p" stands for two prompts'):
        read_ranked(location, language=None)


def test_a_rated_row_without_a_quality_field_is_refused(file):
    location = file(rated("one", "a", 0.5), {"prompt": "one", "response": "b"})
    with pytest.raises(DataError, match='row 2: the field "quality_score" or "quality" is missing'):
        read_ranked(location, language=None)
