import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.data import Format, recognise
from selfalign.data.formats import Exchange, dense_ranks, exchanges_of
from selfalign.errors import DataError

U, A, S = "user", "assistant", "system"


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def gpt(*turns):
    names = {U: "human", A: "gpt", S: "system"}
    return [{"from": names[role], "value": content} for role, content in turns]


def one(row, format=None) -> Exchange:
    [exchange] = exchanges_of(row, format or recognise(row), 1)
    return exchange


def turns(exchange: Exchange):
    return [(message.role, message.content) for message in exchange.messages]


def replies(exchange: Exchange):
    return [(reply.text, reply.rank) for reply in exchange.replies]


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"prompt": {"message_id": "1", "replies": []}}, "oasst_trees"),
        ({"message_id": "1", "text": "Hi", "role": "prompter"}, "oasst_messages"),
        ({"prompt_text": "Hi", "response_text": "Ho", "quality_score": None}, "rated"),
        ({"prompt": "Hi", "response": "Ho", "quality": 0.5}, "rated"),
        ({"messages": [], "replies": []}, "ranked"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "sharegpt"),
        ({"instruction": "Do", "output": ""}, "alpaca"),
        ({"instruction": "Do", "instances": []}, "alpaca"),
        ({"messages": []}, "messages"),
        ({"messages": [], "prompt": "Hi", "chosen": [], "rejected": []}, "preference"),
        ({"chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": "Hi", "chosen": None, "rejected": None}, "prompts"),
        ({"prompt": "Hi", "response": "Ho"}, "prompts"),
        ({"instruction": "Do", "input": ""}, "prompts"),
        ({"turns": ["Hi", "Again"]}, "prompts"),
    ],
)
def test_a_row_shows_its_format(row, format):
    assert recognise(row) == format


@pytest.mark.parametrize("row", [{"question": "1 + 1", "answer": "2"}, {}, {"messages": None}])
def test_an_unknown_row_is_refused_with_the_formats_and_its_fields(row):
    with pytest.raises(DataError) as caught:
        recognise(row)
    for word in (*get_args(Format), *row):
        assert word in str(caught.value)


def test_alpaca_input_follows_after_a_blank_line_unless_it_is_blank():
    assert turns(one({"instruction": "Do.", "input": "This", "output": "Ok"})) == [(U, "Do.\n\nThis")]
    for blank in ("", "  \n", None):
        assert turns(one({"instruction": "Do.", "input": blank, "output": "Ok"})) == [(U, "Do.")]
    assert turns(one({"instruction": "Do.", "output": "Ok"})) == [(U, "Do.")]


def test_every_instance_of_a_self_instruct_task_is_an_exchange():
    row = {"instruction": "Add.", "instances": [{"input": "1", "output": "2"}, {"input": "", "output": "3"}]}
    assert [(turns(e), replies(e)) for e in exchanges_of(row, "alpaca", 1)] == [
        ([(U, "Add.\n\n1")], [("2", 0)]),
        ([(U, "Add.")], [("3", 0)]),
    ]


def test_a_task_without_instances_is_still_a_prompt():
    assert turns(one({"instruction": "Add.", "instances": []})) == [(U, "Add.")]


@pytest.mark.parametrize(("name", "write"), [("messages", said), ("conversations", gpt)])
def test_a_conversation_is_split_at_its_last_assistant_turn(name, write):
    row = {name: write((S, "Be brief."), (U, "Hi"), (A, "Ho"), (U, "And?"), (A, "So."))}
    exchange = one(row)
    assert turns(exchange) == [(S, "Be brief."), (U, "Hi"), (A, "Ho"), (U, "And?")]
    assert replies(exchange) == [("So.", 0)]


def test_text_is_never_stripped_recased_or_cleaned_of_control_tokens():
    text = "  amen </s>\n<|im_end|> eBay \t"
    exchange = one({"messages": said((U, text), (A, text))})
    assert turns(exchange) == [(U, text)]
    assert replies(exchange) == [(text, 0)]


def test_a_blank_system_turn_is_left_out():
    assert turns(one({"messages": said((S, " "), (U, "Hi"), (A, "Ho"))})) == [(U, "Hi")]


PAIR = ([(U, "Hi")], [("good", 0), ("bad", 1)])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "good", "rejected": "bad"},
        {"prompt": said((U, "Hi")), "chosen": said((A, "good")), "rejected": said((A, "bad"))},
        {"prompt": "Hi", "chosen": said((U, "Hi"), (A, "good")), "rejected": said((U, "Hi"), (A, "bad"))},
        {"prompt": None, "chosen": gpt((U, "Hi"), (A, "good")), "rejected": gpt((U, "Hi"), (A, "bad"))},
        {"chosen": said((U, "Hi"), (A, "good")), "rejected": said((U, "Hi"), (A, "bad"))},
        {"conversations": gpt((U, "Hi")), "chosen": gpt((A, "good"))[0], "rejected": gpt((A, "bad"))[0]},
        {"conversations": gpt((U, "Hi")), "chosen": "good", "rejected": "bad"},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: good",
            "rejected": "\n\nHuman: Hi\n\nAssistant: bad",
        },
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "good", "rejected": "bad"},
    ],
)
def test_preference_spellings_give_the_same_exchange(row):
    exchange = one(row)
    assert (turns(exchange), replies(exchange)) == PAIR


def test_a_transcript_loses_one_space_after_the_colon_and_nothing_else():
    row = {
        "chosen": "\n\nHuman:  Hi \n\nAssistant: Ho.  Human: no turn\n\nHuman:So\n\nAssistant: ",
        "rejected": "\n\nHuman:  Hi \n\nAssistant: Ho.  Human: no turn\n\nHuman:So\n\nAssistant:  x ",
    }
    exchange = one(row)
    assert turns(exchange) == [(U, " Hi "), (A, "Ho.  Human: no turn"), (U, "So")]
    assert replies(exchange) == [("", 0), (" x ", 1)]


def test_a_rejected_reply_to_another_prompt_is_left_out():
    row = {
        "chosen": said((U, "Hi"), (A, "one"), (U, "So?"), (A, "good")),
        "rejected": said((U, "Hi"), (A, "two"), (U, "So?"), (A, "bad")),
    }
    exchange = one(row)
    assert turns(exchange) == [(U, "Hi"), (A, "one"), (U, "So?")]
    assert replies(exchange) == [("good", 0)]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("The sky is", "The sky is black.", "The sky"),
        ("Yes", "No", ""),
        ("same text", "same text", "same"),
    ],
)
def test_plain_texts_without_a_prompt_share_the_whole_words_they_open_with(chosen, rejected, prompt):
    exchange = one({"chosen": chosen, "rejected": rejected})
    assert turns(exchange) == [(U, prompt)]
    assert [prompt + text for text, _ in replies(exchange)] == [chosen, rejected]


def test_message_lists_without_any_prompt_invent_none():
    row = {"chosen": said((A, "well done")), "rejected": said((A, "well not"))}
    assert turns(one(row)) == []


def test_ranked_rows_take_ranks_and_close_gaps():
    row = {
        "messages": said((U, "Hi")),
        "replies": [{"text": "b", "rank": 5, "reply_id": 7}, {"text": "a", "rank": 2.0, "quality": 0.5}],
    }
    exchange = one(row)
    assert replies(exchange) == [("b", 1), ("a", 0)]
    assert [(reply.reply_id, reply.quality) for reply in exchange.replies] == [("7", None), (None, 0.5)]


def test_ranked_rows_with_quality_alone_may_tie():
    row = {
        "messages": said((U, "Hi")),
        "replies": [{"text": text, "quality": q} for text, q in [("a", 0.5), ("b", 1), ("c", 0.5), ("d", 0)]],
    }
    assert replies(one(row)) == [("a", 1), ("b", 0), ("c", 1), ("d", 2)]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"text": "a", "rank": 0}, {"text": "b", "rank": 0}], 'same "rank"; if ties are meant.*"quality"'),
        ([{"text": "a", "rank": 0}, {"text": "b"}], "has no place"),
        ([{"text": "a", "rank": 0}, {"text": "b", "quality": 0.1}], "has no place"),
        ([{"text": "a", "quality": 0.1}, {"text": "b", "quality": None}], "has no place"),
        ([{"text": "a", "rank": 0.5}], '"rank" is 0.5; it must be a whole number'),
        ([{"text": "a", "rank": True}], "whole number"),
        ([{"text": "a", "rank": "0"}], "whole number"),
        ([{"text": "a", "quality": 4}], "0 to 1"),
        ([{"text": "a", "quality": float("nan")}], "0 to 1"),
        ([{"text": "a", "quality": "0.5"}], '"quality" is text; it must be a number'),
        ([{"text": "a", "rank": 0, "reply_id": 1.5}], '"reply_id" is a number; it must be text'),
        ([{"rank": 0}], 'the field "text" is missing'),
        (["a"], '"replies" must be a list of objects'),
    ],
)
def test_ranked_replies_without_a_clear_place_are_refused(items, message):
    with pytest.raises(DataError, match=message):
        exchanges_of({"messages": said((U, "Hi")), "replies": items}, "ranked", 1)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi"},
        {"prompt": said((U, "Hi"))},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:"},
        {"instruction": "Hi", "input": ""},
        {"turns": ["Hi", "second"]},
        {"turns": [{"content": "Hi"}]},
        {"prompt": None, "instruction": "Hi"},
    ],
)
def test_prompt_rows_in_every_spelling(row):
    assert turns(one(row)) == [(U, "Hi")]


@pytest.mark.parametrize(
    ("row", "format", "message"),
    [
        ({"instruction": "Do"}, "alpaca", '"output" is missing.* the row has instruction'),
        ({"instruction": "Do", "output": ["x"]}, "alpaca", '"output" is a list; it must be text'),
        ({"instruction": "Do", "output": "x", "input": 3}, "alpaca", '"input" is a number'),
        ({"conversations": None}, "messages", '"messages" is missing'),
        ({"chosen": "a", "rejected": "b"}, "messages", '"messages" is missing'),
        ({"chosen": {}, "rejected": {}}, "sharegpt", '"conversations" is missing'),
        ({"chosen": "a"}, "preference", '"rejected" is missing'),
        ({"messages": said((U, None))}, "messages", '"content" or "value" is missing or null'),
        ({"messages": [{"content": "x"}]}, "messages", '"role" or "from" is missing'),
        ({"messages": said(("tool", "x"))}, "messages", '"tool"; known are system, user'),
        ({"messages": "Hi"}, "messages", '"messages" must be a list of objects'),
        ({"messages": said((U, "\ud83d"))}, "messages", "lone surrogate"),
        ({"question": "Hi"}, "prompts", '"prompt", "instruction" or "turns" is missing'),
        ({"turns": []}, "prompts", '"turns"'),
        ({"prompt": True}, "prompts", '"prompt" is true or false'),
    ],
)
def test_a_row_that_breaks_its_format_is_refused_with_the_field(row, format, message):
    with pytest.raises(DataError, match=message):
        exchanges_of(row, format, 1)


def test_half_a_character_is_refused_as_json_can_spell_it():
    with pytest.raises(DataError, match="lone surrogate"):
        exchanges_of(json.loads(r'{"prompt": "cut \ud83d"}'), "prompts", 1)


@given(st.lists(st.integers(-3, 3)))
def test_dense_ranks_keep_order_and_ties_and_leave_no_gap(values):
    ranks = dense_ranks(values)
    assert sorted(set(ranks)) == list(range(len(set(values))))
    for value, rank in zip(values, ranks, strict=True):
        for other, place in zip(values, ranks, strict=True):
            assert (value < other) == (rank < place)
