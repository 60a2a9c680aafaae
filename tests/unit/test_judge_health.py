from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from selfalign.judging import health, health_of_prompts
from selfalign.records import Judgment


def judged_text(prompt: str, name: str, *scores: float | None) -> list[Judgment]:
    return [
        Judgment(
            judgment_id=f"{name} {sample}",
            completion_id=name,
            prompt_id=prompt,
            sample=sample,
            score=score,
            reason="no_score" if score is None else None,
            text=None,
            attempts=1 + sample,
            mass=None if score is None else 0.1 * (1 + score),
        )
        for sample, score in enumerate(scores)
    ]


@given(
    texts=st.lists(
        st.tuples(
            st.sampled_from("pqr"),
            st.lists(st.sampled_from([None, 0.0, 1.0, 1.3, 4.9, 5.0]), min_size=1, max_size=3),
            st.integers(1, 5),
        ),
        max_size=12,
    ),
    data=st.data(),
)
def test_health_is_the_same_in_any_order_and_prompt_by_prompt(
    texts: list[tuple[str, list[float | None], int]], data: st.DataObject
) -> None:
    """The oracle counts pairs one by one and has scipy correlate lists."""
    judged = [judged_text(prompt, f"c{n}", *scores) for n, (prompt, scores, _) in enumerate(texts)]
    lengths = {f"c{n}": length for n, (_, _, length) in enumerate(texts)}
    rewards = [(prompt, fmean(kept), length) for prompt, scores, length in texts
               if (kept := [score for score in scores if score is not None])]  # fmt: skip
    ties = [one[1] == other[1] for one, other in combinations(rewards, 2) if one[0] == other[0]]
    kept = [[score for score in scores if score is not None] for _, scores, _ in texts]
    same = [one == other for scores in kept for one, other in combinations(scores, 2)]
    _, values, sizes = zip(*rewards, strict=True) if rewards else ((), (), ())
    defined = len(set(values)) > 1 and len(set(sizes)) > 1
    found = health((row for rows in judged for row in rows), lengths)
    assert found["tie_rate"] == (sum(ties) / len(ties) if ties else None)
    assert found["agreement"] == (sum(same) / len(same) if same else None)
    expected = pytest.approx(spearmanr(values, sizes).statistic) if defined else None
    assert found["length_correlation"] == expected
    assert health(data.draw(st.permutations([row for rows in judged for row in rows])), lengths) == found
    prompts: dict[str, list[tuple[int, list[Judgment]]]] = {prompt: [] for prompt in "pqr"}
    for (prompt, _, length), rows in zip(texts, judged, strict=True):
        prompts[prompt].append((length, rows))
    order = data.draw(st.permutations("pqr"))
    assert health_of_prompts(data.draw(st.permutations(prompts[prompt])) for prompt in order) == found
