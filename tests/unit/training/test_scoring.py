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


def alone(model_dir: Path, policy: Policy, messages: Messages, text: str) -> float:
    """The mean over the completion's tokens and its end of turn, of one sequence without padding."""
    model, chat = AutoModelForCausalLM.from_pretrained(model_dir).eval(), load_chat(model_dir, policy)
    prompt, completion = chat.prompt_ids(messages), chat.completion_ids(text)
    assert completion[-1:] == list(chat.end_of_turn)
    with torch.no_grad():
        logps = torch.log_softmax(model(torch.tensor([prompt + completion])).logits[0].float(), -1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    total = sum(float(logps[place, token]) for place, token in zip(places, completion, strict=True))
    return total / len(completion)


def test_a_batch_gives_what_each_sequence_gives_alone(tiny_model: Path, tiny_policy: Policy):
    expected = [alone(tiny_model, tiny_policy, *item) for item in TEXTS]
    scorer = Scorer(tiny_model, tiny_policy)
    assert scorer.mean_logps(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert scorer.mean_logps(TEXTS[::-1]) == pytest.approx(expected[::-1], abs=1e-5)
    assert len(set(expected)) == len(expected)


def test_bfloat16_products_over_float32_weights_come_near(tiny_model: Path, tiny_policy: Policy):
    coarse = tiny_policy.model_copy(update={"precision": "bfloat16"})
    found = Scorer(tiny_model, coarse).mean_logps(TEXTS)
    exact = Scorer(tiny_model, tiny_policy).mean_logps(TEXTS)
    assert found == pytest.approx(exact, abs=0.1)
    assert found != exact
