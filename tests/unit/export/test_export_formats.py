import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfalign.data import read_pairs
from selfalign.errors import RunError
from selfalign.export.files import write_file
from selfalign.export.formats import SUFFIX, check_format, dataset_info, row_in
from selfalign.records import Message, PreferencePair, SFTExample, content_id, prompt_id_of

FORMATS = list(SUFFIX)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
SCORES = st.none() | st.tuples(st.floats(-10, 10), st.floats(-10, 10)).map(
    lambda two: sorted(two, reverse=True)
)


def pair_of(turns, chosen, rejected, scores, contrast_id):
    roles = ["system", "user"] if len(turns) == 2 else ["user", "assistant"] * (len(turns) // 2) + ["user"]
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, turns, strict=True))
    better, worse = scores or (None, None)
    return PreferencePair(
        pair_id=content_id("pair", chosen, rejected),
        prompt_id=prompt_id_of(messages),
        messages=messages,
        chosen_id=content_id("chosen", chosen),
        rejected_id=content_id("rejected", rejected),
        chosen=chosen,
        rejected=rejected,
        reward_chosen=better,
        reward_rejected=worse,
        margin=None if better is None else better - worse,
        chosen_tokens=len(chosen),
        rejected_tokens=len(rejected),
        weight=0.5,
        contrast_id=contrast_id,
    )


PAIRS = st.builds(
    pair_of,
    st.lists(TEXT, min_size=1, max_size=3),
    TEXT,
    TEXT,
    SCORES,
    st.none() | st.just("contrast"),
).filter(lambda pair: pair.chosen != pair.rejected)


@pytest.mark.parametrize("format", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(pairs=st.lists(PAIRS, min_size=1, max_size=4, unique_by=lambda pair: pair.pair_id))
def test_pairs_come_back_as_they_went(tmp_path, format, pairs):
    """Ids, turns, texts to the letter, scores, lengths, weight: whatever the texts hold."""
    file = tmp_path / f"train.{SUFFIX[format]}"
    assert write_file(file, (row_in(format, pair, 3) for pair in pairs)) == len(pairs)
    dropped: Counter[str] = Counter()
    assert list(read_pairs(str(file), len, dropped)) == pairs
    assert not dropped


EXAMPLE = SFTExample(
    example_id="e",
    prompt_id="p",
    messages=(Message(role="system", content="Be brief."), Message(role="user", content="Why?")),
    completion="Because.",
    kind="eft",
    score=4,
    reply_id="r",
    source="file:1",
)


def test_examples_are_conversations_in_the_spelling_of_each_library():
    assert row_in("trl", EXAMPLE, None) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because."},
        ],
        "example_id": "e",
        "prompt_id": "p",
        "kind": "eft",
        "score": 4,
        "reply_id": "r",
        "source": "file:1",
    }
    assert (
        row_in("openrlhf", EXAMPLE, None) == row_in("trl", EXAMPLE, None) == row_in("parquet", EXAMPLE, None)
    )
    for format in ("autoalign", "llamafactory"):
        assert row_in(format, EXAMPLE, None)["conversations"] == [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "Because."},
        ]


def test_openrlhf_can_append_either_side_to_the_prompt():
    """It renders `prompt + chosen` and `prompt + rejected`, both lists of turns."""
    row = row_in("openrlhf", pair_of(["Why?"], "a", "b", None, None), 1)
    roles = [turn["role"] for turn in row["prompt"] + row["chosen"]]
    assert roles == [turn["role"] for turn in row["prompt"] + row["rejected"]] == ["user", "assistant"]
    assert "margin" not in row  # a reward model's loss would take it for one of its own


def test_llamafactory_is_told_which_columns_are_what():
    info = dataset_info("run_pairs", "train.json", "pairs")["run_pairs"]
    row = row_in("llamafactory", pair_of(["Why?"], "a", "b", None, None), 1)
    assert info["ranking"] is True
    assert info["formatting"] == "sharegpt"
    assert set(info["columns"].values()) <= row.keys()
    assert (row["chosen"], row["rejected"]) == ({"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"})


def test_autoalign_gets_whole_conversations_and_the_question():
    row = row_in("autoalign", pair_of(["Be brief.", "Why?"], "a", "b", (4, 1), None), 1)
    assert row["prompt"] == "Why?"
    assert [turn["from"] for turn in row["chosen"]] == ["system", "human", "gpt"]
    assert row["conversations"] == row["chosen"] != row["rejected"]
    assert (row["score_chosen"], row["score_rejected"]) == (4, 1)


@pytest.mark.parametrize("format", ["autoalign", "llamafactory", "openrlhf"])
@pytest.mark.parametrize("what", ["candidates", "judgments", "prompts"])
def test_a_format_without_a_place_for_the_rows_is_refused(format, what):
    with pytest.raises(RunError, match=f"{format} has no format for {what}"):
        check_format(what, format)


def test_an_array_without_rows_is_still_one(tmp_path):
    assert write_file(tmp_path / "train.json", []) == 0
    assert json.loads((tmp_path / "train.json").read_text()) == []


def test_columns_that_are_null_throughout_keep_their_type(tmp_path):
    from pyarrow import parquet

    pair = pair_of(["Why?"], "a", "b", None, None)
    write_file(tmp_path / "train.parquet", [row_in("parquet", pair, None)] * 2)
    schema = parquet.read_schema(tmp_path / "train.parquet")
    assert [str(schema.field(name).type) for name in ("score_chosen", "iteration", "contrast_id")] == [
        "double",
        "int64",
        "string",
    ]
