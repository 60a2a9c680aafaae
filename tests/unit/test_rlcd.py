from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.errors import DataError
from selfalign.records import Completion, Message, Messages, Prompt
from selfalign.rlcd import (
    Principle,
    Principles,
    contrast_pair,
    draw_contrasts,
    drop_reason,
    inverted,
    language_of,
    load_principles,
    neutral,
    under_principle,
)

SHIPPED = load_principles()
GROUPS = ["complete", "harmless", "helpful", "informative"]
SMALL = """
language = "en"
script = "latin"
[[kind]]
positive = "Be kind."
negative = "Be rude."
[[kind]]
positive = "Be warm."
negative = "Be cold."
"""


def talk(*contents: str, system: str | None = None) -> Messages:
    """User and assistant turns in alternation, after the system turn if there is one."""
    own = [] if system is None else [Message(role="system", content=system)]
    roles = ("user", "assistant")
    return (*own, *(Message(role=roles[i % 2], content=text) for i, text in enumerate(contents)))


def prompts(count: int, text: str = "question", system: str | None = None) -> list[Prompt]:
    return [Prompt.of(talk(f"{text} {i}", system=system), "here") for i in range(count)]


def draw(of: list[Prompt], known: list[Principles] = SHIPPED, **settings):
    usual = {"per_prompt": 1, "own_system": "append", "language": None, "seed": 0}
    return draw_contrasts(of, known, **usual | settings)


# Principles


def test_the_shipped_files_have_every_group_of_every_language():
    assert {p.language: (p.script, sorted(p.groups)) for p in SHIPPED} == {
        "en": ("LATIN", GROUPS),
        "zh": ("CJK", GROUPS),
    }
    for principles in SHIPPED:
        for group, pairs in principles.groups.items():
            assert len(pairs) >= 12
            assert {pair.group for pair in pairs} == {group}


def test_a_file_of_your_own_takes_the_place_of_the_shipped_ones(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(SMALL)
    [found] = load_principles(str(tmp_path / "mine.toml"))
    pairs = (Principle("kind", "Be kind.", "Be rude."), Principle("kind", "Be warm.", "Be cold."))
    assert found == Principles("en", "LATIN", {"kind": pairs})


def test_a_directory_of_your_own_is_read_by_name_and_nothing_but_toml(tmp_path: Path):
    (tmp_path / "b.toml").write_text(SMALL)
    (tmp_path / "a.toml").write_text(SMALL.replace('"en"', '"ru"').replace("latin", "CYRILLIC"))
    (tmp_path / "notes.txt").write_text("not principles")
    assert [(p.language, p.script) for p in load_principles(str(tmp_path))] == [
        ("ru", "CYRILLIC"),
        ("en", "LATIN"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('negative = "Be cold."', "", "kind pair 2: negative is missing"),
        ('positive = "Be kind."', 'positive = "  "', "kind pair 1: positive is missing"),
        ('positive = "Be kind."', "positive = 3", "kind pair 1: positive is missing"),
        ("Be rude.", " be  KIND.", "kind pair 1: negative repeats an earlier side: ' be  KIND.'"),
        ("Be warm.", "Be kind.", "kind pair 2: positive repeats an earlier side: 'Be kind.'"),
        ("Be warm.", "Be rude.", "kind pair 2: positive repeats an earlier side: 'Be rude.'"),
        ('positive = "Be warm."', 'postive = "Be warm."', "kind pair 2: expected the keys positive and neg"),
        ('language = "en"', "", "language is missing; write it at the top"),
        ('script = "latin"', "", "script is missing; write it at the top"),
        ('"latin"', "latin", "not a TOML file"),
        (SMALL[SMALL.index("[[") :], "", r"no principles; add \[\[helpful\]\] tables"),
        (SMALL[SMALL.index("[[") :], "kind = []", r"kind: expected \[\[kind\]\] tables"),
        (SMALL[SMALL.index("[[") :], "kind = 'x'", r"kind: expected \[\[kind\]\] tables"),
        (SMALL[SMALL.index("[[") :], "kind = ['x']", "kind pair 1: expected the keys positive and negative"),
    ],
)
def test_a_wrong_file_is_refused_by_file_group_and_number(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "mine.toml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        load_principles(str(path))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_side_repeated_in_another_group_is_refused(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(SMALL + '[[other]]\npositive = "BE WARM."\nnegative = "x"\n')
    with pytest.raises(DataError, match="other pair 1: positive repeats an earlier side"):
        load_principles(str(path))


def test_what_is_not_there_is_refused_by_name(tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing\.toml: no such file"):
        load_principles(str(tmp_path / "nothing.toml"))
    with pytest.raises(DataError, match=r"no principle file \(\*\.toml\) here") as caught:
        load_principles(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"x\.toml: not a TOML file"):
        load_principles(str(tmp_path))


def test_two_files_of_one_language_are_refused(tmp_path: Path):
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text(SMALL)
    with pytest.raises(DataError, match="two files are for language 'en'; merge them"):
        load_principles(str(tmp_path))


# Language


@pytest.mark.parametrize(
    ("messages", "language"),
    [
        (talk("What is rain?"), "en"),
        (talk("雨是什么?"), "zh"),
        (talk("What is rain?", system="你是助手"), "en"),
        (talk("雨是什么?", system="You help."), "zh"),
        (talk("What is rain?", "Water.", "为什么?"), "zh"),
        (talk("雨是什么?", "水", "Why?"), "en"),
        (talk('42 🙂 **"(翻译)" rain'), "zh"),
        (talk("3.14: pi? 圆周率"), "en"),
        (talk("Ελληνικά and more"), "en"),
        (talk("привет, 你好"), "zh"),
        (talk("ça va?"), "en"),
        (talk("привет"), None),
        (talk("12 + 30 = ?"), None),
        (talk("🙂"), None),
        (talk(""), None),
    ],
)
def test_the_first_letter_of_the_last_user_turn_decides(messages: Messages, language: str | None):
    found = language_of(messages, SHIPPED)
    assert (found and found.language) == language


# Contrasts


def test_a_draw_depends_on_nothing_but_the_seed_and_the_prompt():
    every = prompts(50)
    contrasts, dropped = draw(every)
    assert (len(contrasts), dropped) == (50, Counter())
    assert [c.prompt_id for c in contrasts] == [p.prompt_id for p in every]
    assert [c.messages for c in contrasts] == [p.messages for p in every]
    assert draw(every[::-1])[0] == contrasts[::-1]
    assert draw(every[20:30])[0] == contrasts[20:30]
    assert draw(every, seed=1)[0] != contrasts
    assert len({c.contrast_id for c in contrasts}) == 50


def test_no_prompt_gets_a_principle_twice_and_a_draw_goes_on_where_a_smaller_one_ended():
    every = prompts(30)
    contrasts, _ = draw(every, per_prompt=5)
    assert Counter(c.prompt_id for c in contrasts) == {p.prompt_id: 5 for p in every}
    assert len({(c.prompt_id, c.positive) for c in contrasts}) == len(contrasts)
    assert draw(every, per_prompt=3)[0] == [c for i, c in enumerate(contrasts) if i % 5 < 3]


def test_of_fewer_principles_than_asked_for_all_are_taken():
    few = [Principles("en", "LATIN", {"a": (Principle("a", "1", "2"),), "b": (Principle("b", "3", "4"),)})]
    contrasts, _ = draw(prompts(3), few, per_prompt=9)
    assert [sorted(c.positive for c in contrasts[i : i + 2]) for i in (0, 2, 4)] == [["1", "3"]] * 3
    assert len(contrasts) == 6


def test_groups_are_drawn_evenly_and_all_of_every_language_are_used():
    contrasts, _ = draw(prompts(200) + prompts(200, "问题"))
    for language in ("en", "zh"):
        groups = Counter(c.group for c in contrasts if c.language == language)
        assert sorted(groups) == GROUPS
        assert all(25 <= count <= 75 for count in groups.values()), groups
    of = {p.language: p.groups for p in SHIPPED}
    for contrast in contrasts:
        pair = Principle(contrast.group, contrast.positive, contrast.negative)
        assert pair in of[contrast.language][contrast.group]


@given(
    st.lists(st.tuples(st.sampled_from(["word", "问题", "42", "слово"]), st.booleans()), max_size=20),
    st.sampled_from(["append", "replace", "skip"]),
    st.sampled_from([None, "zh"]),
    st.integers(1, 3),
)
def test_every_prompt_is_contrasted_or_counted(kinds, own_system, language, per_prompt):
    every = [
        Prompt.of(talk(f"{i} {text}", system="own" if system else None), "here")
        for i, (text, system) in enumerate(kinds)
    ]
    contrasts, dropped = draw(every, own_system=own_system, language=language, per_prompt=per_prompt)
    assert len(contrasts) / per_prompt + dropped.total() == len(every)
    assert dropped.keys() <= {"own_system", "no_principles"}
    assert dropped["own_system"] == (own_system == "skip") * sum(system for _, system in kinds)
    kept = {c.prompt_id: c for c in contrasts}
    for prompt in every:
        if prompt.prompt_id in kept:
            assert kept[prompt.prompt_id].messages == prompt.messages  # its own system turn is kept
            assert language in (None, kept[prompt.prompt_id].language)


def test_a_forced_language_serves_all_prompts_and_an_unknown_one_is_refused():
    contrasts, dropped = draw(prompts(3) + prompts(3, "12"), language="zh")
    assert ([c.language for c in contrasts], dropped) == (["zh"] * 6, Counter())
    with pytest.raises(DataError, match="no principles for language 'de'; there are: en, zh"):
        draw(prompts(1), language="de")


def test_two_languages_of_one_script_have_to_be_told_apart_by_the_recipe():
    both = [*SHIPPED, Principles("de", "LATIN", SHIPPED[0].groups)]
    with pytest.raises(DataError, match=r"share a script.* with contrast\.language: de, en, zh"):
        draw(prompts(1), both)
    assert draw(prompts(1), both, language="de")[0][0].language == "de"


# Messages

BARE, LONG = talk("hi"), talk("hi", "yes?", "why?")
OWN, OWN_LONG = talk("hi", system="Own."), talk("hi", "yes?", "why?", system="Own.")


@pytest.mark.parametrize("own_system", ["append", "replace", "skip"])
@pytest.mark.parametrize("messages", [BARE, LONG])
def test_a_prompt_without_a_system_turn_gets_the_principle_and_loses_it_again(messages, own_system):
    asked = under_principle(messages, "Be kind.", own_system)
    assert asked == (Message(role="system", content="Be kind."), *messages)
    assert neutral(messages, own_system) == messages


@pytest.mark.parametrize("messages", [OWN, OWN_LONG])
def test_a_system_turn_of_its_own_is_appended_to_or_replaced(messages):
    rest = messages[1:]
    assert under_principle(messages, "Be kind.", "append") == (
        Message(role="system", content="Own.\n\nBe kind."),
        *rest,
    )
    assert under_principle(messages, "Be kind.", "replace") == (
        Message(role="system", content="Be kind."),
        *rest,
    )
    assert neutral(messages, "append") == messages
    assert neutral(messages, "replace") == neutral(messages, "skip") == rest


# Pairs


def completion(text: str | None, finish_reason: str = "stop", prompt_id: str = "p") -> Completion:
    return Completion(
        completion_id=f"{prompt_id} {text}",
        prompt_id=prompt_id,
        sample=0,
        text=text,
        finish_reason=finish_reason,
        num_tokens=len((text or "").split()),
    )


def reason(positive: Completion, negative: Completion, **settings) -> str | None:
    strict = {"similarity": 0.5, "keep_truncated": False, "refusals": True}
    return drop_reason(positive, negative, **strict | settings)


NONE = completion(None, "prompt_too_long")
GOOD, BAD = completion("rain falls from clouds"), completion("who knows")
CUT = completion("rain falls from", "length")
SORRY = completion("I'm sorry, but no.")


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        (GOOD, BAD, None),
        (NONE, BAD, "prompt_too_long"),
        (GOOD, NONE, "prompt_too_long"),
        (NONE, completion(""), "prompt_too_long"),
        (completion(" \n"), BAD, "empty"),
        (GOOD, completion(""), "empty"),
        (completion(""), completion(""), "empty"),
        (GOOD, GOOD, "identical"),
        (GOOD, completion(" rain  falls\nfrom clouds "), "identical"),
        (CUT, CUT, "identical"),
        (SORRY, SORRY, "identical"),
        (CUT, BAD, "truncated"),
        (BAD, CUT, "truncated"),
        (completion("I'm sorry, but", "length"), BAD, "truncated"),
        (SORRY, BAD, "refusal"),
        (SORRY, completion("I'm sorry, but yes."), "refusal"),
        (BAD, SORRY, None),
        (GOOD, completion("Rain falls from clouds"), "near_identical"),
        (GOOD, completion("rain falls from above"), "near_identical"),
        (GOOD, completion("rain never comes today"), None),
    ],
)
def test_the_first_reason_that_applies_drops_a_pair(positive, negative, expected):
    assert reason(positive, negative) == expected


def test_what_the_recipe_admits_is_kept():
    assert reason(CUT, BAD, keep_truncated=True) is None
    assert reason(SORRY, BAD, refusals=False) is None
    assert reason(GOOD, completion("Rain falls from clouds"), similarity=1) is None
    assert reason(GOOD, GOOD, similarity=1, keep_truncated=True, refusals=False) == "identical"
    assert reason(NONE, BAD, similarity=1, keep_truncated=True, refusals=False) == "prompt_too_long"


@pytest.mark.parametrize(
    "text",
    ["I'm sorry, no.", "I’m sorry, no.", "I am unable to", "Well, I can't.", "I can’t do that", "I cannot",
     "As an AI, I", "抱歉,我不能这样做", "对不起。"],
)  # fmt: skip
def test_refusals_are_known_in_both_languages_and_with_either_apostrophe(text: str):
    assert reason(completion(text), BAD) == "refusal"


@pytest.mark.parametrize("text", ["He said: I can do it", "word " * 60 + "I'm sorry", "Miami is sorry"])
def test_an_answer_is_no_refusal(text: str):
    assert reason(completion(text), BAD) is None


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [(1.0, 2.0, True), (2.0, 1.0, False), (1.0, 1.0, False), (None, 1.0, False), (0.0, None, False)],
)
def test_only_a_lower_reward_inverts(positive, negative, expected):
    assert inverted(positive, negative) is expected


@pytest.mark.parametrize(
    ("rewards", "margin"),
    [((), None), ((3.0, 1.0), 2.0), ((1.0, 1.0), 0.0), ((None, 1.0), None), ((0.0, None), None)],
)
def test_a_pair_holds_both_sides_of_its_contrast_and_the_rewards_it_has(rewards, margin):
    [contrast], _ = draw(prompts(1))
    good, bad = (completion(text, prompt_id=contrast.prompt_id) for text in ("good answer", "no"))
    messages = neutral(contrast.messages, "append")
    pair = contrast_pair(contrast, messages, good, bad, *rewards)
    assert (pair.chosen, pair.rejected) == ("good answer", "no")
    assert (pair.chosen_id, pair.rejected_id) == (good.completion_id, bad.completion_id)
    assert (pair.chosen_tokens, pair.rejected_tokens, pair.weight) == (2, 1, 1.0)
    assert (pair.prompt_id, pair.contrast_id) == (contrast.prompt_id, contrast.contrast_id)
    assert (pair.reward_chosen, pair.reward_rejected) == (rewards or (None, None))
    assert (pair.messages, pair.margin) == (messages, margin)


@pytest.mark.parametrize("side", [0, 1])
def test_a_pair_of_two_prompts_or_without_a_text_is_never_made(side: int):
    [contrast, other], _ = draw(prompts(2))
    for wrong, message in (
        (completion("x", prompt_id=other.prompt_id), "belongs to another prompt"),
        (completion(None, "prompt_too_long", prompt_id=contrast.prompt_id), "has no text"),
    ):
        sides = [completion("a", prompt_id=contrast.prompt_id), completion("b", prompt_id=contrast.prompt_id)]
        sides[side] = wrong
        with pytest.raises(ValueError, match=message):
            contrast_pair(contrast, contrast.messages, *sides)
    foreign = [completion(text, prompt_id=other.prompt_id) for text in "ab"]
    with pytest.raises(ValueError, match="belongs to another prompt"):
        contrast_pair(contrast, contrast.messages, *foreign)
