import json
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score import rouge_scorer, tokenizers

from selfalign.dedup import NearDuplicates, rouge_l, words

SEED_TASKS = (
    Path(__file__).resolve().parents[2].parent / "shared" / "data" / "self_instruct" / "seed_tasks.jsonl"
)
ORACLE = rouge_scorer.RougeScorer(["rougeL"])
TOKENS = st.lists(st.sampled_from(["a", "b", "the", "cat", "7"]), max_size=15)


def oracle_f1(a: str, b: str) -> float:
    return ORACLE.score(a, b)["rougeL"].fmeasure


@given(st.text(st.characters(max_codepoint=127)))
@example("snake_case isn't Kept: A1-b2\x00C\t42%")
def test_words_of_ascii_text_equal_those_of_rouge_score(text: str) -> None:
    assert words(text) == tokenizers.DefaultTokenizer(use_stemmer=False).tokenize(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("写一首诗。", ["写", "一", "首", "诗"]),
        ("用Python写3个函数", ["用", "python", "写", "3", "个", "函", "数"]),
        ("カレーを作る", ["カ", "レ", "ー", "を", "作", "る"]),
        ("시를 써 주세요", ["시를", "써", "주세요"]),
        ("กินข้าว", ["กิ", "น", "ข้", "า", "ว"]),
        ("हिन्दी में लिखो", ["हिन्दी", "में", "लिखो"]),
        ("Crème brûlée, ÜBER", ["crème", "brûlée", "über"]),
        ("Cre\u0300me bru\u0302le\u0301e", ["crème", "brûlée"]),
        ("ＡＢＣ１２", ["abc12"]),
        ("напиши стих", ["напиши", "стих"]),
        ("اكتب قصيدة", ["اكتب", "قصيدة"]),
        ("❤️ 🎉 ☀️", []),
        ("…!? _", []),
        ("", []),
    ],
)
def test_words_in_other_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(TOKENS, TOKENS)
def test_rouge_l_equals_rouge_score(a: list[str], b: list[str]) -> None:
    assert rouge_l(a, b) == pytest.approx(oracle_f1(" ".join(a), " ".join(b)), abs=1e-12)
    assert rouge_l(a, b) == rouge_l(b, a)


def test_rouge_l_of_an_empty_text_is_zero() -> None:
    assert rouge_l([], []) == rouge_l([], ["a"]) == rouge_l(["a"], []) == 0.0


def test_the_threshold_itself_is_not_a_duplicate() -> None:
    """LCS 7 of 10 and 10 tokens: F1 = 2 * 7 / 20 = 0.7, in floating point too.

    It is 7 because only 7 tokens are shared, or because only 7 of 9 shared ones are in order.
    """
    seen = NearDuplicates(0.7)
    seen.add("a b c d e f g h i j")
    assert seen.find("a b c d e f g x y z") is None
    assert seen.find("c d e f g h i b a x") is None
    assert seen.find("a b c d e f g h y z") == "a b c d e f g h i j"


def test_the_same_words_in_another_order_are_no_duplicate() -> None:
    seen = NearDuplicates()
    seen.add("one two three four five six")
    assert seen.find("six five four three two one") is None


def test_repeated_words_count_as_often_as_both_texts_have_them() -> None:
    seen = NearDuplicates()
    seen.add("no no no no no no")
    assert seen.find("no") is None
    assert seen.find("no no no no no") == "no no no no no no"


def test_find_returns_the_text_added_first() -> None:
    seen = NearDuplicates(0.5)
    for text in ("list ten red fruits", "list ten red berries", "list ten red apples"):
        seen.add(text)
    assert seen.find("list ten red berries") == "list ten red fruits"


def test_texts_without_words_are_duplicates_only_of_themselves() -> None:
    seen = NearDuplicates()
    seen.add("🎉🎉")
    seen.add("")
    assert seen.find("🎉🎉") == "🎉🎉"
    assert seen.find("❤️") is None
    assert seen.find("") == ""


def test_an_identical_text_is_a_duplicate_even_at_threshold_one() -> None:
    seen = NearDuplicates(1.0)
    seen.add("Write a poem.")
    assert seen.find("Write a poem.") == "Write a poem."
    assert seen.find("write a poem") is None


def test_chinese_prompts_are_compared_by_character() -> None:
    seen = NearDuplicates()
    seen.add("请写一首关于春天的诗")
    assert seen.find("请写一首关于秋天的诗") == "请写一首关于春天的诗"
    assert seen.find("解释量子力学的基本原理") is None


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        NearDuplicates(threshold)


@given(st.lists(TOKENS, max_size=8), TOKENS, st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9]))
def test_find_decides_as_comparing_with_every_text_does(
    earlier: list[list[str]], new: list[str], threshold: float
) -> None:
    seen = NearDuplicates(threshold)
    for tokens in earlier:
        seen.add(" ".join(tokens))
    expected = next((" ".join(t) for t in earlier if t == new or rouge_l(t, new) > threshold), None)
    assert seen.find(" ".join(new)) == expected


@given(
    st.lists(st.tuples(TOKENS, st.booleans()), max_size=20),
    st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9, 1.0]) | st.floats(0, 1),
)
@example([(["a"], True), (["a", "b"], False), ([], True), ([], False), (["a"], False)], 0.0)
@example([(["a", "a", "b"], True), (["b", "a", "a"], True), (["a", "a", "b"], False)], 1.0)
def test_asking_and_adding_in_turn_decides_as_comparing_with_every_text_does(
    turns: list[tuple[list[str], bool]], threshold: float
) -> None:
    seen, added = NearDuplicates(threshold), list[list[str]]()
    for tokens, add in turns:
        first = next((" ".join(t) for t in added if t == tokens or rouge_l(t, tokens) > threshold), None)
        assert seen.find(" ".join(tokens)) == first
        if add:
            seen.add(" ".join(tokens))
            added.append(tokens)


def test_common_words_alone_never_hide_a_duplicate() -> None:
    """The words that decide are rare in no text: each is in all the others too, and some come twice."""
    seen = NearDuplicates()
    common = ["the", "of", "and", "a", "to", "in", "is", "that", "it", "for", "the", "of"]
    for start in range(12):
        seen.add(" ".join([*common[start:], *common[:start], f"word{start}"]))
    assert seen.find(" ".join([*common[2:], "new"])) == " ".join([*common, "word0"])
    assert seen.find(" ".join([*common[7:], *common[:7], "new"])) == " ".join(
        [*common[5:], *common[:5], "word5"]
    )


def test_texts_of_any_length_are_found_by_a_longer_and_by_a_shorter_one() -> None:
    """F1 of n words within m is 2n / (n + m), so 7 of 12 words pass 0.7 and 7 of 13 are exactly 0.7."""
    text = [f"w{i}" for i in range(13)]
    for earlier, new in ((text[:7], text[:12]), (text[:12], text[:7])):
        seen = NearDuplicates()
        seen.add(" ".join(earlier))
        assert seen.find(" ".join(new)) == " ".join(earlier)
    for earlier, new in ((text[:7], text), (text, text[:7])):
        seen = NearDuplicates()
        seen.add(" ".join(earlier))
        assert seen.find(" ".join(new)) is None


def test_decisions_on_real_prompts_agree_with_rouge_score() -> None:
    if not SEED_TASKS.exists():
        pytest.skip("the Self-Instruct seed tasks are not here")
    with SEED_TASKS.open(encoding="utf-8") as lines:
        prompts = [json.loads(line)["instruction"] for line in lines]
    sample = [prompts[i] for i in np.random.default_rng(0).choice(len(prompts), 60, replace=False)]
    positives = 0
    for threshold in (0.3, 0.7):
        for a, b in combinations(sample, 2):
            seen = NearDuplicates(threshold)
            seen.add(a)
            duplicate = oracle_f1(a, b) > threshold
            assert (seen.find(b) is not None) == duplicate, (a, b)
            positives += duplicate
    assert positives > 20


def test_a_stream_of_real_and_edited_prompts_is_decided_as_by_rouge_score() -> None:
    if not SEED_TASKS.exists():
        pytest.skip("the Self-Instruct seed tasks are not here")
    rng = random.Random(0)  # noqa: S311 -- no cryptography
    with SEED_TASKS.open(encoding="utf-8") as lines:
        prompts = rng.sample([json.loads(line)["instruction"] for line in lines], 50)
    edited = [
        " ".join(rng.choice(prompts).split()[0] if rng.random() < 0.3 else word for word in prompt.split())
        for prompt in prompts
    ]
    stream = rng.sample(prompts + edited, 100)
    seen = NearDuplicates()
    duplicates = 0
    for number, text in enumerate(stream):
        first = next((t for t in stream[:number] if oracle_f1(t, text) > 0.7), None)
        assert seen.find(text) == first, text
        seen.add(text)
        duplicates += first is not None
    assert 10 < duplicates < 40
