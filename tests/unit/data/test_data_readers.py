import json

import numpy as np
import pytest

from selfalign.data import read_ift, read_prompts, read_ranked
from selfalign.errors import DataError
from selfalign.records import Message, content_id, prompt_id_of


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture
def file(tmp_path):
    """Return a function that writes rows and returns the file's path."""

    def write(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


def ift(location, format=None, *, selection="paper", language="en", limit=None):
    return read_ift(location, format, selection=selection, language=language, limit=limit)


def oasst(message_id, parent_id=None, *, text=None, rank=None, quality=None, lang="en", **fields):
    return {
        "message_id": message_id,
        "parent_id": parent_id,
        "text": text or f"{message_id} says one two three four five six",
        "role": "prompter" if message_id.startswith("p") else "assistant",
        "lang": lang,
        "rank": rank,
        "labels": None if quality is None else {"name": ["quality"], "value": [quality]},
        **fields,
    }


FOREST = [
    oasst("p1", quality=0.7),
    oasst("a1", "p1", rank=0, quality=0.7),
    oasst("a2", "p1", rank=1, quality=0.9),
    oasst("p2", "a1", quality=0.8),
    oasst("a3", "p2", rank=0, quality=0.9),
    oasst("p3", quality=0.9),
    oasst("a4", "p3", quality=0.9),
    oasst("p4", lang="de", quality=0.9),
    oasst("a5", "p4", rank=0, lang="de", quality=0.9),
    oasst("p5", quality=0.5),
    oasst("a6", "p5", rank=0, quality=0.9),
    oasst("p6"),
    oasst("a7", "p6", rank=0, quality=0.9, text="short"),
    oasst("p7"),
    oasst("a8", "p7", rank=0, quality=0.9, deleted=True),
    oasst("a9", "p7", rank=1, quality=0.9),
]


def ids(examples):
    return [example.source.partition(":")[2] for example in examples]


def test_paper_takes_first_turns_in_one_language_with_the_reply_of_rank_0(file):
    examples, dropped = ift(file(*FOREST))
    assert ids(examples) == ["a1", "a6", "a7"]
    assert dropped == {"deleted": 1, "not_rank_0": 2, "no_rank": 1, "not_first_turn": 1, "other_language": 1}


def test_autoalign_takes_any_turn_by_quality_and_sorts_best_first(file):
    examples, dropped = ift(file(*FOREST), selection="autoalign")
    assert ids(examples) == ["a3", "a1"]
    assert dropped == {
        "deleted": 1,
        "not_rank_0": 2,
        "no_rank": 1,
        "other_language": 1,
        "low_quality": 1,
        "no_quality": 1,
    }
    assert [turn.role for turn in examples[0].messages] == ["user", "assistant", "user"]


def test_all_takes_every_reply_of_rank_0_and_no_language_takes_any(file):
    assert ids(ift(file(*FOREST), selection="all")[0]) == ["a1", "a3", "a6", "a7"]
    assert ids(ift(file(*FOREST), selection="all", language=None)[0]) == ["a1", "a3", "a5", "a6", "a7"]
    assert ids(ift(file(*FOREST), selection="paper", language="de")[0]) == ["a5"]
    assert ids(ift(file(*FOREST), selection="autoalign", language=None)[0]) == ["a5", "a3", "a1"]


def test_autoalign_does_not_depend_on_the_order_of_the_file(file):
    expected = ift(file(*FOREST), selection="autoalign")
    for seed in range(5):
        shuffled = [FOREST[place] for place in np.random.default_rng(seed).permutation(len(FOREST))]
        assert ift(file(*shuffled), selection="autoalign") == expected


def test_limit_applies_after_sorting_and_duplicates(file):
    rows = [
        *FOREST,
        oasst("p8", text=FOREST[0]["text"], quality=1.0),
        oasst("a10", "p8", rank=0, quality=1.0),
    ]
    examples, dropped = ift(file(*rows), selection="autoalign", limit=2)
    assert ids(examples) == ["a10", "a3"]
    assert dropped["duplicate_prompt"] == 1
    examples, dropped = ift(file(*rows), selection="autoalign", limit=1)
    assert ids(examples) == ["a10"]
    assert dropped["over_limit"] == 1
    assert len(ift(file(*rows), limit=100)[0]) == 3


def test_an_example_carries_ids_of_its_content_and_its_source(file):
    [example], dropped = ift(file({"instruction": "Do.", "output": "Done. "}, name="some.jsonl"))
    messages = (Message(role="user", content="Do."),)
    assert example.messages == messages
    assert example.prompt_id == prompt_id_of(messages)
    assert example.completion == "Done. "
    assert example.example_id == content_id(example.prompt_id, "Done. ")
    assert example.kind == "ift"
    assert example.source == "some.jsonl:1"
    assert example.score is None
    assert example.reply_id is None
    assert not dropped


def test_selection_and_language_leave_other_formats_alone(file):
    rows = [{"messages": [user("Hi"), assistant("Ho"), user("你好"), assistant("好")]}]
    results = [
        ift(file(*rows), selection=s, language=lang)
        for s in ("paper", "autoalign", "all")
        for lang in ("en", None)
    ]
    assert len(results[0][0]) == 1
    assert all(result == results[0] for result in results)


def test_rows_without_a_usable_completion_are_counted(file):
    examples, dropped = ift(
        file(
            {"messages": [user("one"), assistant("1")]},
            {"messages": [user("two")]},
            {"messages": [user("three"), assistant(" ")]},
            {"messages": [user(" "), assistant("4")]},
            {"messages": [assistant("5")]},
            {"messages": []},
            {"messages": [user("one"), assistant("again")]},
            {"messages": [user("six"), assistant("6"), assistant("6b")]},
        )
    )
    assert [example.completion for example in examples] == ["1"]
    assert dropped == {"no_completion": 1, "empty": 2, "no_user_turn": 3, "duplicate_prompt": 1}


@pytest.mark.parametrize(
    ("messages", "prompt", "completion"),
    [
        ([user("a"), assistant("b"), user("c")], ["a"], "b"),
        ([user("a"), assistant("b"), user("c"), assistant("d"), user("e")], ["a", "b", "c"], "d"),
        ([assistant("z"), user("a"), assistant("b"), user("c")], ["z", "a"], "b"),
    ],
)
def test_what_follows_the_last_answer_is_left_out_of_ift_data(file, messages, prompt, completion):
    [example], dropped = ift(file({"messages": messages}))
    assert [turn.content for turn in example.messages] == prompt
    assert example.completion == completion
    assert not dropped


def test_a_conversation_that_only_opens_with_the_assistant_has_no_completion(file):
    assert ift(file({"messages": [assistant("z"), user("a")]})) == ([], {"no_completion": 1})


def test_ift_takes_the_best_reply_of_formats_with_several(file):
    preference = file({"prompt": "Hi", "chosen": "good", "rejected": "bad"}, name="preference.jsonl")
    ranked = file({"messages": [user("Hi")], "replies": [{"text": "b", "rank": 2}, {"text": "a", "rank": 1}]})
    assert [example.completion for example in ift(preference)[0]] == ["good"]
    examples, dropped = ift(ranked)
    assert [example.completion for example in examples] == ["a"]
    assert dropped == {"not_rank_0": 1}


def test_a_blank_best_reply_is_not_replaced_by_the_next(file):
    examples, dropped = ift(file({"prompt": "Hi", "chosen": " ", "rejected": "bad"}))
    assert examples == []
    assert dropped == {"empty": 1, "not_rank_0": 1}


def test_oasst_ranks_are_renumbered_after_drops_and_unranked_replies_dropped(file):
    rows = [
        oasst("p1"),
        oasst("a1", "p1", rank=3, quality=0.25),
        oasst("a2", "p1", rank=0, review_result=False),
        oasst("a3", "p1", rank=1),
        oasst("a4", "p1"),
        oasst("a5", "p1", rank=4, lang="de"),
        oasst("a6", "p1", rank=5, text=oasst("a1")["text"]),
        oasst("p2", "a3"),
        oasst("a7", "p2", rank=0),
    ]
    [prompt], dropped = read_ranked(file(*rows, name="flat.jsonl"), language="en")
    assert [(reply.reply_id, reply.rank, reply.quality) for reply in prompt.replies] == [
        ("a3", 0, None),
        ("a1", 1, 0.25),
    ]
    assert prompt.source == "flat.jsonl:p1"
    assert dropped == {
        "review_rejected": 1,
        "no_rank": 1,
        "other_language": 1,
        "duplicate_reply": 1,
        "fewer_than_two_replies": 1,
    }


def test_quality_labels_do_not_rank_oasst_replies_that_humans_did_not_rank(file):
    rows = [oasst("p1"), oasst("a1", "p1", quality=0.9), oasst("a2", "p1", quality=0.1)]
    assert read_ranked(file(*rows), language=None) == ([], {"no_rank": 2, "fewer_than_two_replies": 1})


def test_oasst_contexts_at_any_depth_carry_the_turns_above(file):
    rows = [*FOREST, oasst("a11", "p2", rank=1)]
    prompts, _ = read_ranked(file(*rows), language="en")
    assert [len(prompt.messages) for prompt in prompts] == [1, 3]


def test_preference_rows_rank_chosen_before_rejected(file):
    prompts, dropped = read_ranked(
        file(
            {"prompt": "one", "chosen": "good", "rejected": "bad"},
            {"prompt": "one", "chosen": "other", "rejected": "bad"},
            {"prompt": "two", "chosen": "same", "rejected": "same"},
        ),
        language=None,
    )
    assert [[(reply.text, reply.rank) for reply in prompt.replies] for prompt in prompts] == [
        [("good", 0), ("bad", 1)]
    ]
    assert dropped == {"duplicate_prompt": 1, "duplicate_reply": 1, "fewer_than_two_replies": 1}


def test_an_unusable_row_does_not_block_a_later_one_of_the_same_prompt(file):
    rows = [
        {"prompt": "one", "chosen": "a", "rejected": "a"},
        {"prompt": "one", "chosen": "a", "rejected": "b"},
    ]
    prompts, _ = read_ranked(file(*rows), language=None)
    assert [reply.text for reply in prompts[0].replies] == ["a", "b"]


def test_repeated_ranks_in_a_ranked_file_are_refused_with_the_way_out(file):
    good = {"messages": [user("one")], "replies": [{"text": "a", "rank": 0}, {"text": "b", "rank": 1}]}
    bad = {"messages": [user("two")], "replies": [{"text": "a", "rank": 0}, {"text": "b", "rank": 0}]}
    location = file(good, bad, name="mine.jsonl")
    with pytest.raises(DataError, match=r"mine\.jsonl, row 2: .*if ties are meant.*\"quality\""):
        read_ranked(location, language=None)


def test_a_reply_id_that_stands_for_two_replies_is_refused(file):
    replies = [{"text": "a", "rank": 0, "reply_id": "1"}, {"text": "b", "rank": 1, "reply_id": "2"}]
    location = file(*({"messages": [user(prompt)], "replies": replies} for prompt in ("one", "two")))
    with pytest.raises(DataError, match='row 2: row 1 has another reply with the id "1"'):
        read_ranked(location, language=None)


def test_data_without_a_human_order_gives_no_ranked_prompts(file):
    result = read_ranked(file({"instruction": "Do.", "output": "Done."}), language=None)
    assert result == ([], {"fewer_than_two_replies": 1})


def test_prompts_drop_a_trailing_assistant_turn_and_keep_earlier_ones(file):
    rows = [
        {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]},
        {"messages": [user("a"), assistant("b"), user("c")]},
        {"messages": [user("a"), assistant("b")]},
    ]
    prompts, dropped = read_prompts(file(*rows, name="chat.jsonl"))
    assert [[turn.content for turn in prompt.messages] for prompt in prompts] == [["a", "b", "c"], ["a"]]
    assert [prompt.source for prompt in prompts] == ["chat.jsonl:1", "chat.jsonl:3"]
    assert dropped == {"duplicate_prompt": 1}


def test_prompts_of_oasst_are_all_usable_prompter_messages_in_the_language(file):
    prompts, dropped = read_prompts(file(*FOREST), language="de")
    assert ids(prompts) == ["p4"]
    assert ids(read_prompts(file(*FOREST))[0]) == ["p1", "p2", "p3", "p4", "p5", "p6", "p7"]
    assert dropped["other_language"] == 6


def test_the_prompt_of_one_text_has_one_id_in_every_format(file):
    rows = [
        {"prompt": "Hi"},
        {"instruction": "Hi", "output": "Ho"},
        {"messages": [user("Hi"), assistant("Ho")]},
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        {"prompt": "Hi", "response": "Ho", "quality": 0.5},
        oasst("p1", text="Hi"),
    ]
    found = {read_prompts(file(row))[0][0].prompt_id for row in rows}
    assert found == {prompt_id_of([Message(role="user", content="Hi")])}


def test_the_first_row_decides_the_format_of_the_file(file):
    location = file({"instruction": "Do.", "output": "Done."}, {"prompt": "Hi"}, name="mixed.jsonl")
    with pytest.raises(DataError, match=r'mixed\.jsonl, row 2: the field "instruction" is missing'):
        read_prompts(location)


def test_a_named_format_is_not_guessed(file):
    location = file({"prompt": "Hi", "response": "Ho", "quality": 0.5})
    assert len(read_prompts(location, "prompts")[0]) == 1
    with pytest.raises(DataError, match='row 1: the field "messages" is missing'):
        read_prompts(location, "messages")


def test_an_unknown_format_names_file_and_row(file):
    with pytest.raises(DataError, match=r"odd\.jsonl, row 1: the fields question, answer fit no format"):
        read_prompts(file({"question": "1 + 1", "answer": "2"}, name="odd.jsonl"))


def test_reading_does_not_change_the_file(file, tmp_path):
    location = file(*FOREST)
    before = (tmp_path / "data.jsonl").read_bytes()
    ift(location)
    read_ranked(location, language=None)
    read_prompts(location)
    assert (tmp_path / "data.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
