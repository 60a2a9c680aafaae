"""A model of ours as lm-eval asks for one, so that all benchmarks of a model share what is loaded."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from selfalign.errors import EvaluationError, UnscorableError
from selfalign.records import FinishReason, Message

_TOGETHER = 1024
"""Requests whose token ids are held at once."""

T = TypeVar("T")

Counting = Callable[[int], Callable[[int], None]]
"""Told a total, returns what is told how much of it is done."""

Encoded = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation as text, and the token ids of each."""


class Reply(Protocol):
    """What a model goes on with."""

    @property
    def text(self) -> str | None:
        """Return its words, without the text that stopped it; `None` where there was no room."""

    @property
    def finish_reason(self) -> FinishReason:
        """Return why it ended."""


class TokenEngine(Protocol):
    """What is asked of an engine: token ids in, words or log-probabilities out."""

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer."""

    @property
    def max_length(self) -> int:
        """Return the number of tokens that the model has positions for."""

    def render(self, messages: Sequence[Message]) -> str:
        """Return a prompt as text, up to where the assistant's own words begin."""

    def complete(
        self, prompts: Sequence[Sequence[int]], *, stop: Sequence[str], max_new_tokens: int, chat: bool
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the place of each prompt with the likeliest words after it, in any order."""

    def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Yield the place of each pair, the log-probability of its continuation, and whether it is greedy."""


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Answers lm-eval's requests with an engine that is already open.

    Contexts and continuations are split into tokens as lm-eval's own `hf` model splits them, and contexts
    that are too long are cut from the left as there, so that the scores are the same. What has no finite
    log-probability raises instead of scoring.
    """

    def __init__(
        self,
        engine: TokenEngine,
        *,
        chat: bool,
        max_new_tokens: int = 256,
        counting: Counting = lambda _total: lambda _done: None,
    ) -> None:
        """Take an engine.

        Args:
            engine: Shared by all benchmarks.
            chat: Whether prompts are turns of a chat, so that a reply ends with its turn.
            max_new_tokens: Of a reply where the benchmark sets no limit; 256 is what lm-eval's own models
                take.
            counting: Told how many answers are asked for, returns what is told how many there are.
        """
        super().__init__()
        self.tokenizer = engine.tokenizer
        self.cut_contexts: set[tuple[str, int]] = set()
        """Task and number of the documents whose context was too long."""
        self.cut_replies: set[tuple[str, int]] = set()
        """Task and number of the documents whose reply reached the limit."""
        self._engine = engine
        self._chat = chat
        self._max_new_tokens = max_new_tokens
        self._counting = counting
        self._told: Callable[[int], None]
        self._done: int
        self._encode = lru_cache(maxsize=8)(self._ids)  # the choices of a question share their context

    @property
    def eot_token_id(self) -> int | None:
        """Return the id of the token that ends a text."""
        token_id: int | None = self.tokenizer.eos_token_id
        return token_id

    @property
    def prefix_token_id(self) -> int | None:
        """Return the id of the token that stands in for an empty context."""
        first: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        """Return the name of the tokenizer."""
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return turns as the text of a prompt.

        Raises:
            EvaluationError: The benchmark begins the assistant's turn itself.
        """
        if not add_generation_prompt:
            raise EvaluationError("a benchmark that begins the reply can't be asked in the chat format")
        return self._engine.render([Message.model_validate(turn) for turn in chat_history])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids; a text that opens with the beginning-of-text token gets no second one."""
        return list(self._encode(string, add_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation and whether greedy decoding gives it.

        Raises:
            UnscorableError: A result is missing or not a finite number.
        """
        self._begin(len(requests))
        scores: list[tuple[float, bool]] = []
        for start in range(0, len(requests), _TOGETHER):
            asked = requests[start : start + _TOGETHER]
            found = super().loglikelihood(asked, disable_tqdm=disable_tqdm)
            for request, (logp, greedy, cut) in zip(asked, found, strict=True):
                if not math.isfinite(logp):
                    raise UnscorableError(
                        f"{_name(request)}: a choice has no finite log-probability ({logp}), so the model "
                        "can't be scored; look at its weights, or compute in float32"
                    )
                if cut:
                    self.cut_contexts.add(_place(request))
                scores.append((logp, greedy))
        return scores

    def _loglikelihood_tokens(self, requests: list[Encoded], **_: Any) -> list[tuple[float, bool, bool]]:
        """Return log-probability, whether it is greedy, and whether the context was cut.

        The log-probability is NaN where a result is missing, or the continuation is empty or too long.
        """
        # The last token is only predicted, so one more than the model has positions for fits.
        limit = self._engine.max_length + 1
        rooms = [limit - len(continuation) for _, _, continuation in requests]
        asked = {
            place: (context[-room:], continuation)
            for place, ((_, context, continuation), room) in enumerate(zip(requests, rooms, strict=True))
            if continuation and room > 0
        }
        places = list(asked)
        found = {
            places[number]: score for number, score in self._counted(self._engine.score([*asked.values()]))
        }
        return [
            (*found.get(place, (math.nan, False)), len(context) > room)
            for place, ((_, context, _), room) in enumerate(zip(requests, rooms, strict=True))
        ]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """Return the likeliest reply to each context, up to a stop text or the end.

        Raises:
            EvaluationError: A reply is missing, or the benchmark asks for what is not supported.
            UnscorableError: Replies may be longer than what the model has positions for.
        """
        together: dict[tuple[tuple[str, ...], int], list[Instance]] = {}
        for request in requests:
            together.setdefault(self._limits(request), []).append(request)
        self._begin(len(requests))
        texts: dict[int, str] = {}
        for (stop, limit), asked in together.items():
            prompts = [self._prompt(request, limit) for request in asked]
            coming = self._engine.complete(prompts, stop=stop, max_new_tokens=limit, chat=self._chat)
            replies = dict(self._counted(coming))
            if len(replies) != len(asked):
                raise EvaluationError(f"{_name(asked[0])}: {len(replies)} replies to {len(asked)} prompts")
            for place, request in enumerate(asked):
                reply = replies[place]
                if reply.text is None:
                    raise EvaluationError(f"{_name(request)}: there is no reply ({reply.finish_reason})")
                if reply.finish_reason == "length":
                    self.cut_replies.add(_place(request))
                texts[id(request)] = reply.text
        return [texts[id(request)] for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:  # noqa: ARG002
        """Refuse, since none of our benchmarks measures perplexity.

        Raises:
            EvaluationError: Always.
        """
        raise EvaluationError(f"{_name(requests[0])}: perplexity of whole texts is not supported")

    def _begin(self, total: int) -> None:
        """Begin to count answers."""
        self._told, self._done = self._counting(total), 0

    def _counted(self, answers: Iterator[T]) -> Iterator[T]:
        """Pass answers on, saying how many there are by now."""
        for answer in answers:
            self._done += 1
            self._told(self._done)
            yield answer

    def _limits(self, request: Instance) -> tuple[tuple[str, ...], int]:
        """Return the stop texts and the number of new tokens that a request sets."""
        asked = dict(request.args[1])
        until = asked.pop("until", None) or ()
        limit = int(asked.pop("max_gen_toks", self._max_new_tokens))
        if asked.pop("do_sample", False) or asked.pop("temperature", 0.0) or asked:
            raise EvaluationError(
                f"{_name(request)}: replies are greedy here, and can't be drawn with {request.args[1]}"
            )
        if limit >= self._engine.max_length:
            raise UnscorableError(
                f"{request.task_name} asks for replies of up to {limit} tokens, but the model has positions "
                f"for {self._engine.max_length} in all; leave the benchmark out"
            )
        return (until,) if isinstance(until, str) else tuple(until), limit

    def _prompt(self, request: Instance, limit: int) -> list[int]:
        """Return the token ids of a context, the last ones if it is too long."""
        ids = self.tok_encode(request.args[0])
        room = self._engine.max_length - limit
        if len(ids) > room:
            self.cut_contexts.add(_place(request))
        return ids[-room:]

    def _ids(self, string: str, add_special_tokens: bool | None) -> list[int]:
        if add_special_tokens is None:
            first = self.prefix_token_id
            add_special_tokens = first is None or not string.startswith(self.tokenizer.decode([first]))
        # Long contexts are cut and counted here, so the tokenizer need not warn of them.
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False))


def _place(request: Instance) -> tuple[str, int]:
    """Return the task of a request and the number of its document."""
    return request.task_name, request.doc_id


def _name(request: Instance) -> str:
    return f"{request.task_name}, document {request.doc_id}"
