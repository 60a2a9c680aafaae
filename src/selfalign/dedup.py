"""Near duplicates by ROUGE-L, exact and in any language.

Comparing a new prompt with every earlier one takes too long from some ten thousand on. `NearDuplicates`
looks up the rarest words of the new one, and aligns it only with texts that have several of them.
"""

import re
import sys
import unicodedata
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from rapidfuzz.distance import LCSseq

# Scripts written without spaces between words: Thai and Lao, Burmese, Khmer, kana, Han.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# Runs over text in which all that is neither alphanumeric, nor mark, nor space is gone: `[^\w ]` is a mark.
_TOKEN = re.compile(rf"(?=\w)[{_UNSPACED}][^\w ]*|[^\W{_UNSPACED}][^ {_UNSPACED}]*")

# How many of the words looked up a text must have before it is looked at. With one, the fewest words are
# looked up; each further one reads a longer list but leaves far fewer texts to align. Two and three are
# fastest on real prompts.
_HITS = 3
_NOWHERE = array("I")


def words(text: str) -> list[str]:
    """Split a text into lower-case word tokens.

    A token is a run of letters and digits, with their combining marks; in scripts written without
    spaces it is one character with its marks. Width and composition don't count (NFKC). Punctuation,
    symbols and emoji are no tokens. On ASCII text the result equals that of the `rouge_score` package.

    Source: ROUGE tokenisation for ASCII; the rest is our choice, because dropping other letters would
    make all prompts of a language equal.
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    return _TOKEN.findall(
        "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in folded)
    )


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """Return the ROUGE-L F1 of two token sequences, in [0, 1]; 0.0 when either is empty.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3, with beta 1.
    """
    return _f1(LCSseq.similarity(a, b), len(a), len(b))


def _f1(matches: int, length_a: int, length_b: int) -> float:
    """Return F1 rounded once, so that it never falls when `matches` grows."""
    return 2 * matches / (length_a + length_b) if length_a and length_b else 0.0


def _occurrences(tokens: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Number equal tokens, so that the overlap of two multisets is that of two sets."""
    count: Counter[str] = Counter()
    for token in tokens:
        count[token] += 1
        yield token, count[token]


class NearDuplicates:
    """Texts seen so far, and the question whether a new one is much like any of them.

    Two texts are near duplicates when their ROUGE-L F1 is greater than the threshold (in [0, 1]; equal
    to it is not enough), or when they are the same string, so that texts without a token are covered.

    Raises:
        ValueError: The threshold is outside [0, 1].

    Source: Wang et al. 2022 (Self-Instruct, arXiv 2212.10560), section 2.2: threshold 0.7.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} is outside [0, 1]")
        self._threshold = threshold
        self._same: set[str] = set()
        self._texts: list[str] = []
        self._tokens: list[tuple[str, ...]] = []
        self._lengths = array("I")
        self._postings: defaultdict[tuple[str, int], array[int]] = defaultdict(lambda: array("I"))

    def add(self, text: str) -> None:
        """Remember a text, whether or not it is like an earlier one."""
        # Most words are in many texts, so one copy of each takes half the memory.
        index, tokens = len(self._texts), tuple(map(sys.intern, words(text)))
        self._same.add(text)
        self._texts.append(text)
        self._tokens.append(tokens)
        self._lengths.append(len(tokens))
        for key in _occurrences(tokens):
            self._postings[key].append(index)

    def find(self, text: str) -> str | None:
        """Return the text added first among the near duplicates of this one; `None` if there is none."""
        tokens = words(text)
        if tokens:
            for index in self._possible(tokens):
                if rouge_l(tokens, self._tokens[index]) > self._threshold:
                    return self._texts[index]
        return text if text in self._same else None

    def _possible(self, tokens: Sequence[str]) -> list[int]:
        """Return the texts, in order, that may share enough tokens: all near duplicates, and few others.

        An alignment matches no more tokens than two texts share. A near duplicate shares `least` or more of
        the `count` tokens, so it lacks at most `count - least` of those looked up, whichever these are. The
        rarest are taken, and `_HITS` more than it may lack. That it has so many of them, and all the rest
        at best, must then be enough for its own length.

        Source: Chaudhuri et al. 2006, "A primitive operator for similarity joins in data cleaning" (the
            prefix filter); more than one hit, as in Wang et al. 2012, "Can we beat the prefix filtering?".
        """
        count = len(tokens)
        least = bisect_right(range(count + 1), self._threshold, key=lambda shared: _f1(shared, count, shared))
        postings = sorted((self._postings.get(key, _NOWHERE) for key in _occurrences(tokens)), key=len)
        looked_up = postings[: count - least + _HITS]
        rest = count - len(looked_up)
        hits = np.bincount(np.concatenate(looked_up))
        found = np.flatnonzero(hits >= least - rest)
        lengths = np.asarray(self._lengths)[found]
        shared = hits[found] + rest
        possible: list[int] = found[2 * shared / (count + lengths) > self._threshold].tolist()
        return possible
