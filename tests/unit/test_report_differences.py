"""Words that differ between two texts."""

import re

from hypothesis import given
from hypothesis import strategies as st

from selfalign.report.differences import with_marks
from selfalign.report.text import LIMIT


def marked(text: str) -> list[str]:
    return re.findall("<mark>(.*?)</mark>", text, re.DOTALL)


def test_words_that_only_one_side_has_are_marked_without_the_space_around_them() -> None:
    one, other = with_marks("91 is indeed a prime number.", "91 is not a prime number.")
    assert one == "91 is <mark>indeed</mark> a prime number."
    assert other == "91 is <mark>not</mark> a prime number."


def test_neighbours_are_marked_together() -> None:
    one, other = with_marks("a b c d e f g", "a b x y e f g")
    assert (marked(one), marked(other)) == (["c d"], ["x y"])


def test_equal_texts_and_empty_ones_have_no_marks() -> None:
    assert with_marks("a <b>", "a <b>") == ("a &lt;b&gt;", "a &lt;b&gt;")
    assert with_marks("", "") == ("", "")
    assert with_marks("", "word") == ("", "word")


def test_texts_with_hardly_a_word_in_common_have_no_marks() -> None:
    one, other = with_marks("the cat sat on a mat", "quantum fields obey the equations of motion")
    assert marked(one) == marked(other) == []


def test_a_han_letter_is_a_word() -> None:
    one, other = with_marks("我喜欢吃苹果和梨", "我喜欢吃香蕉和梨")
    assert (marked(one), marked(other)) == (["苹果"], ["香蕉"])


def test_marks_hold_no_markup_of_the_text() -> None:
    one, _ = with_marks("same words here <script>alert(1)</script> end", "same words here end")
    assert one == "same words here <mark>&lt;script&gt;alert(1)&lt;/script&gt;</mark> end"


def test_a_long_text_is_cut_once() -> None:
    one, _ = with_marks("word " * LIMIT, "word")
    assert one.count("more characters)") == 1


@given(st.text(), st.text())
def test_without_the_marks_the_texts_are_as_they_were(one: str, other: str) -> None:
    alone = with_marks(one, one)[0], with_marks(other, other)[0]
    both = with_marks(one, other)
    assert tuple(re.sub("</?mark>", "", text) for text in both) == alone
