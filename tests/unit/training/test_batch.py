from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from selfalign.models.chat import Chat
from selfalign.records import Message, PreferencePair, SFTExample
from selfalign.training.batch import TokenSequence, completion_logps, micro_batches
from selfalign.training.dpo import tokenize_pairs
from selfalign.training.sft import tokenize_examples


@pytest.fixture(scope="module", params=["rotary positions", "absolute positions"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    """Rotary positions forgive a shift of a whole row; absolute ones do not."""
    if request.param == "rotary positions":
        return AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    config = GPT2Config(
        vocab_size=259,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=258,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


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


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> Chat:
    return Chat(AutoTokenizer.from_pretrained(tiny_model))


ASK = (Message(role="user", content="hi"),)


def example_of(completion: str) -> SFTExample:
    return SFTExample(
        example_id=completion, prompt_id="p", messages=ASK, completion=completion, kind="ift", source="test"
    )


def pair_of(chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(
        pair_id=f"{chosen} {rejected}",
        prompt_id="p",
        messages=ASK,
        chosen_id="c",
        rejected_id="r",
        chosen=chosen,
        rejected=rejected,
        reward_chosen=3.0,
        reward_rejected=1.0,
        margin=2.0,
        chosen_tokens=len(chosen),
        rejected_tokens=len(rejected),
        weight=0.5,
    )


def test_an_example_that_just_fits_is_kept_and_a_longer_one_counted(chat: Chat):
    limit = len(chat.prompt_ids(ASK)) + len("hello") + 1
    sequences, too_long = tokenize_examples(map(example_of, ("hello", "hello!", "hey")), chat, limit)
    assert [chat.text(sequence.completion) for sequence in sequences] == ["hello", "hey"]
    assert too_long == 1


def test_an_example_is_the_prompt_and_the_completion_with_its_end(chat: Chat):
    [sequence], _ = tokenize_examples([example_of("hello")], chat, 1024)
    whole = chat.tokenizer.decode(sequence.prompt + sequence.completion)
    assert whole == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>"
    assert len(sequence.completion) == 6


def test_a_pair_needs_room_for_both_sides(chat: Chat):
    limit = len(chat.prompt_ids(ASK)) + len("hello") + 1
    pairs = [pair_of("hello", "no"), pair_of("no", "hello"), pair_of("hello!", "no"), pair_of("no", "hello!")]
    tokens, too_long = tokenize_pairs(pairs, chat, limit)
    assert [pair.pair_id for pair in tokens] == ["hello no", "no hello"]
    assert too_long == 2
    assert tokens[0].length == tokens[1].length == limit
    assert tokens[0].weight == 0.5
    assert tokens[0].chosen.prompt == tokens[0].rejected.prompt
    assert chat.text(tokens[0].chosen.completion) == "hello"
    assert chat.text(tokens[0].rejected.completion) == "no"
