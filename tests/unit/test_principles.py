import math
import re
import tomllib
import unicodedata
from importlib import resources
from itertools import combinations

import pytest

from selfalign.dedup import rouge_l, words

PRINCIPLES = resources.files("selfalign") / "prompts" / "principles"
LANGUAGES = ("en", "zh")
# The least number of principles, by group.
GROUPS = {"harmless": 16, "helpful": 16, "complete": 12, "informative": 15}
SCRIPTS = {"en": "LATIN", "zh": "CJK"}
LENGTHS = {"en": range(8, 46), "zh": range(12, 81)}  # English words, Chinese characters
CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
LATIN = re.compile("[A-Za-z]")

Principle = dict[str, str]


def load(language: str) -> dict[str, list[Principle]]:
    """The groups of one file, without its language and script."""
    content = tomllib.loads((PRINCIPLES / f"{language}.toml").read_text(encoding="utf-8"))
    assert content.pop("language") == language
    assert content.pop("script") == SCRIPTS[language]
    return content


def principles(language: str) -> list[Principle]:
    return [principle for group in load(language).values() for principle in group]


def length(text: str) -> int:
    """English words or Chinese characters, without punctuation."""
    return len(words(text))


def normalised(text: str) -> str:
    return " ".join(text.split()).casefold()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_file_has_exactly_the_four_groups_and_enough_principles_in_each(language: str) -> None:
    groups = load(language)
    assert groups.keys() == GROUPS.keys()
    for group, least in GROUPS.items():
        assert len(groups[group]) >= least, group


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_principle_is_two_trimmed_messages_on_one_line_each(language: str) -> None:
    for principle in principles(language):
        assert principle.keys() == {"positive", "negative"}
        for text in principle.values():
            assert text
            assert text == " ".join(text.split())


def test_no_message_occurs_twice_whatever_its_case_and_white_space() -> None:
    texts = [
        normalised(text)
        for language in LANGUAGES
        for principle in principles(language)
        for text in principle.values()
    ]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_principles_of_a_group_are_worded_alike(language: str) -> None:
    for group in load(language).values():
        for side in ("positive", "negative"):
            for one, other in combinations([principle[side] for principle in group], 2):
                assert rouge_l(words(one), words(other)) < 0.5, (one, other)


@pytest.mark.parametrize("language", LANGUAGES)
def test_messages_are_neither_fragments_nor_essays(language: str) -> None:
    for principle in principles(language):
        for text in principle.values():
            assert length(text) in LENGTHS[language], text


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_two_messages_are_about_as_long_as_each_other(language: str) -> None:
    for principle in principles(language):
        short, long = sorted(length(text) for text in principle.values())
        assert long <= 1.5 * short, principle


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("group", GROUPS)
def test_neither_side_of_a_group_is_the_longer_on_the_whole(language: str, group: str) -> None:
    positive, negative = (
        sum(length(principle[side]) for principle in load(language)[group])
        for side in ("positive", "negative")
    )
    assert math.isclose(positive, negative, rel_tol=0.05)


def test_messages_are_written_in_the_script_of_their_language() -> None:
    for script, other, language in ((LATIN, CJK, "en"), (CJK, LATIN, "zh")):
        for principle in principles(language):
            for text in principle.values():
                assert script.search(text), text
                assert not other.search(text), text
                letters = [unicodedata.name(letter) for letter in text if letter.isalpha()]
                assert all(name.startswith(f"{SCRIPTS[language]} ") for name in letters), text
