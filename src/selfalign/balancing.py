"""Dropping examples of judging so that neither one score nor the length of the judged reply decides.

Scores are balanced because most labels are alike, lengths because people's labels favour long replies.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from selfalign.records import SFTExample, content_id


def balance_scores(examples: Sequence[SFTExample], *, seed: int) -> tuple[list[SFTExample], Counter[str]]:
    """Down-sample the most common score to the count of the next most common.

    The other scores, however rare, stay as they are, and so does a single score. Which examples go, counted
    as `score_balance`, is hashed from `seed` and their ids; the others keep their order.

    Source: 2401.10020, section 3.1.1 (some of the examples with the most common score are discarded); the
    count is our choice, because the paper names none.
    """
    common = Counter(_score(example) for example in examples).most_common(2)
    if len(common) < 2 or common[0][1] == common[1][1]:
        return list(examples), Counter()
    (score, count), (_, target) = common
    bucket = sorted(
        (example.example_id for example in examples if example.score == score),
        key=lambda example_id: content_id(str(seed), example_id),
    )
    gone = set(bucket[target:])
    kept = [example for example in examples if example.example_id not in gone]
    return kept, Counter(score_balance=count - target)


def balance_lengths(
    examples: Sequence[SFTExample], lengths: Mapping[str, int], *, bound: float
) -> tuple[list[SFTExample], Counter[str]]:
    """Drop examples until the stated score follows the length of the judged reply no more than allowed.

    The measure is the correlation of score and length rank (average ranks among all examples given). While
    it is beyond the bound, the example whose removal brings it nearest to 0 goes, counted as
    `length_balance`; ties go by example id. It ends early with three examples, and where score or length is
    constant, or would become so by every removal. The others keep their order.

    Args:
        examples: With a score and a reply id each.
        lengths: Length of each reply in any unit, by `reply_id`.
        bound: Largest correlation to accept, of either sign, 0 to 1.

    Raises:
        KeyError: A reply has no length.
        ValueError: An example states no score.

    Source: our choice, because a judge trained on labels that favour length learns to measure length.
    """
    ordered = sorted(examples, key=lambda example: example.example_id)
    score = np.array([_score(example) for example in ordered], dtype=float)
    rank = rankdata([lengths[str(example.reply_id)] for example in ordered])
    # Every term is a multiple of 1/4, so the running sums are exact and a constant is seen as one.
    terms = np.stack([np.ones_like(score), score, rank, score**2, rank**2, score * rank])
    sums = terms.sum(axis=1)
    gone: list[int] = []
    while len(ordered) - len(gone) > 3 and bound < _correlation(sums) < math.inf:
        without = _correlation(sums[:, None] - terms)
        without[gone] = math.inf
        if without.min() == math.inf:
            break
        gone.append(int(without.argmin()))
        sums = sums - terms[:, gone[-1]]
    gone_ids = {ordered[index].example_id for index in gone}
    kept = [example for example in examples if example.example_id not in gone_ids]
    return kept, +Counter(length_balance=len(gone))


def score_counts(examples: Iterable[SFTExample]) -> dict[str, int]:
    """Return how many examples state each score that occurs, lowest score first.

    Raises:
        ValueError: An example states no score.
    """
    counts = Counter(_score(example) for example in examples)
    return {str(score): counts[score] for score in sorted(counts)}


def _score(example: SFTExample) -> int:
    """Return the score that an example states."""
    if example.score is None:
        raise ValueError(f"example {example.example_id} states no score, so it is no example of judging")
    return example.score


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return absolute correlations from the sums of 1, x, y, xx, yy and xy; infinity where undefined.

    Sums have shape (6,) or (6, n), the result () or (n,).
    """
    n, x, y, xx, yy, xy = sums
    variances = (n * xx - x**2) * (n * yy - y**2)
    defined = variances > 0
    root = np.sqrt(np.where(defined, variances, 1.0))
    return np.where(defined, np.abs(n * xy - x * y) / root, math.inf)
