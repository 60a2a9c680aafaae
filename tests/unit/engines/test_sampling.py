import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfalign.engines.sampling import sample

LAST = float(np.nextafter(np.float32(1), np.float32(0)))
"""The largest number that a draw may be."""


def nucleus_of(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """The exact distribution: the likeliest tokens until their mass reaches top_p, made to sum to 1."""
    probabilities = torch.softmax(logits.double() / temperature, -1)
    mass, kept = 0.0, torch.zeros_like(probabilities)
    for token in probabilities.argsort(descending=True).tolist():
        if mass >= top_p:
            break
        kept[token] = probabilities[token]
        mass += probabilities[token].item()
    return kept / kept.sum()


def frequencies(logits: torch.Tensor, count: int, temperature: float, top_p: float) -> torch.Tensor:
    """Shares of the tokens drawn with evenly spread uniform numbers: exact up to 2 / count."""
    uniforms = (torch.arange(count) + 0.5) / count
    tokens = sample(logits.expand(count, -1), uniforms, temperature, top_p)
    return torch.bincount(tokens, minlength=len(logits)).double() / count


def random_logits(size: int, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.9, 1.0])
def test_frequencies_are_those_of_the_nucleus(temperature: float, top_p: float):
    logits = random_logits(30)
    found = frequencies(logits, 20_000, temperature, top_p)
    expected = nucleus_of(logits, temperature, top_p)
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / 20_000 + 1e-6)


@given(values=st.lists(st.floats(-8, 8), min_size=1, max_size=12), top_p=st.floats(0.01, 1))
def test_nothing_outside_the_nucleus_is_drawn(values: list[float], top_p: float):
    logits = torch.tensor(values)
    uniforms = torch.tensor([0.0, 0.25, 0.5, 0.75, LAST])
    tokens = sample(logits.expand(5, -1), uniforms, 1.0, top_p)
    probabilities = torch.softmax(logits, -1)
    for token in tokens.tolist():
        likelier = probabilities[probabilities > probabilities[token]].sum().item()
        assert likelier < top_p + 1e-6


@pytest.mark.parametrize(("spread", "top_p"), [(0.1, 0.9), (2.0, 0.99), (4.0, 0.5)])
def test_in_a_large_vocabulary_a_number_in_the_middle_of_a_tokens_share_draws_it(spread: float, top_p: float):
    logits = random_logits(4000, spread)
    shares, tokens = nucleus_of(logits, 1.0, top_p).sort(descending=True)
    likely = (shares > 1e-5).nonzero().flatten()[::7]
    middles = (shares.cumsum(-1) - shares / 2)[likely].float()
    drawn = sample(logits.expand(len(likely), -1), middles, 1.0, top_p)
    assert torch.equal(drawn, tokens[likely])
    assert ((shares > 0).sum() > 1024) == (spread < 4)


def test_a_row_draws_the_same_beside_one_that_needs_the_whole_vocabulary():
    """Logits of half precision tie by the dozen, and each way of sorting breaks ties in its own way."""
    narrow = random_logits(5000).bfloat16().float()
    wide = torch.zeros(5000)
    uniforms = torch.linspace(0, LAST, 100)
    alone = sample(narrow.expand(100, -1), uniforms, 1.0, 0.9)
    rows = torch.stack([narrow, wide]).repeat(100, 1)
    beside = sample(rows, uniforms.repeat_interleave(2), 1.0, 0.9)[::2]
    assert torch.equal(alone, beside)


def test_a_row_draws_the_same_beside_narrower_and_wider_ones():
    """One row's nucleus is among the first tokens looked at, one's needs more, and one's needs all."""
    logits = torch.stack([random_logits(5000, spread).bfloat16() for spread in (6.0, 2.0, 0.1)])
    sizes = [int((nucleus_of(row, 1.0, 0.9) > 0).sum()) for row in logits]
    assert sizes[0] < 64 < sizes[1] < 1024 < sizes[2]
    for number in torch.linspace(0, LAST, 50):
        together = sample(logits, number.expand(3), 1.0, 0.9)
        alone = [sample(row[None], number[None], 1.0, 0.9) for row in logits]
        assert torch.equal(together, torch.cat(alone))


def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_of_the_nucleus():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    ends = torch.tensor([0.0, 0.999999, LAST])
    assert sample(logits.expand(3, -1), ends, 1.0, 0.65).tolist() == [1, 3, 3]
    assert sample(logits.expand(3, -1), ends, 1.0, 1.0).tolist() == [1, 0, 0]


def test_the_last_token_of_a_large_vocabulary_can_be_drawn_and_nothing_after_it():
    logits = random_logits(50_000, spread=0.01)
    tokens = sample(logits.expand(2, -1), torch.tensor([LAST, 0.0]), 1.0, 1.0)
    assert tokens.tolist() == [logits.argmin().item(), logits.argmax().item()]


def test_a_temperature_near_zero_draws_the_likeliest():
    logits = random_logits(1000).expand(100, -1)
    tokens = sample(logits, torch.linspace(0, LAST, 100), 1e-4, 0.9)
    assert set(tokens.tolist()) == {int(logits[0].argmax())}


def test_each_row_has_its_own_logits_and_its_own_number():
    logits = torch.tensor([[0.7, 0.3], [0.3, 0.7], [0.3, 0.7]]).log()
    assert sample(logits, torch.tensor([0.6, 0.6, 0.8]), 1.0, 1.0).tolist() == [0, 1, 0]


def test_half_precision_logits_are_drawn_from_in_float32():
    logits = random_logits(40).bfloat16()
    uniforms = torch.linspace(0, LAST, 200)
    half = sample(logits.expand(200, -1), uniforms, 0.7, 0.9)
    assert torch.equal(half, sample(logits.float().expand(200, -1), uniforms, 0.7, 0.9))
