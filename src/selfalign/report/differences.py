"""Which words of two texts differ, as HTML."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from markupsafe import Markup, escape
from rapidfuzz.distance import LCSseq

from selfalign.report.text import readable

LEAST_COMMON = 0.3
"""Share of words in common below which marks would cover nearly everything and say nothing."""

_HAN = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"\s*(?:[{_HAN}]|[^\W{_HAN}]+|[^\w\s])|\s+")


def with_marks(one: str, other: str) -> tuple[Markup, Markup]:
    """Return two texts as HTML, each made readable, with the words that only it has in `<mark>`.

    A word is what stands between spaces and punctuation; a Han or Kana letter is one. Texts with few words in
    common have no marks.
    """
    shown = readable(one), readable(other)
    tokens = [_TOKEN.findall(text) for text in shown]
    words = [[token.strip() for token in its] for its in tokens]
    own = [[True] * len(its) for its in words]
    common = 0
    for step in LCSseq.opcodes(*words):
        if step.tag == "equal":
            own[0][step.src_start : step.src_end] = [False] * (step.src_end - step.src_start)
            own[1][step.dest_start : step.dest_end] = [False] * (step.dest_end - step.dest_start)
            common += step.src_end - step.src_start
    if 2 * common < LEAST_COMMON * sum(map(len, words)):
        return Markup(escape(shown[0])), Markup(escape(shown[1]))  # noqa: S704 -- escaped here
    one_marked, other_marked = (
        Markup("").join(_pieces(zip(its, marks, strict=True))) for its, marks in zip(tokens, own, strict=True)
    )
    return one_marked, other_marked


def _pieces(tokens: Iterable[tuple[str, bool]]) -> Iterator[Markup]:
    """Yield runs of tokens as HTML; the space before a marked run stays outside of it."""
    for marked, run in groupby(tokens, key=lambda token: token[1]):
        text = "".join(token for token, _ in run)
        if marked and (word := text.strip()):
            before, _, after = text.partition(word)
            yield escape(before) + Markup("<mark>{}</mark>").format(word) + escape(after)
        else:
            yield escape(text)
