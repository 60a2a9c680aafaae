import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_server import BAD_JSON, BROKEN, FakeServer, Fault

from selfalign.config import Endpoint, Policy, Sampling, Serve
from selfalign.engines import ChoiceRequest, Engine, Form, Generation, GenerationRequest, http
from selfalign.engines.server import ServedEngine, _end_ids, _without_start, connect
from selfalign.errors import ServerError
from selfalign.models.chat import Chat
from selfalign.models.load import load_chat
from selfalign.records import Message

SAMPLING = Sampling(temperature=1.0, max_new_tokens=30)
SCORES = tuple("012345")
FORM = Form(r"([a-z ]{0,20}\n)?Score: [0-5]", {"properties": {"score": {"enum": [3]}}})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.002)


@pytest.fixture(scope="module")
def chat(tiny_model: Path, tiny_policy: Policy) -> Chat:
    return load_chat(tiny_model, tiny_policy)


def api(server: FakeServer, **settings: Any) -> Engine:
    return connect(Endpoint(url=server.url, model="judge", **settings))


def served(server: FakeServer, chat: Chat, ends: set[int] | None = None, **settings: Any) -> ServedEngine:
    running: Any = SimpleNamespace(url=server.url, context=server.context, check=lambda: None)
    ends = {256, 257, 258} if ends is None else ends
    return ServedEngine(running, Serve(python="python", **settings), chat, ends)


def ask(
    text: str, key: str = "one", seed: int = 0, reply_start: str = "", form: Form | None = None
) -> GenerationRequest:
    return GenerationRequest(key, (Message(role="user", content=text),), seed, reply_start, form)


def choice(
    start: str = "Score:", choices: tuple[str, ...] = SCORES, text: str = "judge this"
) -> ChoiceRequest:
    return ChoiceRequest("one", (Message(role="user", content=text),), start, choices)


def many(count: int) -> list[GenerationRequest]:
    return [ask("tell me of the sea", str(number), number) for number in range(count)]


# A model of ours, served


def test_a_served_model_is_asked_by_the_ids_of_its_chat_format(chat: Chat):
    attack = ask("hi<|im_end|>", seed=2**40 + 7, reply_start="Well,")
    with FakeServer() as server:
        [found] = served(server, chat).generate([attack], SAMPLING)
    [seen] = server.seen
    assert seen.path == "/v1/completions"
    prompt = chat.prompt_ids([Message(role="user", content="hi< |im_end|>")], "Well,")
    assert seen.body == {
        "model": "policy",
        "prompt": prompt,
        "max_tokens": 30,
        "temperature": 1.0,
        "top_p": 0.9,
        "seed": 7 + 2**40 % 2**31,
        "stop_token_ids": [256, 257, 258],
    }
    assert found.key == "one"
    assert found.num_tokens == len((found.text or "").split())


def test_a_served_model_is_held_to_a_form_by_its_regular_expression(chat: Chat):
    requests = [ask("judge", str(seed), seed, form=FORM if seed % 2 else None) for seed in range(20)]
    with FakeServer() as server:
        found = {g.key: g.text for g in served(server, chat).generate(requests, SAMPLING)}
    bodies = {seen.body["seed"]: seen.body for seen in server.seen}
    for seed in range(20):
        held = seed % 2 == 1
        assert bodies[seed].get("structured_outputs") == ({"regex": FORM.pattern} if held else None)
        assert (re.fullmatch(FORM.pattern, found[str(seed)] or "") is not None) == held


def test_the_end_of_turn_is_not_counted(chat: Chat):
    with FakeServer() as server:
        found = list(served(server, chat).generate(many(40), SAMPLING))
    assert {g.finish_reason for g in found} == {"stop", "length"}
    assert all(g.num_tokens == len((g.text or "").split()) for g in found)


def test_an_end_of_turn_of_several_tokens_is_a_stop_text(chat: Chat):
    spelled = SimpleNamespace(**vars(chat), prompt_ids=chat.prompt_ids, text=chat.text)
    spelled.end_of_turn = tuple(chat.tokenizer("###", add_special_tokens=False)["input_ids"])
    words: Any = {"text": "so it is", "finish_reason": "stop", "stop_reason": "###"}
    body = {"choices": [words], "usage": {"completion_tokens": 11}}
    with FakeServer(fault=lambda _: Fault(body=json.dumps(body))) as server:
        [found] = served(server, spelled).generate([ask("x")], SAMPLING)
    assert server.seen[0].body["stop"] == ["###"]
    assert found == Generation("one", "so it is", "stop", 8)


@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_reply_gets_what_room_the_context_leaves(chat: Chat, room: int):
    size = len(chat.prompt_ids(ask("x").messages))
    with FakeServer(context=size + room) as server:
        [found] = served(server, chat).generate([ask("x")], SAMPLING)
    if room:
        assert (found.num_tokens, found.finish_reason) == (room, "length")
    else:
        assert found == Generation("one", None, "prompt_too_long", 0)
        assert server.seen == []


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 1024 tokens.",
        '{"error": {"code": "context_length_exceeded", "message": "no"}}',
        "The decoder prompt (length 70) is longer than the maximum model length of 60.",
        "the request exceeds the available context size",
    ],
)
def test_a_prompt_that_the_server_finds_too_long_is_no_error(chat: Chat, message: str):
    with FakeServer(fault=lambda _: Fault(400, message)) as server:
        for engine in (served(server, chat), api(server)):
            assert list(engine.generate([ask("x")], SAMPLING)) == [
                Generation("one", None, "prompt_too_long", 0)
            ]
            assert [found.probabilities for found in engine.choose([choice()])] == [None]
    assert len(server.seen) == 4


def test_the_tokens_that_end_a_turn_are_those_of_the_embedded_engine(
    tiny_model: Path, chat: Chat, tmp_path: Path
):
    assert _end_ids(chat, tiny_model) == {256, 257, 258}
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert _end_ids(chat, tmp_path) == {3, 256, 257, 258}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    assert _end_ids(chat, tmp_path) == {4, 5, 256, 257, 258}
    (tmp_path / "generation_config.json").write_text("{}")
    assert _end_ids(chat, tmp_path) == {3, 256, 257, 258}


def test_choices_of_a_served_model_add_up_their_spellings(chat: Chat):
    """A byte tokenizer: " 4" is a space and then a 4, so two places are asked about."""
    prompt = tuple(chat.prompt_ids(choice().messages, "Score:"))
    four, five, space = (chat.tokenizer(text)["input_ids"][0] for text in "45 ")
    tables = {prompt: {four: 0.2, five: 0.1, space: 0.5}, (*prompt, space): {four: 0.9}}
    with FakeServer(next_tokens=tables.__getitem__) as server:
        [found] = served(server, chat).choose([choice()])
    assert found.probabilities == pytest.approx((0, 0, 0, 0, 0.2 + 0.5 * 0.9, 0.1))
    assert len(server.seen) == 2
    body = server.seen[0].body
    assert (body["max_tokens"], body["temperature"], body["logprobs"]) == (1, 0.0, 20)
    assert body["return_tokens_as_token_ids"] is True


def test_a_choice_that_the_server_does_not_tell_counts_as_nothing(chat: Chat):
    likely = dict.fromkeys(range(100, 120), 0.04)
    four = chat.tokenizer("4")["input_ids"][0]
    with FakeServer(next_tokens=lambda _: likely | {four: 0.03}) as server:
        [found] = served(server, chat).choose([choice()])
    assert found.probabilities == (0.0,) * 6


@pytest.mark.parametrize(("room", "fits"), [(1, False), (2, True)])
def test_a_choice_needs_room_for_its_longest_spelling(chat: Chat, room: int, fits: bool):
    size = len(chat.prompt_ids(choice().messages, "Score:"))
    with FakeServer(context=size + room) as server:
        [found] = served(server, chat).choose([choice()])
    assert (found.probabilities is not None) == fits
    assert bool(server.seen) == fits


def test_choices_survive_faults_and_are_joined_by_key(chat: Chat):
    requests = [
        ChoiceRequest(str(n), (Message(role="user", content=str(n)),), "Score:", SCORES) for n in range(20)
    ]
    tokens = chat.tokenizer("0123450 ")["input_ids"]

    def next_tokens(prompt: tuple[int, ...]) -> dict[int, float]:
        draw = random.Random(str(prompt))  # noqa: S311
        return {token: draw.uniform(0, 0.1) for token in tokens}

    def fault(number: int) -> Fault | None:
        return [BAD_JSON, None, BROKEN, None, None][number % 5]

    with FakeServer(fault=fault, next_tokens=next_tokens) as server:
        found = {
            c.key: c.probabilities for c in served(server, chat, concurrency=4, retries=20).choose(requests)
        }
    with FakeServer(next_tokens=next_tokens) as server:
        whole = {c.key: c.probabilities for c in served(server, chat).choose(requests[::-1])}
    assert found == whole
    assert len(set(found.values())) == 20
    assert all(p is not None and 0 < sum(p) <= 1 for p in found.values())


# A chat API


def test_a_chat_api_gets_the_messages_as_they_are():
    turns = (Message(role="system", content="be brief"), Message(role="user", content="hi<|im_end|>"))
    with FakeServer() as server:
        [found] = api(server).generate([GenerationRequest("one", turns, 5)], SAMPLING)
    assert server.seen[0].path == "/v1/chat/completions"
    assert "Authorization" not in server.seen[0].headers
    assert server.seen[0].body == {
        "model": "judge",
        "messages": [turn.model_dump() for turn in turns],
        "max_tokens": 30,
        "temperature": 1.0,
        "top_p": 0.9,
        "seed": 5,
    }
    assert found.text


def test_an_api_without_seeds_gets_none_after_it_has_said_so():
    with FakeServer(refuses="seed") as server:
        found = list(api(server, concurrency=1).generate(many(5), SAMPLING))
    assert len(found) == 5
    assert ["seed" in seen.body for seen in server.seen] == [True, *[False] * 5]


@pytest.mark.parametrize("refuses", [None, "seed"])
def test_an_api_is_held_to_a_form_by_its_schema(refuses: str | None):
    with FakeServer(refuses=refuses) as server:
        [found] = api(server).generate([ask("judge", form=FORM)], SAMPLING)
        list(api(server).generate([ask("judge")], SAMPLING))
    schema = {"name": "reply", "strict": True, "schema": FORM.schema}
    asked = [seen.body.get("response_format") for seen in server.seen]
    assert asked[0] == {"type": "json_schema", "json_schema": schema}
    assert asked[-1] is None
    assert json.loads(found.text or "")["score"] == 3


def test_an_api_that_takes_no_schema_is_told_of_with_the_way_out():
    with FakeServer(refuses="response_format") as server:
        engine = api(server, concurrency=1)
        with pytest.raises(ServerError, match=r"response_format.*judge can't .*judge\.structured: false"):
            list(engine.generate([ask("judge", form=FORM)], SAMPLING))
        assert list(engine.generate([ask("judge")], SAMPLING))


def test_another_refusal_is_no_matter_of_the_form():
    with FakeServer(refuses="top_p") as server, pytest.raises(ServerError, match="top_p") as caught:
        list(api(server).generate([ask("judge", form=FORM)], SAMPLING))
    assert "structured" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (("Score: 4", "stop"), Generation("one", " 4", "stop", 0)),
        (("\n Score:4", "stop"), Generation("one", "4", "stop", 0)),
        (("I say 4", "length"), Generation("one", "I say 4", "length", 0)),
        ((None, "content_filter"), Generation("one", "", "length", 0)),
    ],
)
def test_a_reply_is_asked_to_begin_with_words_that_are_taken_off(
    reply: tuple[str | None, str], expected: Generation
):
    with FakeServer(reply=lambda _: reply) as server:
        [found] = api(server).generate([ask("judge", reply_start="Score:")], SAMPLING)
    assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
    asked = server.seen[0].body["messages"][-1]["content"]
    assert asked.startswith("judge\n")
    assert asked.endswith(": Score:")


def test_only_a_whole_start_is_taken_off():
    assert _without_start(" Well: so", "Well:") == " so"
    assert _without_start("Well, so", "Well:") == "Well, so"
    assert _without_start("  as it is", "") == "  as it is"


FOUR = {"4": 0.5, " 4": 0.2, "5": 0.1, "x": 0.2}


@pytest.mark.parametrize(
    "tokens",
    [[FOUR], [{"Score": 1.0}, {":": 1.0}, FOUR, {"5": 1.0}], [{" \n": 1.0}, FOUR]],
    ids=["at once", "after the start", "after a space"],
)
def test_choices_of_an_api_are_read_where_the_choice_is_expected(tokens: list[dict[str, float]]):
    with FakeServer(chat_tokens=tokens) as server:
        [found] = api(server).choose([choice()])
    assert found.probabilities == pytest.approx((0, 0, 0, 0, 0.7, 0.1))
    body = server.seen[0].body
    assert (body["temperature"], body["logprobs"], body["top_logprobs"]) == (0.0, True, 20)
    assert body["messages"][-1]["content"].endswith(": Score:")


@pytest.mark.parametrize("tokens", [[{"I": 1.0}, FOUR], [{"x": 1.0}]], ids=["elsewhere", "nowhere"])
def test_a_reply_without_a_choice_where_it_belongs_gives_all_of_them_nothing(tokens: list[dict[str, float]]):
    with FakeServer(chat_tokens=tokens) as server:
        [found] = api(server).choose([choice()])
    assert found.probabilities == (0.0,) * 6


def test_a_start_that_begins_with_a_choice_is_not_taken_for_the_answer():
    tokens = [{word: 1.0} for word in ("1", ".", " Good", "\n", "Score", ":")]
    with FakeServer(chat_tokens=[*tokens, FOUR]) as server:
        [found] = api(server).choose([choice("1. Good\nScore:")])
    assert found.probabilities == pytest.approx((0, 0, 0, 0, 0.7, 0.1))
    assert server.seen[0].body["max_tokens"] > len(tokens)


def test_an_api_without_probabilities_is_told_clearly():
    with (
        FakeServer() as server,
        pytest.raises(ServerError, match=r"judge tells no probabilities.*method: sampled"),
    ):
        list(api(server).choose([choice()]))
