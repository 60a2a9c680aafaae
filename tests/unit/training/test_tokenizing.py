from pathlib import Path

import pytest
from transformers import AutoTokenizer

from selfalign.models.chat import Chat
from selfalign.records import Message, PreferencePair, SFTExample
from selfalign.training.dpo import tokenize_pairs
from selfalign.training.sft import tokenize_examples


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
    assert [max(map(len, pair.sequences)) for pair in tokens] == [limit, limit]
    assert tokens[0].weight == 0.5
    assert tokens[0].sequences == (tokens[0].chosen, tokens[0].rejected)
    assert tokens[0].chosen.prompt == tokens[0].rejected.prompt
    assert chat.text(tokens[0].chosen.completion) == "hello"
    assert chat.text(tokens[0].rejected.completion) == "no"
