"""A server that speaks as much of vLLM's and OpenAI's API as the engine asks for, and fails on demand.

Tests run it in a thread; as a program it is the `vllm` of a made-up environment (see `install`). A token is
a word. Nothing but the standard library is used, so that it starts fast.
"""

import argparse
import json
import math
import os
import random
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = ["sea", "hill", "wind", "stone", "river", "cloud", "grass", "night", "lamp", "road", "salt", "bird"]
VOCABULARY = 259
Table = Mapping[Any, float]


@dataclass(frozen=True)
class Fault:
    """What a request gets in place of an answer."""

    status: int = 200
    body: str = ""
    retry_after: str | None = None
    missing: int = 0
    """Bytes that were announced and do not come."""
    hangs: bool = False


BAD_JSON = Fault(body='{"choices": [')
HALF = Fault(body='{"choices": [{"text": "ha', missing=100)
HANG = Fault(hangs=True)
BROKEN = Fault(500, "out of order")
BUSY = Fault(429, "slow down", "0.1")
NO_CHOICES = Fault(body='{"choices": [], "usage": {"completion_tokens": 0}}')


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    path: str
    body: Any
    headers: Mapping[str, str]
    at: float


class FakeServer:
    """Answers in a deterministic way from the prompt and the seed."""

    def __init__(
        self,
        *,
        fault: Callable[[int], Fault | None] = lambda _: None,
        context: int = 1024,
        key: str | None = None,
        refuses: str | None = None,
        next_tokens: Callable[[tuple[int, ...]], Table] | None = None,
        chat_tokens: Sequence[Table] | None = None,
        reply: Callable[[Any], tuple[str | None, str]] | None = None,
        seconds: float = 0.0,
        healthy: bool = True,
        port: int = 0,
    ) -> None:
        """Listen at once.

        Args:
            fault: What the request of that number, counted from 0, gets in place of an answer.
            context: Tokens of prompt and completion.
            key: Asked of every request.
            refuses: A field that no request may have.
            next_tokens: Probabilities of the token after some token ids.
            chat_tokens: Probabilities of each token of a chat reply; without, a chat tells none.
            reply: Text and finish reason of a chat reply.
            seconds: Time that an answer takes.
            healthy: What `/health` says.
            port: 0 takes a free one.
        """
        self.fault, self.context, self.key, self.refuses = fault, context, key, refuses
        self.next_tokens, self.chat_tokens, self.reply = next_tokens or _next_tokens, chat_tokens, reply
        self.seconds, self.healthy = seconds, healthy
        self.seen: list[Seen] = []
        self.under_way = self.most_under_way = self.hanging = 0
        self.lock = threading.Lock()
        self.server = _Listener(port, self)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "FakeServer":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if self.refuses in body:
            return 400, {"error": {"message": f"Unrecognized request argument supplied: {self.refuses}"}}
        is_chat = path.endswith("/chat/completions")
        size = len(body["messages"][-1]["content"].split() if is_chat else body["prompt"])
        if size + body["max_tokens"] > self.context:
            message = f"This model's maximum context length is {self.context} tokens."
            return 400, {"error": {"message": message, "code": 400}}
        choice, num_tokens = self._chat(body) if is_chat else self._completion(body)
        return 200, {"choices": [{"index": 0, **choice}], "usage": {"completion_tokens": num_tokens}}

    def _completion(self, body: Any) -> tuple[Any, int]:
        text, finish, num_tokens = _words(body["prompt"], body)
        if "structured_outputs" in body:
            text, finish, num_tokens = _held(text.split(), body)
        choice: dict[str, Any] = {"text": text, "finish_reason": finish, "stop_reason": None}
        if finish == "stop" and body.get("stop_token_ids"):
            choice["stop_reason"] = body["stop_token_ids"][0]
        if "logprobs" in body:
            table = _likeliest(self.next_tokens(tuple(body["prompt"])), body["logprobs"])
            named = {f"token_id:{token}": p for token, p in table.items()}
            choice["logprobs"] = {"top_logprobs": [named]}
        return choice, num_tokens

    def _chat(self, body: Any) -> tuple[Any, int]:
        text, finish, num_tokens = _words(body["messages"], body)
        if "response_format" in body:
            scores = _schema_of(body)["properties"]["score"]["enum"]
            text = json.dumps({"rationale": text, "score": scores[len(text) % len(scores)]})
        if self.reply:
            text, finish = self.reply(body)
        choice: dict[str, Any] = {"message": {"content": text}, "finish_reason": finish, "logprobs": None}
        if self.chat_tokens and body.get("logprobs"):
            tables = [_likeliest(table, body["top_logprobs"]) for table in self.chat_tokens]
            rows = [[{"token": token, "logprob": p} for token, p in table.items()] for table in tables]
            choice["logprobs"] = {"content": [{**row[0], "top_logprobs": row} for row in rows]}
        return choice, num_tokens


class _Listener(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def __init__(self, port: int, fake: FakeServer) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.fake = fake

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that leave early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Listener

    def do_GET(self) -> None:
        fake = self.server.fake
        if self.path == "/health":
            self._send(Fault(200 if fake.healthy else 503))
        else:
            self._send(Fault(body=json.dumps({"data": [{"max_model_len": fake.context}]})))

    def do_POST(self) -> None:
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fault = fake.fault(len(fake.seen))
            fake.seen.append(Seen(self.path, body, dict(self.headers), time.monotonic()))
            fake.under_way += 1
            fake.most_under_way = max(fake.most_under_way, fake.under_way)
        given = self.headers["Authorization"]
        if fault is None and fake.key and given != f"Bearer {fake.key}":
            fault = Fault(401, f"no such key: {given}")
        if fault is None:
            time.sleep(fake.seconds)
            status, answer = fake.answer(self.path, body)
            fault = Fault(status, json.dumps(answer))
        with fake.lock:  # before the client knows, and sends the next one
            fake.under_way -= 1
        if fault.hangs:
            self._hang()
        else:
            self._send(fault)

    def _hang(self) -> None:
        fake = self.server.fake
        with fake.lock:
            fake.hanging += 1
        select.select([self.connection], [], [], 30)  # until the client leaves
        with fake.lock:
            fake.hanging -= 1
        self.close_connection = True

    def _send(self, fault: Fault) -> None:
        content = fault.body.encode()
        self.send_response(fault.status)
        self.send_header("Content-Length", str(len(content) + fault.missing))
        if fault.retry_after:
            self.send_header("Retry-After", fault.retry_after)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = bool(fault.missing)

    def log_message(self, *_: object) -> None:
        pass


def _words(prompt: Any, body: Any) -> tuple[str, str, int]:
    """Return text, finish reason and number of tokens, the end of turn counted as vLLM does."""
    draw = random.Random(f"{prompt} {body.get('seed') if body['temperature'] else None}")  # noqa: S311
    words = [draw.choice(WORDS) for _ in range(draw.randrange(5, 60))]
    if len(words) < body["max_tokens"]:
        return " ".join(words), "stop", len(words) + 1
    return " ".join(words[: body["max_tokens"]]), "length", body["max_tokens"]


def _held(words: list[str], body: Any) -> tuple[str, str, int]:
    """Say as many words as the regular expression takes, and then a line that it takes."""
    held = re.compile(body["structured_outputs"]["regex"])
    lines = [f"Score: {(len(words) + n) % 10}" for n in range(10)]
    texts = (f"{' '.join(words[:n])}\n{line}" for n in range(len(words), -1, -1) for line in lines)
    said = next(text for text in texts if held.fullmatch(text)).split(" ")
    if len(said) < body["max_tokens"]:
        return " ".join(said), "stop", len(said) + 1
    return " ".join(said[: body["max_tokens"]]), "length", body["max_tokens"]


def _schema_of(body: Any) -> Any:
    asked = body["response_format"]
    assert (asked["type"], asked["json_schema"]["strict"]) == ("json_schema", True)
    return asked["json_schema"]["schema"]


DIGITS = range(15, 25)
"""Tokens `0` to `9` of the tests' byte tokenizer."""


def _next_tokens(prompt: tuple[int, ...]) -> Table:
    draw = random.Random(str(prompt))  # noqa: S311
    weights = [draw.expovariate(1) ** 3 for _ in range(VOCABULARY)]
    for digit in DIGITS:
        weights[digit] += draw.uniform(50, 100)  # likely, so that a choice among scores is told
    return {token: weight / sum(weights) for token, weight in enumerate(weights)}


def _likeliest(table: Table, count: int) -> dict[Any, float]:
    ranked = sorted(table.items(), key=lambda item: -item[1])[:count]
    return {token: math.log(p) if p else -9999.0 for token, p in ranked}


# The made-up environment


def install(directory: Path) -> Path:
    """Write a `python` whose every module is this file, and return it."""
    directory.mkdir(parents=True)
    python = directory / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "{Path(__file__).resolve()}" "$@"\n')
    python.chmod(0o755)
    return python


def main() -> None:
    """Serve a model directory, as `vllm serve` would, with a few options of our own."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-m", dest="module")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--record", type=Path, help="where to write how this was started")
    parser.add_argument("--die", help="last words")
    parser.add_argument("--never-healthy", action="store_true")
    options, _ = parser.parse_known_args()
    if options.die:
        sys.exit(options.die)
    print("loading the model", flush=True)  # noqa: T201
    config = json.loads((options.model / "config.json").read_text())
    if options.record:
        # It stays behind at a termination signal.
        worker = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        record = {
            "pid": os.getpid(),
            "worker": worker.pid,
            "arguments": sys.argv[1:],
            "environment": dict(os.environ),
            "files": sorted(file.name for file in options.model.iterdir()),
        }
        options.record.write_text(json.dumps(record))
    context = config["max_position_embeddings"]
    with FakeServer(port=options.port, context=context, healthy=not options.never_healthy):
        threading.Event().wait()


if __name__ == "__main__":
    main()
