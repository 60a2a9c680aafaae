import json
from collections import Counter
from pathlib import Path

import pytest

from selfalign.data import read_pairs
from selfalign.errors import DataError
from selfalign.records import Message, PreferencePair, content_id, prompt_id_of

USER = {"role": "user", "content": "Why?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Because.", "No idea."))


@pytest.fixture
def read(tmp_path):
    """Write rows to a file and read the pairs of it; what was dropped comes with them."""

    def read(*rows):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        dropped: Counter[str] = Counter()
        return list(read_pairs(str(path), len, dropped)), dropped

    return read


FORMS = {
    "TRL, text": {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."},
    "TRL, turns": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "TRL, implicit prompt": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "UltraFeedback, binarised": {
        "prompt": "Why?",
        "prompt_id": "theirs",
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
        "messages": [USER, GOOD],
        "score_chosen": 8.0,
        "score_rejected": 5,
    },
    "AutoAlign": {
        "prompt": "Why?",
        "prompt_id": 0,
        "chosen": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}],
        "rejected": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "No idea."}],
        "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}],
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    },
    "AutoAlign, ratings": {
        "prompt": "Why?",
        "chosen": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}],
        "chosen-rating": 8.0,
        "rejected": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "No idea."}],
        "rejected-rating": 5.0,
    },
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "Because."},
        "rejected": {"from": "gpt", "value": "No idea."},
    },
    "HH-RLHF": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: Because.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: No idea.",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pair(read, form):
    """Ids come from what is said, so they are the same whatever form the pair comes in."""
    (pair,), dropped = read(FORMS[form])
    messages = (Message(role="user", content="Why?"),)
    prompt_id = prompt_id_of(messages)
    sides = [content_id(prompt_id, text) for text in ("Because.", "No idea.")]
    scored = "score_chosen" in FORMS[form] or "chosen-rating" in FORMS[form]
    assert pair == PreferencePair(
        pair_id=content_id(*sides),
        prompt_id=prompt_id,
        messages=messages,
        chosen_id=sides[0],
        rejected_id=sides[1],
        chosen="Because.",
        rejected="No idea.",
        reward_chosen=8.0 if scored else None,
        reward_rejected=5.0 if scored else None,
        margin=3.0 if scored else None,
        chosen_tokens=8,
        rejected_tokens=8,
    )
    assert not dropped


def test_a_row_of_a_run_comes_back_as_it_is(read):
    (pair,), _ = read(FORMS["TRL, text"])
    own = pair.model_copy(update={"pair_id": "mine", "chosen_tokens": 3, "weight": 0.5, "contrast_id": "c"})
    assert read(own.model_dump())[0] == [own]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Why?", "chosen": "same", "rejected": "same"}, "identical_texts"),
        ({"prompt": "Why?", "chosen": " ", "rejected": "b"}, "empty"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty"),
        (
            {"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "Who?"}, BAD]},
            "different_prompts",
        ),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "no_user_turn"),
        (FORMS["TRL, text"] | {"score_chosen": 1, "score_rejected": 2}, "inverted"),
    ],
)
def test_what_teaches_nothing_is_counted(read, row, reason):
    assert read(row) == ([], Counter([reason]))


def test_equal_scores_leave_the_order_to_whoever_chose(read):
    (pair,), _ = read(FORMS["TRL, text"] | {"score_chosen": 5.0, "score_rejected": 5.0})
    assert pair.margin == 0


def test_the_same_pair_counts_once(read):
    pairs, dropped = read(FORMS["TRL, text"], FORMS["HH-RLHF"])
    assert len(pairs) == 1
    assert dropped == {"duplicate_pair": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Why?", "chosen": "a"}, '"chosen" or "rejected" is missing'),
        ({"instruction": "Why?", "completions": []}, "imports.candidates"),
        (FORMS["TRL, text"] | {"score_chosen": 1}, "belong together"),
        (FORMS["TRL, text"] | {"score_chosen": "8", "score_rejected": "5"}, "finite number"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, "turn of the assistant"),
        ({"pair_id": "x", "messages": [USER], "chosen": "a", "rejected": "b"}, "no pair of a run: prompt_id"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_number(read, row, message):
    with pytest.raises(DataError, match=message) as refused:
        read(FORMS["TRL, text"], row)
    assert refused.value.row == 2
    assert Path(str(refused.value.path)).name == "pairs.jsonl"
