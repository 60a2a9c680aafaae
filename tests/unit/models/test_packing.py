from itertools import accumulate, groupby, pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selfalign.models.packing import PackedRow, TokenSequence, micro_batches, pack, packed_tokens

TOKENS = st.integers(0, 2)
"""So few that sequences often share a prefix, are one a prefix of another, or are equal."""
SEQUENCES = st.builds(
    TokenSequence,
    st.lists(TOKENS, min_size=1, max_size=4).map(tuple),
    st.lists(TOKENS, max_size=4).map(tuple),
)
ROWS = st.lists(SEQUENCES, max_size=8)
EVERY_CASE = [
    TokenSequence((1, 2), (3, 4)),
    TokenSequence((1, 2), (3, 4)),  # equal
    TokenSequence((1, 2), (3,)),  # a prefix
    TokenSequence((1,), (2, 3, 4, 5)),  # the prompt of one is the completion of another
    TokenSequence((1, 2, 3), (0,)),
    TokenSequence((9, 2), (3, 4)),  # another root
    TokenSequence((1, 2, 5), (3,)),
]


def prefixes(sequences: list[TokenSequence]) -> list[tuple[int, ...]]:
    """The nodes of the trie of the sequences without their last tokens, which predict nothing."""
    return sorted({s.ids[: size + 1] for s in sequences for size in range(len(s) - 1)})


def paths_of(row: PackedRow) -> list[list[int]]:
    """The places that each place of the row sees, itself the last, as the branches say."""
    paths = []
    for branch in row.branches:
        before = [place for start, end in branch.shared for place in range(start, end)]
        assert branch.depth == len(before)
        paths += [[*before, *range(branch.start, end)] for end in range(branch.start + 1, branch.end + 1)]
    return paths


# A row


@given(ROWS)
@example(EVERY_CASE)
def test_branches_cut_the_row_into_stretches(sequences: list[TokenSequence]):
    row = pack(sequences)
    assert all(branch.start < branch.end for branch in row.branches)
    ends = [0, *(branch.end for branch in row.branches)]
    assert ends == [*(branch.start for branch in row.branches), len(row.ids)]


@given(ROWS)
@example(EVERY_CASE)
def test_every_prefix_that_predicts_a_token_stands_once_on_a_path_of_its_own(sequences: list[TokenSequence]):
    row = pack(sequences)
    paths = paths_of(row)
    assert sorted(tuple(row.ids[place] for place in path) for path in paths) == prefixes(sequences)
    for place, path in enumerate(paths):
        assert path[-1] == place
        assert path[:-1] == (paths[path[-2]] if len(path) > 1 else [])


@given(ROWS)
@example(EVERY_CASE)
def test_positions_count_from_the_start_of_the_sequence(sequences: list[TokenSequence]):
    row = pack(sequences)
    assert row.positions == [len(path) - 1 for path in paths_of(row)]


@given(ROWS)
@example(EVERY_CASE)
def test_a_completions_terms_are_its_tokens_each_predicted_on_its_own_path(sequences: list[TokenSequence]):
    row = pack(sequences)
    paths = paths_of(row)
    seen = [tuple(row.ids[place] for place in paths[source]) for source in row.sources]
    terms = list(zip(row.owners, row.terms, strict=True))
    for number, sequence in enumerate(sequences):
        own = [term for owner, term in terms if owner == number]
        assert tuple(row.targets[term] for term in own) == sequence.completion
        before = accumulate(((token,) for token in sequence.completion), initial=sequence.prompt)
        assert [seen[term] for term in own] == list(before)[:-1]
    assert row.owners == sorted(row.owners)


@given(ROWS)
@example(EVERY_CASE)
def test_a_target_that_completions_share_stands_once_and_none_stands_idle(sequences: list[TokenSequence]):
    row = pack(sequences)
    targets = list(zip(row.sources, row.targets, strict=True))
    assert len(set(targets)) == len(targets)
    assert set(row.terms) == set(range(len(targets)))


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_sequences_moves_their_terms_and_not_the_row(
    sequences: list[TokenSequence], random: Random
):
    order = random.sample(range(len(sequences)), len(sequences))
    row, other = pack(sequences), pack([sequences[i] for i in order])
    assert (other.ids, other.positions, other.branches) == (row.ids, row.positions, row.branches)


@given(ROWS)
@example(EVERY_CASE)
def test_packed_tokens_are_the_length_of_the_row(sequences: list[TokenSequence]):
    assert packed_tokens(sequences) == len(pack(sequences).ids) == len(prefixes(sequences))


def test_a_pair_by_hand():
    """Prompt 7 8, completions 5 6 9 and 5 4: the row is 7 8 5 | 6; 4 and 9 are targets alone."""
    row = pack([TokenSequence((7, 8), (5, 6, 9)), TokenSequence((7, 8), (5, 4))])
    assert row.ids == [7, 8, 5, 6]
    assert row.positions == [0, 1, 2, 3]
    assert [(branch.start, branch.end, branch.shared) for branch in row.branches] == [
        (0, 3, ()),
        (3, 4, ((0, 3),)),
    ]
    assert list(zip(row.sources, row.targets, strict=True)) == [(1, 5), (2, 4), (2, 6), (3, 9)]
    assert row.terms == [0, 2, 3, 0, 1]
    assert row.owners == [0, 0, 0, 1, 1]


def test_choices_of_one_token_cost_their_prompt_alone():
    row = pack([TokenSequence((7, 8), (choice,)) for choice in range(6)])
    assert row.ids == [7, 8]
    assert len(row.branches) == 1
    assert list(zip(row.sources, row.targets, strict=True)) == [(1, choice) for choice in range(6)]


def test_a_path_can_lead_over_several_stretches():
    """1 2 | 3 4 5 | 6: the third sequence shares 1, which it finds before a stretch that is not its own."""
    row = pack([TokenSequence((1,), completion) for completion in [(2, 2, 0), (2, 3, 3, 0), (2, 3, 4, 0)]])
    assert row.ids == [1, 2, 2, 3, 3, 4]
    assert [branch.shared for branch in row.branches] == [(), ((0, 2),), ((0, 2), (3, 4))]


@pytest.mark.parametrize("others", [[], EVERY_CASE])
def test_a_sequence_without_a_prompt_is_refused(others: list[TokenSequence]):
    with pytest.raises(ValueError, match="without a prompt"):
        pack([*others, TokenSequence((), (1, 2))])


def test_a_sequence_is_as_long_as_both_its_parts():
    sequence = TokenSequence((1, 2, 3), (4, 5))
    assert len(sequence) == 5
    assert sequence.ids == (1, 2, 3, 4, 5)


# Micro-batches

Item = tuple[TokenSequence, ...]
ITEMS = st.integers(1, 3).flatmap(
    lambda sides: st.lists(st.lists(SEQUENCES, min_size=sides, max_size=sides).map(tuple), max_size=12)
)


def batches_of(items: list[Item], budget: int) -> list[list[Item]]:
    return list(micro_batches(items, lambda item: item, budget))


def size_of(batch: list[Item]) -> int:
    return packed_tokens([sequence for item in batch for sequence in item])


def by_content(item: Item) -> list[tuple[int, ...]]:
    return sorted(sequence.ids for sequence in item)


@given(ITEMS, st.integers(1, 40))
def test_every_item_is_in_one_batch(items: list[Item], budget: int):
    numbered = list(enumerate(items))
    batches = list(micro_batches(numbered, lambda item: item[1], budget))
    assert sorted(i for batch in batches for i, _ in batch) == list(range(len(items)))
    assert all(items[i] is item for batch in batches for i, item in batch)
    assert all(batches)


@given(ITEMS, st.integers(1, 40))
def test_a_batch_stays_within_the_budget_unless_it_is_a_single_item(items: list[Item], budget: int):
    assert all(size_of(batch) <= budget or len(batch) == 1 for batch in batches_of(items, budget))


@given(ITEMS)
def test_what_fits_at_once_is_one_batch(items: list[Item]):
    assert len(batches_of(items, sum(size_of([item]) for item in items) or 1)) == min(1, len(items))


@given(ITEMS, st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(items: list[Item], budget: int, random: Random):
    shuffled = random.sample(items, len(items))
    found, expected = (
        [[by_content(item) for item in batch] for batch in batches_of(order, budget)]
        for order in (shuffled, items)
    )
    assert found == expected


@given(
    st.lists(st.tuples(st.sampled_from([(0, 1), (0, 2), (1, 0)]), TOKENS, TOKENS), max_size=20),
    st.integers(4, 40),
)
def test_items_that_share_a_prompt_come_one_after_another(
    drawn: list[tuple[tuple[int, int], int, int]], budget: int
):
    items = [(TokenSequence(p, (chosen,)), TokenSequence(p, (rejected,))) for p, chosen, rejected in drawn]
    prompts = [item[0].prompt for batch in batches_of(items, budget) for item in batch]
    assert len(list(groupby(prompts))) == len(set(prompts))


def test_judgments_of_one_prompt_share_it_in_a_batch_of_their_own():
    """Three prompts of 50 tokens, four answers of 5 each and an end, given in turn: 70 tokens a prompt."""
    prompts = [tuple(ids) for ids in np.random.default_rng(0).integers(3, 99, (3, 50)).tolist()]
    items = [(TokenSequence(prompt, (100 + answer,) * 6),) for answer in range(4) for prompt in prompts]
    batches = batches_of(items, 70)
    assert [size_of(batch) for batch in batches] == [70, 70, 70]
    assert [len({item[0].prompt for item in batch}) for batch in batches] == [1, 1, 1]


def apart(sizes: list[int]) -> list[Item]:
    """Items that share nothing; the last token of each takes no place."""
    return [(TokenSequence((100 + number,), (1,) * size),) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("count", "budget", "expected"),
    [
        (11, 100, [60, 50]),  # and not 100 and 10
        (10, 100, [100]),
        (10, 25, [20, 20, 20, 20, 20]),
        (9, 45, [40, 40, 10]),
        (4, 5, [10, 10, 10, 10]),
        (0, 5, []),
    ],
)
def test_batches_are_about_equal(count: int, budget: int, expected: list[int]):
    assert [size_of(batch) for batch in batches_of(apart([10] * count), budget)] == expected


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(30, 200))
def test_a_batch_ends_with_its_fair_share_or_where_the_next_item_has_no_room(sizes: list[int], budget: int):
    """The fair share is what each batch gets where as few as possible are equally large."""
    fair = sum(sizes) / -(-sum(sizes) // budget)
    batches = batches_of(apart(sizes), budget)
    for batch, following in pairwise(batches):
        assert size_of(batch) >= fair or size_of(batch) + size_of(following[:1]) > budget
        assert size_of(batch[:-1]) < fair
