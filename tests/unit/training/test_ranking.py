from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch

from selfalign.config import Policy, Ranking, Train
from selfalign.engines.local import LocalEngine
from selfalign.engines.protocol import ChoiceRequest
from selfalign.judging import SCORES, expected_score, judge_messages
from selfalign.models.chat import Chat
from selfalign.models.choices import by_choice, spellings
from selfalign.models.load import load_chat
from selfalign.records import JudgedReply, Message, RankingExample
from selfalign.training.ranking import (
    RankingTask,
    ranking_objective,
    score_logps,
    tokenize_rankings,
)

RUBRIC = "Grade.\n{{ prompt }}\n{{ completion }}\n"
ENDLESS = 10**6


@pytest.fixture
def chat(tiny_model: Path, tiny_policy: Policy) -> Chat:
    return load_chat(tiny_model, tiny_policy)


def task(**settings: Any) -> RankingTask:
    return RankingTask(reply_start="Score:", scores=SCORES, settings=Ranking(**settings))


def prompt(name: str, *replies: tuple[str, int]) -> RankingExample:
    """A prompt with replies of a text and a rank each, best 5 and worst 1."""
    worst = max(rank for _, rank in replies) or 1
    return RankingExample(
        prompt_id=name,
        replies=tuple(
            JudgedReply(
                reply_id=f"{name} {i}",
                messages=judge_messages(RUBRIC, (Message(role="user", content=f"Say {name}."),), text),
                rank=rank,
                score=5 - 4 * rank // worst,
                length=len(text),
            )
            for i, (text, rank) in enumerate(replies)
        ),
        source="test",
    )


LONGER_IS_WORSE = prompt("red", ("Red.", 0), ("I can not say anything.", 1))


def test_every_pair_that_people_did_not_tie_is_compared(chat: Chat):
    ranked = prompt("a", ("best", 0), ("tied, long", 1), ("tied", 1), ("worst", 2))
    (item,), too_long = tokenize_rankings([ranked], chat, task(), ENDLESS)
    assert [(p.better, p.worse) for p in item.preferences] == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    assert len(item.sequences) == 4 * len(spellings(chat, "Score:", SCORES))
    assert too_long == 0


def test_a_prompt_whose_replies_all_tie_is_left_out(chat: Chat):
    assert tokenize_rankings([prompt("a", ("x", 0), ("y", 0))], chat, task(), ENDLESS) == ([], 0)


def test_pairs_weigh_as_the_replies_do_and_more_where_the_longer_reply_is_the_worse(chat: Chat):
    ranked = prompt("a", ("middling", 0), ("the longest", 1), ("short", 2))
    (item,), _ = tokenize_rankings([ranked], chat, task(longer_worse_weight=2.5), ENDLESS)
    assert [p.weight * 3 / 2 for p in item.preferences] == pytest.approx([2.5, 1.0, 1.0])


def test_replies_that_do_not_fit_are_left_out_and_counted(chat: Chat):
    ranked = prompt("a", ("best", 0), ("word " * 99, 1), ("worst", 2))
    (item,), too_long = tokenize_rankings([ranked], chat, task(), 200)
    assert (len(item.scores), [(p.better, p.worse) for p in item.preferences]) == (2, [(0, 1)])
    assert too_long == 1
    longest = max(map(len, item.sequences))
    assert len(tokenize_rankings([ranked], chat, task(), longest)[0]) == 1
    assert tokenize_rankings([ranked], chat, task(), 10) == ([], 3)


def test_many_replies_are_dealt_into_parts_that_reach_from_good_to_bad(chat: Chat):
    ranked = prompt("a", *((f"reply {rank}", rank) for rank in (3, 1, 4, 0, 2)))
    items, _ = tokenize_rankings([ranked], chat, task(replies=3), ENDLESS)
    assert [len(item.scores) for item in items] == [3, 2]
    assert [item.scores for item in items] == [(5, 3, 1), (4, 2)]


def test_the_judge_is_asked_as_when_it_judges(chat: Chat):
    (item,), _ = tokenize_rankings([LONGER_IS_WORSE], chat, task(), ENDLESS)
    asked = LONGER_IS_WORSE.replies[0].messages
    assert item.sequences[0].prompt == tuple(chat.prompt_ids(asked, "Score:"))


def test_the_scores_that_are_compared_are_those_that_the_engine_reads(
    fresh: Any, tiny_model: Path, tiny_policy: Policy, chat: Chat
):
    (item,), _ = tokenize_rankings([LONGER_IS_WORSE], chat, task(), ENDLESS)
    spelled = spellings(chat, "Score:", SCORES)
    model = fresh()
    model.eval()
    with torch.no_grad():
        found = score_logps(model(item.sequences), spelled, 6).exp() @ torch.arange(6.0)
    requests = [ChoiceRequest(r.reply_id, r.messages, "Score:", SCORES) for r in LONGER_IS_WORSE.replies]
    choices = {
        choice.key: choice for choice in LocalEngine(tiny_model, tiny_policy, batch_size=2).choose(requests)
    }
    read = [choices[r.reply_id].probabilities for r in LONGER_IS_WORSE.replies]
    # An untrained model puts next to no mass on scores, where the engine's reading would be none.
    expected = [sum(s * p for s, p in enumerate(each)) / sum(each) for each in read if each]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_scores_are_normalised_among_each_other():
    spelled = [(place, (place + 10 * way,)) for place in range(6) for way in (0, 1)]
    probabilities = [0.01, 0.04, 0.1, 0, 0.05, 0.05, 0.2, 0, 0, 0.1, 0.25, 0]
    logps = torch.tensor(probabilities).log()
    found = score_logps(logps, spelled, 6)[0].exp()
    assert found.sum().item() == pytest.approx(1)
    score, _ = expected_score(by_choice(spelled, probabilities, 6))
    assert (found @ torch.arange(6.0)).item() == pytest.approx(score)


def test_the_loss_by_hand(chat: Chat):
    """Two replies, sure of the scores 4 and 1 and less so of the others."""
    (item,), _ = tokenize_rankings(
        [LONGER_IS_WORSE], chat, task(longer_worse_weight=3, score_weight=0.5), ENDLESS
    )
    spelled = spellings(chat, "Score:", SCORES)
    first = {place: i for i, (place, _) in reversed(list(enumerate(spelled)))}
    logps = torch.full((2, len(spelled)), -torch.inf)
    for reply, probabilities in enumerate([{4: 0.8, 5: 0.2}, {1: 0.9, 5: 0.1}]):
        for score, probability in probabilities.items():
            logps[reply, first[score]] = log(probability)
    objective = ranking_objective(chat, task(longer_worse_weight=3, score_weight=0.5))
    loss, metrics = objective.loss(logps.flatten(), [item])
    assert item.scores == (5, 1)
    preference = log(1 + exp(-(4.2 - 1.4)))
    nll = -log(0.2) - log(0.9)
    assert loss.item() == pytest.approx(3 * preference + 0.5 * nll, rel=1e-5)
    assert objective.weight(item) == pytest.approx(3 + 0.5 * 2)
    assert metrics == pytest.approx({"accuracy": 1.0, "score_nll": nll / 2})


def test_a_tie_is_no_success(chat: Chat):
    (item,), _ = tokenize_rankings([LONGER_IS_WORSE], chat, task(), ENDLESS)
    objective = ranking_objective(chat, task())
    _, metrics = objective.loss(torch.full((len(item.sequences),), -2.0), [item])
    assert metrics["accuracy"] == 0


@pytest.mark.parametrize("micro_batch_tokens", [1, 10_000])
def test_training_puts_replies_into_the_human_order(
    fresh: Any, run: Any, chat: Chat, tmp_path: Path, micro_batch_tokens: int
):
    """Prompts of unequally many replies, of which some have the longer reply as the worse."""
    ranked = [
        LONGER_IS_WORSE,
        prompt("blue", ("Blue, as the sky is.", 0), ("No.", 2), ("Perhaps blue.", 1)),
        prompt("green", ("Green.", 0), ("Nothing at all to say.", 1)),
    ]
    items, _ = tokenize_rankings(ranked, chat, task(), ENDLESS)
    settings = Train(
        learning_rate=3e-3, batch_size=3, epochs=25, micro_batch_tokens=micro_batch_tokens, max_length=2048
    )
    log_rows = run(fresh(), items, tmp_path, settings, ranking_objective(chat, task()))
    assert log_rows[0]["accuracy"] < 1
    assert log_rows[-1]["accuracy"] == 1
    assert log_rows[-1]["loss"] < log_rows[0]["loss"] / 2
