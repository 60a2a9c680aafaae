"""Asking a server many things at once, and again where a failure may pass."""

import asyncio
import contextlib
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from selfalign.config import Requests
from selfalign.errors import RecipeError, ServerError

Job = TypeVar("Job")
Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=BaseModel)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
_LONGEST_RETRY_AFTER = 600.0
"""Seconds of pause: before the first further attempt, at most, and at most where the server names them."""
_SHOWN = 300
"""Characters of a server's message that an error shows."""
_TOO_LONG = re.compile(
    "context[ _](length|window|size)|maximum model length|(prompt|input) is too long", re.IGNORECASE
)


class RefusedError(ServerError):
    """A server said no in a way that asking again does not change."""

    def __init__(self, message: str, reason: str) -> None:
        """Take the message for the user, and what the server said."""
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class _Failure:
    """An attempt that failed and may go well another time."""

    reason: str
    wait: float = 0.0
    """Seconds that the server asks for."""


class Client:
    """Asks one server."""

    def __init__(
        self,
        url: str,
        settings: Requests,
        key_variable: str | None = None,
        *,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the address of an API and the name of the environment variable that holds its key.

        After a failure `watch` is called, and raises where asking again is of no use.

        Raises:
            RecipeError: The address is none, or holds a password; or the variable is not set, or its value
                can't be a key.
        """
        self.url = _checked(url)
        self.settings = settings
        self.watch = watch
        self._key_variable = key_variable
        self._key = _key(key_variable) if key_variable else None

    def map(
        self, ask: Callable[["Session", Job], Awaitable[Answer]], jobs: Sequence[Job]
    ) -> Iterator[Answer]:
        """Yield the answer to each job as soon as it is there, in any order.

        The requests are made in a thread of their own, so that the server has work while the caller uses an
        answer. When the caller stops early, or one job fails for good, those under way are cancelled.

        Args:
            ask: Does one job, one request at a time.
            jobs: `concurrency` of them are under way at once, at most.

        Raises:
            ServerError: The server refuses a request, or keeps failing.
        """
        answers: SimpleQueue[tuple[Answer] | None] = SimpleQueue()
        failures: list[BaseException] = []
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._ask_all(ask, jobs, answers))

        def run() -> None:
            try:
                loop.run_until_complete(work)
            except asyncio.CancelledError:
                pass
            except BaseExceptionGroup as group:
                failures.append(group.exceptions[0])
            except BaseException as error:  # noqa: BLE001 -- raised where the answers are read
                failures.append(error)
            finally:
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()
                answers.put(None)

        thread = Thread(target=run, daemon=True)
        thread.start()
        try:
            while (answer := answers.get()) is not None:
                yield answer[0]
            if failures:
                raise failures[0]
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has closed already
                loop.call_soon_threadsafe(work.cancel)
            thread.join()

    async def _ask_all(
        self,
        ask: Callable[["Session", Job], Awaitable[Answer]],
        jobs: Sequence[Job],
        answers: "SimpleQueue[tuple[Answer] | None]",
    ) -> None:
        waiting = iter(jobs)
        workers = min(self.settings.concurrency, len(jobs))
        http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=None,
            limits=httpx2.Limits(max_connections=workers, max_keepalive_connections=workers),
            # A proxy has no way back to this machine.
            trust_env=httpx2.URL(self.url).host not in {"127.0.0.1", "localhost", "::1"},
        )

        async def work(number: int) -> None:
            session = Session(self, http, random.Random(number))  # noqa: S311 -- spreads pauses, no secret
            for job in waiting:
                answers.put((await ask(session, job),))

        async with http, asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(work(number))

    def refusal(self, response: httpx2.Response, path: str) -> RefusedError:
        """Return the error for a status that asking again does not change."""
        said = self.shown(response.text)
        message = f"{self.url}{path}: the server refuses with status {response.status_code}: {said}"
        if response.status_code in {401, 403}:
            name = self._key_variable
            way_out = f"put a valid one into {name}" if name else "name its variable in `key_variable`"
            message += f". The key is read from an environment variable: {way_out}"
        return RefusedError(message, said)

    def shown(self, text: str) -> str:
        """Return the first words of a message on one line, without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = " ".join(text.split())
        return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


@dataclass(frozen=True)
class Session:
    """What one of the workers of a `Client` asks with."""

    client: Client
    http: httpx2.AsyncClient
    draw: random.Random

    async def post(self, path: str, body: dict[str, Any], model: type[Model]) -> Model | None:
        """Ask until there is an answer that the model takes.

        Status 408, 429 and 5xx, lost connections, answers that take too long and those that can't be read
        are asked for again, after pauses that double; where the server names a pause, it comes on top.

        Returns:
            `None` where the server says that the prompt is too long for it.

        Raises:
            RefusedError: Any other status.
            ServerError: Every attempt failed.
        """
        settings = self.client.settings
        failures: Counter[str] = Counter()
        while True:
            answer = await self._attempt(path, body, model)
            if not isinstance(answer, _Failure):
                return answer
            self.client.watch()
            failures[answer.reason] += 1
            failed = failures.total()
            if failed > settings.retries:
                break
            growing: float = min(_FIRST_PAUSE * 2 ** (failed - 1), _LONGEST_PAUSE)
            spread = 0.5 + self.draw.random() / 2
            await asyncio.sleep(min(answer.wait, _LONGEST_RETRY_AFTER) + growing * spread)
        told = "; ".join(f"{count} x {reason}" for reason, count in failures.most_common())
        raise ServerError(
            f"{self.client.url}{path}: no usable answer in {failed} attempts: {told}. What was finished is "
            "kept: see to the server, or raise `retries` or `timeout_seconds`, and run again"
        )

    async def _attempt(self, path: str, body: dict[str, Any], model: type[Model]) -> Model | _Failure | None:
        seconds, shown = self.client.settings.timeout_seconds, self.client.shown
        try:
            async with asyncio.timeout(seconds):
                response = await self.http.post(self.client.url + path, json=body)
        except TimeoutError:
            return _Failure(f"no answer in {seconds:g} s")
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return _Failure(shown(f"{type(error).__name__} {error}"))
        status = response.status_code
        if status in {408, 429} or status >= 500:
            return _Failure(f"status {status} {shown(response.text)}", _retry_after(response))
        if status in {400, 413} and _TOO_LONG.search(response.text):
            return None
        if not response.is_success:
            raise self.client.refusal(response, path)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            told = " ".join([*map(str, first["loc"]), first["msg"]])
            return _Failure(shown(f"an answer that can't be read ({told})"))


def _checked(url: str) -> str:
    """Return the address without a slash at its end; it is not shown where it may hold a secret."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.userinfo or parsed.query:
        raise RecipeError(
            "endpoint.url: it has to be like https://api.example.com/v1, without a password or a query; "
            "the key belongs in the environment variable that `key_variable` names"
        )
    return url.rstrip("/")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RecipeError(
            f"endpoint.key_variable: the environment variable {variable} is not set; put the key there"
        )
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(f"endpoint.key_variable: the value of {variable} has characters that no key has")
    return key


def _retry_after(response: httpx2.Response) -> float:
    """Return the seconds that the server asks to wait, given as a number or as a date; 0 if it does not."""
    value = response.headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
