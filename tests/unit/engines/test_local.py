from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from selfalign.config import Policy, Sampling, Train
from selfalign.engines.local import LocalEngine, _shared_prefix
from selfalign.engines.protocol import ChoiceRequest, Generation, GenerationRequest
from selfalign.models.chat import Chat
from selfalign.models.load import load_chat
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence
from selfalign.records import Message
from selfalign.training.sft import sft_objective
from selfalign.training.trainer import train

NEARLY_GREEDY = Sampling(temperature=1e-5, max_new_tokens=25)
SYSTEM = Message(role="system", content="You speak of the sea and of the hills, slowly.")


def ask(
    key: str, text: str, *, system: bool = True, reply_start: str = "", seed: int = 0
) -> GenerationRequest:
    user = Message(role="user", content=text)
    return GenerationRequest(key, (SYSTEM, user) if system else (user,), seed, reply_start)


MIXED = [
    ask("short", "and?"),
    ask("long", "tell me of the sea, " * 6),
    ask("middle", "tell me of the hills"),
    ask("again", "tell me of the hills", seed=1),
    ask("started", "tell me of the hills", reply_start="They are"),
    ask("other start", "what of the hills and of the sea between them"),
    ask("last", "x"),
]


def swap(tiny_model: Path, directory: Path, *, model: Any = None, tokenizer: Any = None) -> Path:
    """The tiny model with another model or another tokenizer in its place."""
    (model or AutoModelForCausalLM.from_pretrained(tiny_model)).save_pretrained(directory)
    (tokenizer or AutoTokenizer.from_pretrained(tiny_model)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def rotary(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def sliding(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers look back 16 tokens, less than what the prompts share."""
    shape = AutoConfig.from_pretrained(tiny_model).to_dict()
    config = MistralConfig(**{**shape, "model_type": "mistral"}, sliding_window=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(config)
    return swap(tiny_model, tmp_path_factory.mktemp("sliding") / "model", model=model)


@pytest.fixture(scope="module")
def absolute(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows where a token stands, and not only how far it is from another."""
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
        model = GPT2LMHeadModel(config)
    return swap(tiny_model, tmp_path_factory.mktemp("absolute") / "model", model=model)


def greedy(model: Any, chat: Chat, request: GenerationRequest) -> str:
    """What transformers generates for one prompt alone."""
    ids = torch.tensor([chat.prompt_ids(request.messages, request.reply_start)])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEARLY_GREEDY.max_new_tokens,
        pad_token_id=chat.tokenizer.pad_token_id,
        eos_token_id=sorted(chat.tokenizer.added_tokens_decoder),
    )
    return chat.text(output[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("name", ["rotary", "sliding", "absolute"])
@pytest.mark.parametrize(
    "requests",
    [MIXED, [ask(r.key, r.messages[-1].content, system=False) for r in MIXED], MIXED[:1], MIXED[2:4]],
    ids=["shared system turn", "short shared start", "alone", "one prompt twice"],
)
@pytest.mark.parametrize("temperature", [0.0, 1e-5])
def test_batches_decode_what_transformers_decodes_one_by_one(
    temperature: float,
    name: str,
    requests: list[GenerationRequest],
    tiny_policy: Policy,
    request: pytest.FixtureRequest,
):
    directory = request.getfixturevalue(name)
    model, chat = AutoModelForCausalLM.from_pretrained(directory), load_chat(directory, tiny_policy)
    sampling = NEARLY_GREEDY.model_copy(update={"temperature": temperature})
    found = LocalEngine(directory, tiny_policy, batch_size=4).generate(requests, sampling)
    assert {g.key: g.text for g in found} == {r.key: greedy(model, chat, r) for r in requests}


@pytest.mark.parametrize("choices", [("0", "1", "5"), ("yes", "no", "10", "1")])
def test_choices_have_the_probabilities_of_their_spellings(
    tiny_model: Path, tiny_policy: Policy, choices: tuple[str, ...]
):
    """A token is a byte here, so that a choice and its leading space are several tokens."""
    model, chat = AutoModelForCausalLM.from_pretrained(tiny_model), load_chat(tiny_model, tiny_policy)
    messages = (Message(role="user", content="How good is it?"),)
    prompt = chat.prompt_ids(messages, "Score:")

    def probability(spelling: str) -> float:
        ids = chat.tokenizer(spelling, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        return float(sum(logps[len(prompt) - 1 + i, token] for i, token in enumerate(ids)).exp())

    request = ChoiceRequest("one", messages, "Score:", choices)
    (found,) = LocalEngine(tiny_model, tiny_policy, batch_size=4).choose([request])
    expected = {choice: probability(choice) + probability(f" {choice}") for choice in choices}
    if "10" in expected:
        expected["1"] -= expected["10"]  # which goes on from it
    assert found.probabilities == pytest.approx(tuple(expected.values()), rel=1e-4)


# The end of a turn


def taught_to_say(answer: str, chat: Chat, model: Any, tmp_path: Path) -> None:
    """Train until the model gives one answer, and closes its turn, whatever it is asked."""
    sequences = [
        TokenSequence(
            tuple(chat.prompt_ids([Message(role="user", content=text)])), tuple(chat.completion_ids(answer))
        )
        for text in ("and?", "tell me of the sea")
    ]
    log = train(
        CompletionLogps(model),
        sequences,
        sft_objective(),
        Train(batch_size=2, epochs=50),
        learning_rate=1e-2,
        autocast=torch.float32,
        seed=0,
        scratch=tmp_path,
        on_warning=pytest.fail,
    )
    assert log[-1]["loss"] < 0.05


def test_an_end_of_turn_of_several_tokens_stops_and_is_not_part_of_the_text(
    tiny_model: Path, tiny_policy: Policy, make_tokenizer: Callable[..., Any], tmp_path: Path
):
    tokenizer = make_tokenizer(special=(), template=None, eos=None)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    taught_to_say("aye", Chat(tokenizer, "chatml"), model, tmp_path)
    model.generation_config.eos_token_id = None
    directory = swap(tiny_model, tmp_path / "taught", model=model, tokenizer=tokenizer)
    engine = LocalEngine(directory, tiny_policy, batch_size=4)
    [generation] = engine.generate([ask("one", "and?", system=False)], NEARLY_GREEDY)
    assert generation == Generation("one", "aye", "stop", 3)
    [cut] = engine.generate(
        [ask("one", "and?", system=False)], NEARLY_GREEDY.model_copy(update={"max_new_tokens": 3})
    )
    assert cut == Generation("one", "aye", "length", 3)


def test_the_end_of_text_stops_too(tiny_model: Path, tiny_policy: Policy, tmp_path: Path):
    """A base model under our chatml closes a turn its own way."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    chat = Chat(tokenizer)
    chat.end_of_turn = (tokenizer.pad_token_id,)
    taught_to_say("aye", chat, model, tmp_path)
    model.generation_config.eos_token_id = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    directory = swap(tiny_model, tmp_path / "taught", model=model)
    [generation] = LocalEngine(directory, tiny_policy, 4).generate(
        [ask("one", "and?", system=False)], NEARLY_GREEDY
    )
    assert generation == Generation("one", "aye", "stop", 3)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|endoftext|>"])
def test_a_control_token_of_any_kind_ends_the_turn(
    token: str, tiny_model: Path, tiny_policy: Policy, tmp_path: Path
):
    """A base model opens the next turn instead of closing its own; the tokenizer names no role for it."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    chat = Chat(tokenizer)
    chat.end_of_turn = (tokenizer.convert_tokens_to_ids(token),)
    taught_to_say("aye", chat, model, tmp_path)
    directory = swap(tiny_model, tmp_path / "taught", model=model)
    [generation] = LocalEngine(directory, tiny_policy, 4).generate(
        [ask("one", "and?", system=False)], Sampling(temperature=0, max_new_tokens=25)
    )
    assert generation == Generation("one", "aye", "stop", 3)


# Work that is not done twice


def watch(engine: LocalEngine) -> list[tuple[int, ...]]:
    """Note the shape of the tokens of every pass of the engine's model."""
    shapes: list[tuple[int, ...]] = []
    engine._model.register_forward_pre_hook(
        lambda _model, _args, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_what_prompts_share_and_what_samples_share_is_computed_once(tiny_model: Path, tiny_policy: Policy):
    engine = LocalEngine(tiny_model, tiny_policy, batch_size=8)
    shapes = watch(engine)
    requests = [ask(f"{text} {seed}", text, seed=seed) for text in ("and?", "why?") for seed in range(4)]
    list(engine.generate(requests, NEARLY_GREEDY.model_copy(update={"max_new_tokens": 2})))
    prompts = [engine._chat.prompt_ids(request.messages) for request in requests]
    shared = _shared_prefix([tuple(prompt) for prompt in prompts])
    assert shared > len(SYSTEM.content)
    assert shapes == [(1, shared), (2, len(prompts[0]) - shared), (8, 1)]


def test_long_prompts_make_small_batches(tiny_model: Path, tiny_policy: Policy):
    requests = [ask(str(i), "x" * (10 if i % 2 else 300), seed=i) for i in range(12)]
    limit = Sampling(max_new_tokens=4)
    whole = LocalEngine(tiny_model, tiny_policy, batch_size=12)
    expected = {g.key: g for g in whole.generate(requests, limit)}
    engine = LocalEngine(tiny_model, tiny_policy, batch_size=12, batch_tokens=1000)
    shapes = watch(engine)
    assert {g.key: g for g in engine.generate(requests, limit)} == expected
    decoded = [count for count, width in shapes if width == 1]
    assert max(decoded) == 6
    assert min(decoded) == 2


def test_rows_that_have_finished_leave_the_batch(tiny_model: Path, tiny_policy: Policy):
    """Each prompt leaves less room in the context than the one before, so that rows end one by one."""
    requests = [ask(str(room), "x" * (1024 - 96 - room)) for room in range(30, 38)]
    alone = LocalEngine(tiny_model, tiny_policy, batch_size=1)
    limit = NEARLY_GREEDY.model_copy(update={"max_new_tokens": 100})
    expected = {g.key: g for g in alone.generate(requests, limit)}
    engine = LocalEngine(tiny_model, tiny_policy, batch_size=8)
    shapes = watch(engine)
    assert {g.key: g for g in engine.generate(requests, limit)} == expected
    assert len({g.num_tokens for g in expected.values()}) == 8
    rows = [count for count, width in shapes if width == 1]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 8
    assert rows[-1] < 4


def test_rows_that_end_at_random_do_not_touch_the_others(tiny_model: Path, tiny_policy: Policy):
    requests = [ask(f"{i}", "why " * (i % 5), seed=i) for i in range(24)]
    hot = Sampling(temperature=5.0, top_p=1.0, max_new_tokens=80)

    def answers(batch_size: int) -> dict[str, Generation]:
        return {g.key: g for g in LocalEngine(tiny_model, tiny_policy, batch_size).generate(requests, hot)}

    alone = answers(1)
    assert answers(24) == alone
    assert {g.finish_reason for g in alone.values()} == {"stop", "length"}


HOT = Sampling(temperature=5.0, top_p=1.0, max_new_tokens=60)
"""Rows end at random."""


def test_rows_enter_as_others_leave(tiny_model: Path, tiny_policy: Policy):
    requests = [ask(f"{i}", "why " * (i % 7), seed=i) for i in range(40)]
    engine = LocalEngine(tiny_model, tiny_policy, batch_size=8)
    shapes = watch(engine)
    found = {g.key: g for g in engine.generate(requests, HOT)}
    alone = LocalEngine(tiny_model, tiny_policy, batch_size=1).generate(requests, HOT)
    assert found == {g.key: g for g in alone}
    last_entry = max(i for i, (_, width) in enumerate(shapes) if width > 1)
    assert last_entry > 20
    # A row that ends with its first token leaves a place open for a step.
    assert min(count for count, width in shapes[:last_entry] if width == 1) >= 7


def test_samples_of_one_prompt_enter_together(tiny_model: Path, tiny_policy: Policy):
    texts = [f"what of {place}" for place in ("the sea", "the hills", "the sky", "a house", "a road", "rain")]
    requests = [ask(f"{text} {seed}", text, seed=seed) for text in texts for seed in range(4)]
    engine = LocalEngine(tiny_model, tiny_policy, batch_size=16)
    shapes = watch(engine)
    assert len(list(engine.generate(requests, HOT))) == 24
    shared, *prefills = [count for count, width in shapes if width > 1]
    assert shared == 1
    assert len(prefills) > 1
    assert sum(prefills) == 6


def test_more_samples_than_a_batch_holds_are_drawn(tiny_model: Path, tiny_policy: Policy):
    requests = [ask(str(seed), "why?", seed=seed) for seed in range(11)]
    found = {g.key: g for g in LocalEngine(tiny_model, tiny_policy, batch_size=4).generate(requests, HOT)}
    alone = LocalEngine(tiny_model, tiny_policy, batch_size=1).generate(requests, HOT)
    assert found == {g.key: g for g in alone}


def test_what_a_batch_remembers_stays_within_its_tokens(tiny_model: Path, tiny_policy: Policy):
    requests = [ask(str(i), "why " * (40 if i % 3 else i), seed=i) for i in range(30)]
    engine = LocalEngine(tiny_model, tiny_policy, batch_size=30, batch_tokens=2500)
    masks: list[torch.Size] = []
    engine._model.register_forward_pre_hook(
        lambda _model, _args, named: masks.append(named.get("attention_mask", torch.ones(0, 0)).shape),
        with_kwargs=True,
    )
    assert len(list(engine.generate(requests, HOT))) == 30
    assert 2000 < max(rows * columns for rows, columns in masks) <= 2500


def test_rows_of_a_model_that_looks_back_only_so_far_enter_when_all_have_left(
    sliding: Path, tiny_policy: Policy
):
    requests = [ask(f"{i}", "why " * i, seed=i) for i in range(10)]
    engine = LocalEngine(sliding, tiny_policy, batch_size=4)
    shapes = watch(engine)
    assert len(list(engine.generate(requests, HOT))) == 10
    assert [count for count, width in shapes if width > 1] == [4, 4, 2]


def test_no_gradient_is_kept_while_generating(tiny_model: Path, tiny_policy: Policy):
    engine, grad = LocalEngine(tiny_model, tiny_policy, batch_size=4), []
    engine._model.register_forward_pre_hook(lambda *_: grad.append(torch.is_grad_enabled()))
    list(engine.generate(MIXED, NEARLY_GREEDY))
    assert set(grad) == {False}


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([], 0),
        ([(1, 2, 3)], 0),
        ([(1, 2, 3), (1, 2, 3)], 0),
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2, 3), (2, 2, 3)], 0),
        ([(1, 2), (1, 2, 3), (1, 2, 3, 4)], 1),
        ([(1,), (1, 2)], 0),
        ([(5, 5, 5, 1), (5, 5, 2), (5, 5, 5, 9)], 2),
        ([(3, 1), (3, 1), (3, 2)], 1),
    ],
)
def test_the_shared_prefix_leaves_each_prompt_a_token(prompts: list[tuple[int, ...]], shared: int):
    assert _shared_prefix(prompts) == shared
