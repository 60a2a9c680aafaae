"""Engines on servers that speak OpenAI's API: a model of ours served by vLLM, or a hosted one."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field

from selfalign.config import Endpoint, Policy, Sampling, Serve
from selfalign.engines.http import Client, RefusedError, Session
from selfalign.engines.protocol import Choice, ChoiceRequest, Engine, Generation, GenerationRequest
from selfalign.engines.serving import NAME, Server
from selfalign.errors import ServerError
from selfalign.models.chat import Chat
from selfalign.models.choices import by_choice, spellings
from selfalign.models.load import load_chat
from selfalign.models.merge import merge_adapter
from selfalign.records import Messages

T = TypeVar("T")
One = Annotated[list[T], Field(min_length=1, max_length=1)]
TokenId = Annotated[int, BeforeValidator(lambda name: name.removeprefix("token_id:"))]

_SEEDS = 2**31
"""Seeds that every server takes."""
_TOP = 20
"""Likeliest tokens whose probabilities a server tells at most, unless it is set up otherwise."""
_CHOICE_TOKENS = 8


class _Usage(BaseModel):
    completion_tokens: int


class _Completed(BaseModel):
    text: str
    finish_reason: Literal["stop", "length"]
    stop_reason: int | str | None = None


class _Completion(BaseModel):
    choices: One[_Completed]
    usage: _Usage


class _NextTokens(BaseModel):
    top_logprobs: One[dict[TokenId, float]]


class _Weighed(BaseModel):
    logprobs: _NextTokens


class _Weights(BaseModel):
    choices: One[_Weighed]


class _Token(BaseModel):
    token: str
    logprob: float


class _Drawn(_Token):
    top_logprobs: list[_Token]


class _Tokens(BaseModel):
    content: list[_Drawn] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Reply(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Tokens | None = None


class _ChatAnswer(BaseModel):
    choices: One[_Reply]
    usage: _Usage


def serve(settings: Serve, policy: Policy, model: Path) -> Engine:
    """Serve a model directory by vLLM; an adapter is merged into its base for that.

    Raises:
        RecipeError: There is no such Python.
        ServerError: The server does not start, or the tokenizer can't be used.
    """
    chat = load_chat(model, policy)
    with TemporaryDirectory(prefix="selfalign-merged-") as scratch:
        served = model
        if (model / "adapter_config.json").is_file():
            served = Path(scratch) / "model"
            merge_adapter(model, served)
        ends = _end_ids(chat, served)
        return ServedEngine(Server(settings, policy, served), settings, chat, ends)


def connect(endpoint: Endpoint) -> Engine:
    """Open the engine of a model behind a chat API.

    Raises:
        RecipeError: The address can't be one, or the environment variable of the key is not set.
    """
    return EndpointEngine(endpoint)


class ServedEngine:
    """Generates with a model of ours on a server of its own, from the token ids of its chat format."""

    def __init__(self, server: Server, settings: Serve, chat: Chat, ends: set[int]) -> None:
        """Take a running server, which ends with the engine, and the tokens that end a turn."""
        self._server = server
        self._client = Client(server.url, settings, watch=server.check)
        self._chat = chat
        self._stop: dict[str, Any] = {"stop_token_ids": sorted(ends)}
        if not set(ends) & set(chat.end_of_turn):
            self._stop["stop"] = [chat.text(chat.end_of_turn)]

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generation]:
        """Yield a generation for each request; see `Engine`."""

        async def draw(session: Session, request: GenerationRequest) -> Generation:
            prompt = self._chat.prompt_ids(request.messages, request.reply_start)
            room = min(sampling.max_new_tokens, self._server.context - len(prompt))
            too_long = Generation(request.key, None, "prompt_too_long", 0)
            if room < 1:
                return too_long
            body = self._body(prompt, room, sampling.temperature)
            body |= {"top_p": sampling.top_p, "seed": request.seed % _SEEDS, **self._stop}
            if request.form is not None:
                body["structured_outputs"] = {"regex": request.form.pattern}
            answer = await session.post("/completions", body, _Completion)
            if answer is None:
                return too_long
            [reply] = answer.choices
            num_tokens = answer.usage.completion_tokens
            if reply.finish_reason == "stop":  # the server counts the end of turn
                num_tokens -= len(self._chat.end_of_turn) if isinstance(reply.stop_reason, str) else 1
            return Generation(request.key, reply.text, reply.finish_reason, max(0, num_tokens))

        return self._client.map(draw, requests)

    def choose(self, requests: Sequence[ChoiceRequest]) -> Iterator[Choice]:
        """Yield the probabilities of the choices of each request; see `Engine`.

        A token that is not among the likeliest that the server tells counts as 0, so that a probability is
        a lower bound; what is left out is less likely than each of those.
        """

        async def weigh(session: Session, request: ChoiceRequest) -> Choice:
            prompt = self._chat.prompt_ids(request.messages, request.reply_start)
            spelled = spellings(self._chat, request.reply_start, request.choices)
            if len(prompt) + max(len(ids) for _, ids in spelled) > self._server.context:
                return Choice(request.key, None)
            following: dict[tuple[int, ...], dict[int, float]] = {}
            for prefix in sorted({ids[:end] for _, ids in spelled for end in range(len(ids))}):
                body = self._body([*prompt, *prefix], 1, 0.0)
                body |= {"logprobs": _TOP, "return_tokens_as_token_ids": True}
                answer = await session.post("/completions", body, _Weights)
                if answer is None:
                    return Choice(request.key, None)
                [following[prefix]] = answer.choices[0].logprobs.top_logprobs
            likelihoods = [
                math.exp(sum(following[ids[:i]].get(token, -math.inf) for i, token in enumerate(ids)))
                for _, ids in spelled
            ]
            return Choice(request.key, by_choice(spelled, likelihoods, len(request.choices)))

        return self._client.map(weigh, requests)

    def _body(self, prompt: Sequence[int], max_tokens: int, temperature: float) -> dict[str, Any]:
        return {"model": NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": temperature}


class EndpointEngine:
    """Generates with a model behind a chat API, whose tokens and chat format are not known here.

    Such an API can't go on from words put into the model's mouth: a request's `reply_start` is asked for in
    a line at the end of the last turn, and taken off the reply where it begins so.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Take the endpoint; nothing is asked yet."""
        self._client = Client(endpoint.url, endpoint, endpoint.key_variable)
        self._model = endpoint.model
        self._takes_seed = True

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generation]:
        """Yield a generation for each request; see `Engine`.

        The seed is sent where the API takes one; most promise no more than to try to repeat a draw. Tokens
        are those that the API counts. A reply that ended in any other way than by the model's own end of
        turn, such as one that was filtered, counts as cut: `length`. One that is held to a form is JSON.

        Raises:
            ServerError: The API refuses a request, such as one for a form.
        """

        async def draw(session: Session, request: GenerationRequest) -> Generation:
            body = self._body(request.messages, request.reply_start, sampling.max_new_tokens)
            body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
            if request.form is not None:
                schema = {"name": "reply", "strict": True, "schema": request.form.schema}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            try:
                answer = await self._ask(session, body, request.seed)
            except RefusedError as refusal:
                if request.form is None or not re.search("response_format|json_schema", refusal.reason):
                    raise
                raise ServerError(
                    f"{refusal}. {self._model} can't be held to a form there: set judge.structured: false"
                ) from refusal
            if answer is None:
                return Generation(request.key, None, "prompt_too_long", 0)
            [reply] = answer.choices
            text = _without_start(reply.message.content or "", request.reply_start)
            finish: Literal["stop", "length"] = "stop" if reply.finish_reason == "stop" else "length"
            return Generation(request.key, text, finish, answer.usage.completion_tokens)

        return self._client.map(draw, requests)

    def choose(self, requests: Sequence[ChoiceRequest]) -> Iterator[Choice]:
        """Yield the probabilities of the choices of each request; see `Engine`.

        They are read where the model's likeliest reply has one of the choices as its first word, or the
        first one after `reply_start`; where it has none there, all are 0. A choice that the API's model
        spells in several tokens is not seen, and one that is not among the 20 likeliest counts as 0.

        Raises:
            ServerError: The API tells no probabilities.
        """

        async def weigh(session: Session, request: ChoiceRequest) -> Choice:
            # A token is a character or longer, so that the start fits in however it is cut up.
            room = _CHOICE_TOKENS + len(request.reply_start)
            body = self._body(request.messages, request.reply_start, room)
            body |= {"temperature": 0.0, "logprobs": True, "top_logprobs": _TOP}
            answer = await session.post("/chat/completions", body, _ChatAnswer)
            if answer is None:
                return Choice(request.key, None)
            logprobs = answer.choices[0].logprobs
            if logprobs is None or logprobs.content is None:
                raise ServerError(
                    f"{self._client.url}: {self._model} tells no probabilities of tokens; "
                    "judge with method: sampled, which needs none"
                )
            return Choice(request.key, _read_choice(logprobs.content, request))

        return self._client.map(weigh, requests)

    async def _ask(self, session: Session, body: dict[str, Any], seed: int) -> _ChatAnswer | None:
        if self._takes_seed:
            try:
                return await session.post("/chat/completions", body | {"seed": seed % _SEEDS}, _ChatAnswer)
            except RefusedError as refusal:
                if not re.search(r"\bseed\b", refusal.reason):
                    raise
                self._takes_seed = False
        return await session.post("/chat/completions", body, _ChatAnswer)

    def _body(self, messages: Messages, reply_start: str, max_tokens: int) -> dict[str, Any]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        if reply_start:
            turns[-1]["content"] += f"\n\nBegin your reply with exactly these words: {reply_start}"
        return {"model": self._model, "messages": turns, "max_tokens": max_tokens}


def _end_ids(chat: Chat, model: Path) -> set[int]:
    """Return the tokens each of which ends a turn, the same ones as in `LocalEngine`."""
    found: Any = None
    for name in ("config.json", "generation_config.json"):  # the latter is what generation goes by
        if (model / name).is_file():
            found = json.loads((model / name).read_text(encoding="utf-8")).get("eos_token_id", found)
    eos: set[int] = set(found if isinstance(found, list) else [found]) - {None}
    special = {i for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    return eos | special | set(chat.end_of_turn if len(chat.end_of_turn) == 1 else ())


def _without_start(text: str, start: str) -> str:
    """Return a reply without the words that it was asked to begin with, if it does."""
    begun, words = text.lstrip(), start.strip()
    return begun[len(words) :] if words and begun.startswith(words) else text


def _read_choice(tokens: Sequence[_Drawn], request: ChoiceRequest) -> tuple[float, ...]:
    whole, start = "".join(token.token for token in tokens), request.reply_start.strip()
    before = start if whole.lstrip().startswith(start) else ""
    said = ""
    for token in tokens:
        if said.strip() == before and token.token.strip() in request.choices:
            likely = {other.token: other.logprob for other in (token, *token.top_logprobs)}
            return tuple(
                math.fsum(math.exp(p) for word, p in likely.items() if word.strip() == choice)
                for choice in request.choices
            )
        said += token.token
    return (0.0,) * len(request.choices)
