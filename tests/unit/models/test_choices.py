from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.config import Policy
from selfalign.models.choices import by_choice, spellings
from selfalign.models.load import load_chat


def test_spellings_are_what_the_tokenizer_writes_behind_the_start(tiny_model: Path, tiny_policy: Policy):
    chat = load_chat(tiny_model, tiny_policy)
    ids = {
        text: tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("4", " 4", "10")
    }
    assert spellings(chat, "Score:", ("4",)) == [(0, ids["4"]), (0, ids[" 4"])]
    assert spellings(chat, "", ("4", "10"))[2] == (1, ids["10"])


class Words:
    """A tokenizer that never splits on a space: the start and the choice may become one token."""

    def __init__(self, **ids: tuple[int, ...]) -> None:
        self.ids = ids

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": list(self.ids[text.replace(" ", "_").replace(":", "c")])}


def test_a_choice_that_merges_with_the_start_is_spelled_alone():
    merging: Any = SimpleNamespace(tokenizer=Words(Sc=(1, 2), Sc4=(1, 3), Sc_4=(1, 2, 4), **{"4": (5,)}))
    assert spellings(merging, "S:", ("4",)) == [(0, (5,)), (0, (4,))]


def test_a_space_that_the_tokenizer_drops_is_no_second_spelling():
    dropping: Any = SimpleNamespace(tokenizer=Words(Sc=(1,), Sc4=(1, 3), Sc_4=(1, 3)))
    assert spellings(dropping, "S:", ("4",)) == [(0, (3,))]


def test_what_belongs_to_a_longer_choice_is_not_the_shorter_ones():
    """P(1) = 0.6 of which 0.5 goes on to 10, of which 0.1 goes on to 100."""
    spelled = [(0, (1,)), (1, (1, 0)), (2, (1, 0, 0)), (0, (7, 1))]
    assert by_choice(spelled, [0.6, 0.5, 0.1, 0.05], 4) == pytest.approx((0.1 + 0.05, 0.4, 0.1, 0.0))


@given(
    spelled=st.dictionaries(
        st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), st.integers(0, 3), max_size=12
    )
)
def test_probabilities_of_choices_never_add_up_to_more_than_one(spelled: dict[tuple[int, ...], int]):
    likelihoods = [0.5 ** ids.count(0) * 0.25 ** (len(ids) - ids.count(0)) for ids in spelled]
    found = by_choice([(place, ids) for ids, place in spelled.items()], likelihoods, 4)
    assert all(p >= 0 for p in found)
    assert sum(found) <= 1 + 1e-9
