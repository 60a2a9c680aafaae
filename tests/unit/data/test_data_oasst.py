from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.data.formats import Exchange, Reply
from selfalign.data.oasst import best_first, exchanges, unfit
from selfalign.errors import DataError
from selfalign.records import Message


def message(message_id, parent_id=None, text=None, **fields):
    role = fields.pop("role", "prompter" if message_id.startswith("p") else "assistant")
    return {
        "message_id": message_id,
        "parent_id": parent_id,
        "text": message_id if text is None else text,
        "role": role,
        "lang": "en",
        **fields,
    }


def read(rows, format="oasst_messages", language=None):
    dropped = Counter()
    found = exchanges(list(enumerate(rows, start=1)), format, "file", language, dropped)
    return found, +dropped


def shape(found):
    """Return the prompts as paths of texts, with the texts and ranks of their replies."""
    return [
        (
            [turn.content for turn in exchange.messages],
            [(reply.text, reply.rank) for reply in exchange.replies],
        )
        for exchange in found
    ]


THREAD = [
    message("p1"),
    message("a1", "p1", rank=1),
    message("a2", "p1", rank=0),
    message("p2", "a2"),
    message("a3", "p2"),
]
SHAPE = [(["p1"], [("a1", 1), ("a2", 0)]), (["p1", "a2", "p2"], [("a3", None)])]


def test_every_prompter_message_is_an_exchange_with_the_path_above_it():
    found, dropped = read(THREAD)
    assert shape(found) == SHAPE
    assert [turn.role for turn in found[1].messages] == ["user", "assistant", "user"]
    assert [exchange.prompt_key for exchange in found] == ["p1", "p2"]
    assert not dropped


def nested(rows):
    """Return the same messages as trees, the way the project exports them: absent in place of null."""
    nodes = {row["message_id"]: {**row, "replies": []} for row in rows}
    for row in rows:
        if row["parent_id"] is not None:
            nodes[row["parent_id"]]["replies"].append(nodes[row["message_id"]])
    for node in nodes.values():
        del node["parent_id"]
    return [
        {"message_tree_id": row["message_id"], "tree_state": "growing", "prompt": nodes[row["message_id"]]}
        for row in rows
        if row["parent_id"] is None
    ]


def test_nested_trees_give_the_same_as_flat_messages():
    found, dropped = read(nested(THREAD), "oasst_trees")
    assert shape(found) == SHAPE
    assert not dropped


@given(st.integers(0, 10_000))
def test_shape_and_order_of_the_file_change_nothing_but_the_order(seed):
    rng = np.random.default_rng(seed)
    rows = [message("p0")]
    for number in range(1, 25):
        parent = rows[rng.integers(len(rows))]
        kind = "a" if parent["message_id"].startswith("p") else "p"
        deleted = bool(rng.random() < 0.1)
        rows.append(message(f"{kind}{number}", parent["message_id"], rank=number, deleted=deleted))
    flat, flat_dropped = read(rows)
    trees, trees_dropped = read(nested(rows), "oasst_trees")
    shuffled, shuffled_dropped = read([rows[place] for place in rng.permutation(len(rows))])

    def as_set(found):
        return {(tuple(path), frozenset(replies)) for path, replies in shape(found)}

    assert as_set(flat) == as_set(trees) == as_set(shuffled)
    assert flat_dropped == trees_dropped == shuffled_dropped


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"deleted": True}, "deleted"),
        ({"review_result": False}, "review_rejected"),
        ({"synthetic": True}, "synthetic"),
        ({"text": " \n"}, "empty"),
        ({"deleted": True, "review_result": False, "synthetic": True}, "deleted"),
    ],
)
def test_an_unusable_message_is_dropped_with_all_that_hangs_below_it(fields, reason):
    found, dropped = read([{**row, **fields} if row["message_id"] == "a2" else row for row in THREAD])
    assert shape(found) == [(["p1"], [("a1", 1)])]
    assert dropped == {reason: 1, "orphan": 2}


@pytest.mark.parametrize("fields", [{"review_result": None}, {"deleted": None}, {"synthetic": None}])
def test_a_null_verdict_keeps_the_message(fields):
    assert shape(read([{**row, **fields} for row in THREAD])[0]) == SHAPE


def test_orphans_loops_and_replies_without_a_prompt_are_dropped():
    rows = [
        message("p1"),
        message("a1", "absent"),
        message("a2"),
        message("p2", "a3"),
        message("a3", "p2"),
        message("p3", "p1"),
    ]
    found, dropped = read(rows)
    assert shape(found) == [(["p1"], [])]
    assert dropped == {"orphan": 5}


def test_the_same_message_twice_is_read_once():
    found, dropped = read(THREAD + THREAD)
    assert shape(found) == SHAPE
    assert dropped == {"duplicate_id": 5}


def test_a_tree_deeper_than_python_recurses_is_read():
    node = message("p5000")
    for depth in range(4999, -1, -1):
        node = {**message(f"{'ap'[depth % 2 == 0]}{depth}"), "replies": [node]}
    found, dropped = read([{"prompt": node}], "oasst_trees")
    assert len(found) == 2501
    assert len(found[-1].messages) == 5001
    assert not dropped


def test_language_is_asked_of_prompt_and_reply_but_not_of_the_path():
    rows = [
        message("p1", lang="de"),
        message("a1", "p1", lang="de"),
        message("p2", "a1"),
        message("a2", "p2"),
        message("a3", "p2", lang="de"),
        message("a4", "p2", lang=None),
    ]
    found, dropped = read(rows, language="en")
    assert shape(found) == [(["p1", "a1", "p2"], [("a2", None)])]
    assert dropped == {"other_language": 3}
    assert len(read(rows)[0]) == 2


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, None),
        ({"name": ["spam", "quality"], "value": [0.0, 0.75], "count": [1, 2]}, 0.75),
        ({"name": ["spam"], "value": [0.0], "count": [1]}, None),
        ({"name": ["quality"], "value": [None]}, None),
        ({"spam": {"value": 0.0, "count": 1}, "quality": {"value": 0.75, "count": 2}}, 0.75),
        ({"quality": {"value": None, "count": 0}}, None),
        ({"spam": {"value": 0.0, "count": 1}}, None),
    ],
)
def test_quality_is_read_from_both_label_shapes(labels, expected):
    [exchange] = read([message("p1", labels=labels)])[0]
    assert exchange.quality == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (message("p1", labels={"name": ["quality"], "value": []}), 'equal length, "name" and "value"'),
        (message("p1", labels=[1]), '"labels" must be an object'),
        (message("p1", labels={"name": ["quality"], "value": [3]}), "0 to 1"),
        (message("p1", role="system"), '"system" is none of prompter and assistant'),
        (message("p1", rank="first"), "whole number"),
        ({"message_id": "p1", "role": "prompter"}, '"text" is missing'),
        ({"text": "Hi", "role": "prompter"}, '"message_id" is missing'),
    ],
)
def test_a_malformed_message_is_refused_with_file_and_row(row, message):
    with pytest.raises(DataError, match=f"file, row 2: .*{message}"):
        read([THREAD[0], row])


def test_a_malformed_message_inside_a_tree_is_refused_with_the_row_of_the_tree():
    trees = [{"prompt": {**THREAD[0], "replies": [{"message_id": "a1", "role": "assistant"}]}}]
    with pytest.raises(DataError, match=r'file, row 1: .*"text" is missing'):
        read(trees, "oasst_trees")
    with pytest.raises(DataError, match=r'file, row 1: .*"prompt" is missing'):
        read([{"prompt": None}], "oasst_trees")


LONG = "one two three four five six"


def edge(*, prompt=LONG, reply=LONG, qualities=(0.7, 0.7), langs=("en", "en"), turns=1, reply_id="r"):
    above = [Message(role="user", content="a"), Message(role="assistant", content="b")] * (turns - 1)
    return (
        Exchange(1, (*above, Message(role="user", content=prompt)), (), quality=qualities[0], lang=langs[0]),
        Reply(reply, 0, qualities[1], reply_id, langs[1]),
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"turns": 3}, None),
        ({"langs": ("en", "de")}, "other_language"),
        ({"qualities": (None, 0.9)}, "no_quality"),
        ({"qualities": (0.9, None)}, "no_quality"),
        ({"qualities": (0.6, 0.9)}, "low_quality"),
        ({"qualities": (0.9, 0.6)}, "low_quality"),
        ({"qualities": (0.61, 0.61)}, None),
        ({"prompt": "one two three four five"}, "short"),
        ({"reply": "one two  three\nfour five"}, "short"),
        ({"reply": "it's well-known, isn't it? So be it"}, None),
        ({"reply": "北京在哪"}, "short"),
        ({"reply": "北京，在哪里"}, "short"),
        ({"reply": "北京在哪里呢"}, None),
        ({"reply": "カタカナです"}, None),
        ({"reply": "用 Python 写，谢谢。"}, "short"),
        ({"reply": "请用 Python 写，谢谢。"}, None),
    ],
)
def test_autoalign_asks_for_one_language_quality_and_length_on_both_sides(fields, reason):
    assert unfit(*edge(**fields), "autoalign") == reason


def test_paper_asks_for_the_first_turn_alone_and_all_for_nothing():
    poor = {"prompt": "Hi", "qualities": (None, 0.0), "langs": ("en", "de")}
    assert unfit(*edge(**poor), "paper") is None
    assert unfit(*edge(turns=2), "paper") == "not_first_turn"
    assert unfit(*edge(**poor, turns=2), "all") is None


def test_best_first_orders_by_summed_quality_and_ties_by_id():
    edges = [
        edge(qualities=(0.75, 0.75), reply_id="b"),
        edge(qualities=(0.5, 1.0), reply_id="a"),
        edge(qualities=(1.0, 1.0), reply_id="c"),
        edge(qualities=(0.5, 0.5), reply_id="d"),
    ]
    assert [reply.reply_id for _, reply in sorted(edges, key=best_first)] == ["c", "a", "b", "d"]
