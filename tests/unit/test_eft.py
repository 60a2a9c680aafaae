from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.eft import (
    EFTSelection,
    Rule,
    Target,
    agreeing_replies,
    build_examples,
    human_scores,
    normalised,
    ranking_examples,
    split_ranked,
)
from selfalign.records import Judgment, Message, Messages, RankedPrompt, RankedReply, content_id

RULES: tuple[Rule, ...] = ("ranking", "per_reply")


def user(text: str) -> Messages:
    return (Message(role="user", content=text),)


def ranked_of(
    ranks: list[int], text: str = "why?", qualities: list[float | None] | None = None
) -> RankedPrompt:
    """A ranked prompt whose replies are called `<text>/0`, `<text>/1` and so on."""
    return RankedPrompt(
        prompt_id=content_id(text),
        messages=user(text),
        replies=tuple(
            RankedReply(
                reply_id=f"{text}/{number}",
                text=f"reply {number}",
                rank=rank,
                quality=qualities[number] if qualities else None,
            )
            for number, rank in enumerate(ranks)
        ),
        source="test:1",
    )


def rewards_of(prompt: RankedPrompt, rewards: list[float | None]) -> dict[str, float | None]:
    return {reply.reply_id: reward for reply, reward in zip(prompt.replies, rewards, strict=True)}


def judgments_of(prompt: RankedPrompt, scores: list[list[float | None]]) -> list[Judgment]:
    """One judgment for each score of each reply."""
    return [
        Judgment(
            judgment_id=f"{reply.reply_id}#{sample}",
            completion_id=reply.reply_id,
            prompt_id=prompt.prompt_id,
            sample=sample,
            score=score,
            reason="no_score" if score is None else None,
            text=f"Because of {sample}.\nScore: {score}",
            attempts=1,
        )
        for reply, of_reply in zip(prompt.replies, scores, strict=True)
        for sample, score in enumerate(of_reply)
    ]


def built(
    prompt: RankedPrompt,
    scores: list[list[float | None]],
    rule: Rule = "ranking",
    target: Target = "rationale",
) -> EFTSelection:
    judge_prompts = {reply.reply_id: user(f"judge {reply.reply_id}") for reply in prompt.replies}
    return build_examples([prompt], judgments_of(prompt, scores), judge_prompts, rule=rule, target=target)


def test_spelling_makes_no_difference_to_the_key() -> None:
    assert normalised(user("  Ｗhat is\n\tSTRASSE? ")) == normalised(user("what is straße?"))
    assert normalised(user("what is it?")) != normalised(user("what is it"))


def test_the_key_is_the_last_user_turn_and_needs_one() -> None:
    turns = (*user("first"), Message(role="assistant", content="answer"), *user("Last"))
    assert normalised(turns) == normalised((*turns, Message(role="assistant", content="more"))) == "last"
    with pytest.raises(ValueError, match="needs a user turn"):
        normalised((Message(role="system", content="be kind"),))


def test_split_drops_what_is_trained_on_repeated_or_tied() -> None:
    ranked = [
        ranked_of([0, 1], "known"),
        ranked_of([0, 0], "Tied"),
        ranked_of([0, 1], "tied"),
        ranked_of([0, 1], " TIED "),
        ranked_of([0, 1], "new"),
    ]
    split = split_ranked(ranked, [user("KNOWN")], evaluation_fraction=0.5, limit=None, seed=0)
    assert split.dropped == {"ift_prompt": 1, "all_tied": 1, "duplicate_prompt": 1}
    texts = [prompt.messages[-1].content for prompt in split.train + split.evaluation]
    assert sorted(texts) == ["new", "tied"]


@given(
    count=st.integers(0, 30),
    fraction=st.floats(0, 1),
    limit=st.one_of(st.none(), st.integers(0, 40)),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_split_adds_up_is_disjoint_and_ignores_file_order(
    count: int, fraction: float, limit: int | None, seed: int, data: st.DataObject
) -> None:
    ranked = [ranked_of([0, 1], f"question {number}") for number in range(count)]
    split = split_ranked(ranked, [], evaluation_fraction=fraction, limit=limit, seed=seed)
    shuffled = data.draw(st.permutations(ranked))
    assert split_ranked(shuffled, [], evaluation_fraction=fraction, limit=limit, seed=seed) == split
    kept = [prompt.prompt_id for prompt in split.train + split.evaluation]
    assert len(set(kept)) == len(kept) == min(count, count if limit is None else limit)
    assert len(kept) + split.dropped.total() == count
    assert len(kept) < 2 or fraction in (0, 1) or (split.train and split.evaluation)


def test_split_sizes_and_seed() -> None:
    ranked = [ranked_of([0, 1], f"question {number}") for number in range(40)]
    split = split_ranked(ranked, [], evaluation_fraction=0.25, limit=20, seed=1)
    assert (len(split.train), len(split.evaluation), split.dropped) == (15, 5, {"over_limit": 20})
    other = split_ranked(ranked, [], evaluation_fraction=0.25, limit=20, seed=2)
    assert {p.prompt_id for p in other.evaluation} != {p.prompt_id for p in split.evaluation}


@pytest.mark.parametrize(
    ("count", "fraction", "sizes"), [(3, 0.0, (3, 0)), (3, 1.0, (0, 3)), (2, 0.01, (1, 1)), (1, 0.4, (1, 0))]
)
def test_split_at_the_edges(count: int, fraction: float, sizes: tuple[int, int]) -> None:
    ranked = [ranked_of([0, 1], f"question {number}") for number in range(count)]
    split = split_ranked(ranked, [], evaluation_fraction=fraction, limit=None, seed=0)
    assert (len(split.train), len(split.evaluation)) == sizes


@pytest.mark.parametrize(
    ("ranks", "rewards", "per_reply", "ranking"),
    [
        ([0, 1, 2], [5, 3, 1], [0, 1, 2], True),
        ([0, 1, 2], [5, 1, 3], [0], False),
        ([0, 1, 2], [1, 3, 5], [1], False),
        ([0, 1, 2], [5, 3, 3], [0], False),
        ([0, 1, 2], [5, 5, 3], [2], False),
        ([0, 1, 2], [5, 3, None], [], False),
        ([0, 0, 1], [3, 5, 1], [0, 1, 2], True),
        ([0, 0, 1], [3, 1, 5], [0], False),
        ([0, 1, 1], [5, 2, 3], [0, 1, 2], True),
        ([0, 0, 1], [4, 4, 1], [2], False),
        ([2, 0, 1], [1, 5, 3], [0, 1, 2], True),
        ([0, 1], [None, None], [], False),
    ],
)
def test_agreement_by_hand(
    ranks: list[int], rewards: list[float | None], per_reply: list[int], ranking: bool
) -> None:
    prompt = ranked_of(ranks)
    scores = rewards_of(prompt, rewards)
    expected = tuple(prompt.replies[number] for number in per_reply)
    assert agreeing_replies(prompt, scores, "per_reply") == expected
    assert agreeing_replies(prompt, scores, "ranking") == (prompt.replies if ranking else ())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("constant", [4.0, None])
@pytest.mark.parametrize("ranks", [[0, 1], [0, 1, 2], [2, 1, 0], [0, 0, 1], [0, 0, 0]])
def test_a_constant_judge_passes_nothing(ranks: list[int], constant: float | None, rule: Rule) -> None:
    prompt = ranked_of(ranks)
    assert agreeing_replies(prompt, rewards_of(prompt, [constant] * len(ranks)), rule) == ()
    assert built(prompt, [[constant]] * len(ranks), rule).examples == []


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, 0.0, 1.0, 2.0, 3.0, 4.0])), min_size=2, max_size=5
    )
)
def test_ranking_is_agreement_on_every_two_replies(rows: list[tuple[int, float | None]]) -> None:
    prompt = ranked_of([rank for rank, _ in rows])
    agrees = all(
        a is not None and b is not None and a != b and (rank_a == rank_b or (rank_a < rank_b) == (a > b))
        for (rank_a, a), (rank_b, b) in combinations(rows, 2)
    )
    rewards = rewards_of(prompt, [reward for _, reward in rows])
    assert agreeing_replies(prompt, rewards, "ranking") == (prompt.replies if agrees else ())


def test_rationale_target_is_the_representative_judgment_as_it_was_written() -> None:
    prompt = ranked_of([1, 0])
    selection = built(prompt, [[1, 2, 3], [5, 5, 4]])
    assert [(e.score, e.completion) for e in selection.examples] == [
        (2, "Because of 1.\nScore: 2"),
        (5, "Because of 0.\nScore: 5"),
    ]
    first = selection.examples[0]
    assert (first.messages, first.reply_id) == (user("judge why?/0"), "why?/0")
    assert (first.kind, first.prompt_id) == ("eft", prompt.prompt_id)
    assert first.example_id == content_id("why?/0", first.completion)


@pytest.mark.parametrize(
    ("scores", "rule", "dropped", "kept"),
    [
        ([[5], [3], [None]], "per_reply", {"unscored": 1, "unscored_sibling": 2}, 0),
        ([[5], [3], [3]], "per_reply", {"tie": 2}, 1),
        ([[5], [3], [3]], "ranking", {"tie": 2, "disagrees": 1}, 0),
        ([[5], [1], [3]], "per_reply", {"disagrees": 2}, 1),
        ([[5], [1], [3]], "ranking", {"disagrees": 3}, 0),
        ([[4.5], [3], [1]], "ranking", {"fractional_score": 1}, 2),
        ([[5, None], [3, 3], [None, 1]], "ranking", {}, 3),
    ],
)
def test_replies_in_are_examples_and_dropped(
    scores: list[list[float | None]], rule: Rule, dropped: dict[str, int], kept: int
) -> None:
    selection = built(ranked_of([0, 1, 2]), scores, rule)
    assert (selection.dropped, len(selection.examples)) == (dropped, kept)
    assert kept + selection.dropped.total() == 3


def test_a_score_without_text_has_no_rationale_but_can_have_a_score_target() -> None:
    prompt = ranked_of([0, 1])
    bare = [j.model_copy(update={"text": None}) for j in judgments_of(prompt, [[4.2], [1.3]])]
    prompts = {reply.reply_id: user("judge") for reply in prompt.replies}
    assert build_examples([prompt], bare, prompts, rule="ranking", target="rationale").dropped == {
        "no_rationale": 2
    }
    selection = build_examples([prompt], bare, prompts, rule="ranking", target="score")
    assert [e.completion for e in selection.examples] == ["Score: 5", "Score: 1"]


@pytest.mark.parametrize(
    ("ranks", "qualities", "expected"),
    [
        ([0, 1], None, [5, 1]),
        ([0, 1, 2], None, [5, 3, 1]),
        ([0, 1, 2, 3], None, [5, 4, 2, 1]),
        ([0, 1, 2, 3, 4], None, [5, 4, 3, 2, 1]),
        ([0, 1, 1], None, [5, 1, 1]),
        ([0, 3, 7], None, [5, 3, 1]),
        ([0, 0], None, [3, 3]),
        ([0, 1, 2], [0.99, 0.6, 0.1], [4, 3, 0]),
        ([0, 1, 2], [1.0, None, -0.2], [5, 3, 0]),
        ([0, 1], [1.7, 0.2], [5, 1]),
    ],
)
def test_score_target_from_label_or_place(
    ranks: list[int], qualities: list[float | None] | None, expected: list[int]
) -> None:
    scores: list[list[float | None]] = [[5 - 0.5 * rank + 0.01 * -n] for n, rank in enumerate(ranks)]
    selection = built(ranked_of(ranks, qualities=qualities), scores, target="score")
    assert [e.score for e in selection.examples] == expected
    assert [e.completion for e in selection.examples] == [f"Score: {score}" for score in expected]


def test_examples_are_joined_by_reply_whatever_the_order_of_judgments() -> None:
    prompts = [ranked_of([0, 1, 2], f"question {number}") for number in range(30)]
    judgments = [j for prompt in prompts for j in judgments_of(prompt, [[5, 5, 4], [3, 3, 3], [1, 0, 1]])]
    shuffled = [judgments[index] for index in np.random.default_rng(0).permutation(len(judgments))]
    ask = {reply.reply_id: user(reply.reply_id) for prompt in prompts for reply in prompt.replies}
    selection = build_examples(prompts, judgments, ask, rule="ranking", target="rationale")
    assert build_examples(prompts, shuffled, ask, rule="ranking", target="rationale") == selection
    assert [e.messages[0].content for e in selection.examples] == [e.reply_id for e in selection.examples]
    assert [e.reply_id for e in selection.examples] == [r.reply_id for p in prompts for r in p.replies]


def test_a_reply_that_was_never_judged_is_an_error_not_unscored() -> None:
    with pytest.raises(KeyError, match="why\\?/1"):
        agreeing_replies(ranked_of([0, 1]), {"why?/0": 1.0}, "ranking")
    with pytest.raises(KeyError, match="why\\?/0"):
        build_examples([ranked_of([0, 1])], [], {}, rule="ranking", target="score")


def test_even_scores_are_as_frequent_however_the_labels_crowd():
    labels = [0.5 + number / 1000 for number in range(60)]
    prompt = ranked_of(list(range(60))[::-1], qualities=list(labels))
    scores = human_scores([prompt], spread="even")
    assert Counter(scores.values()) == dict.fromkeys(range(6), 10)
    assert [scores[reply.reply_id] for reply in prompt.replies] == sorted(scores.values())
    assert set(human_scores([prompt], spread="label").values()) == {2}


def test_equal_labels_get_the_same_even_score():
    prompt = ranked_of([1, 1, 1, 0], qualities=[0.4, 0.4, 0.4, 0.9])
    assert list(human_scores([prompt], spread="even").values()) == [2, 2, 2, 5]


def test_without_a_label_the_even_score_is_the_place():
    prompts = [ranked_of([0, 1, 2], text="a"), ranked_of([0, 1], text="b", qualities=[0.9, 0.1])]
    scores = human_scores(prompts, spread="even")
    assert [scores[f"a/{number}"] for number in range(3)] == [5, 3, 1]
    assert [scores[f"b/{number}"] for number in range(2)] == [4, 1]


def test_a_ranking_asks_about_every_reply_beside_what_people_said() -> None:
    prompt = ranked_of([1, 0], qualities=[0.2, 0.9])
    asked = {reply.reply_id: user(f"Grade {reply.text}") for reply in prompt.replies}
    (ranking,) = ranking_examples([prompt], asked)
    assert (ranking.prompt_id, ranking.source) == (prompt.prompt_id, prompt.source)
    scores = human_scores([prompt], spread="even")
    for judged, reply in zip(ranking.replies, prompt.replies, strict=True):
        assert (judged.reply_id, judged.rank, judged.length) == (reply.reply_id, reply.rank, len(reply.text))
        assert judged.messages == asked[reply.reply_id]
        assert judged.score == scores[reply.reply_id]
    with pytest.raises(KeyError):
        ranking_examples([prompt], {})


def test_asking_for_no_agreement_makes_an_example_of_every_reply_and_needs_no_judgment():
    prompt = ranked_of([0, 1, 1], qualities=[0.9, 0.3, 0.3])
    asked = {reply.reply_id: user(f"judge {reply.text}") for reply in prompt.replies}
    selection = build_examples([prompt], [], asked, rule="none", target="score")
    assert [example.completion for example in selection.examples] == ["Score: 4", "Score: 1", "Score: 1"]
    assert selection.dropped == Counter()
