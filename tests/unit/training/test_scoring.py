from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfalign.config import Policy
from selfalign.models.load import load_chat
from selfalign.records import Message, Messages
from selfalign.training.scoring import Scorer

HELLO = (Message(role="user", content="hello"),)
KIND = (Message(role="system", content="Be kind."), *HELLO)
TEXTS = [(HELLO, "ho"), (KIND, "a much longer answer than the others"), (KIND, "ho"), (HELLO, "")]


BUDGET = 2048


def alone(model_dir: Path, policy: Policy, messages: Messages, text: str) -> tuple[float, int]:
    """The completion's tokens with its end of turn: their summed log-probability and number, unpadded."""
    model, chat = AutoModelForCausalLM.from_pretrained(model_dir).eval(), load_chat(model_dir, policy)
    prompt, completion = chat.prompt_ids(messages), chat.completion_ids(text)
    assert completion[-1:] == list(chat.end_of_turn)
    with torch.no_grad():
        logps = torch.log_softmax(model(torch.tensor([prompt + completion])).logits[0].float(), -1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    total = sum(float(logps[place, token]) for place, token in zip(places, completion, strict=True))
    return total, len(completion)


@pytest.mark.parametrize("budget", [1, 150, BUDGET])
def test_a_batch_gives_what_each_sequence_gives_alone(tiny_model: Path, tiny_policy: Policy, budget: int):
    expected = [alone(tiny_model, tiny_policy, *item) for item in TEXTS]
    scorer = Scorer(tiny_model, tiny_policy, budget)
    for order in (1, -1):
        scores = scorer.score(TEXTS[::order])
        means = [logp / tokens for logp, tokens in expected[::order]]
        assert [score.tokens for score in scores] == [tokens for _, tokens in expected[::order]]
        assert [score.mean for score in scores] == pytest.approx(means, abs=1e-5)
        assert [score.logp for score in scores] == pytest.approx([p for p, _ in expected[::order]], rel=1e-5)
    assert len({logp for logp, _ in expected}) == len(expected)


def test_equal_texts_have_equal_scores_and_no_texts_none(tiny_model: Path, tiny_policy: Policy):
    scorer = Scorer(tiny_model, tiny_policy, BUDGET)
    first, other, again = scorer.score([TEXTS[0], TEXTS[1], TEXTS[0]])
    assert first == again != other
    assert scorer.score([]) == []


def test_bfloat16_products_over_float32_weights_come_near(tiny_model: Path, tiny_policy: Policy):
    coarse = tiny_policy.model_copy(update={"precision": "bfloat16"})
    found = [score.mean for score in Scorer(tiny_model, coarse, BUDGET).score(TEXTS)]
    exact = [score.mean for score in Scorer(tiny_model, tiny_policy, BUDGET).score(TEXTS)]
    assert found == pytest.approx(exact, abs=0.1)
    assert found != exact
