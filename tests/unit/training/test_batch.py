from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from selfalign.training.batch import TokenSequence, completion_logps, micro_batches


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def sequences_of(lengths: list[tuple[int, int]]) -> list[TokenSequence]:
    draw = np.random.default_rng(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.integers(259, size=count).tolist())

    return [TokenSequence(ids(prompt), ids(completion)) for prompt, completion in lengths]


def plain_logps(model: Any, sequence: TokenSequence) -> torch.Tensor:
    """The completion's log-probabilities without padding, explicit positions or a cut head."""
    ids = torch.tensor([sequence.prompt + sequence.completion])
    logps = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
    return logps.gather(-1, ids[0, 1:, None])[len(sequence.prompt) - 1 :, 0]


LENGTHS = [(3, 5), (20, 1), (1, 9), (1, 1), (7, 30), (40, 12)]


def test_a_padded_batch_gives_what_each_sequence_gives_alone(model: Any):
    sequences = sequences_of(LENGTHS)
    with torch.no_grad():
        logps, target = completion_logps(model, sequences)
        assert logps.shape == target.shape == (6, 30)
        for row, sequence in enumerate(sequences):
            size = len(sequence.completion)
            assert target[row].tolist() == [False] * (30 - size) + [True] * size
            assert (logps[row, : 30 - size] == 0).all()
            expected = plain_logps(model, sequence)
            torch.testing.assert_close(logps[row, 30 - size :], expected, rtol=1e-5, atol=1e-5)


def test_the_order_of_rows_is_kept(model: Any):
    sequences = sequences_of(LENGTHS)
    with torch.no_grad():
        forward, _ = completion_logps(model, sequences)
        backward, _ = completion_logps(model, sequences[::-1])
    torch.testing.assert_close(forward, backward.flip(0), rtol=1e-5, atol=1e-5)


def test_padding_adds_nothing_to_the_gradient(model: Any):
    short, long = sequences_of([(2, 3), (50, 40)])

    def gradient(batch: list[TokenSequence]) -> torch.Tensor:
        model.zero_grad()
        completion_logps(model, batch)[0][0].sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    torch.testing.assert_close(gradient([short, long]), gradient([short]), rtol=1e-4, atol=1e-5)


def test_a_sequence_is_as_long_as_both_its_parts():
    assert len(TokenSequence((1, 2, 3), (4, 5))) == 5


@given(
    lengths=st.lists(st.integers(1, 200), max_size=40),
    rows=st.integers(1, 2),
    budget=st.integers(1, 1000),
)
def test_micro_batches_keep_every_item_once_within_the_budget(lengths: list[int], rows: int, budget: int):
    items = list(enumerate(lengths))
    batches = list(micro_batches(items, lambda item: item[1], rows, budget))
    assert sorted(item for batch in batches for item in batch) == items
    for batch in batches:
        padded = len(batch) * rows * max(length for _, length in batch)
        assert padded <= budget or len(batch) == 1
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * rows * max(length for _, length in batch) > budget
        assert min(length for _, length in batch) >= max(length for _, length in following)
