import gc
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httpx2
import pytest
from fake_server import BAD_JSON, BROKEN, BUSY, HALF, HANG, NO_CHOICES, FakeServer, Fault

from selfalign.config import Endpoint, Sampling
from selfalign.engines import Engine, GenerationRequest, http
from selfalign.engines.server import connect
from selfalign.errors import RecipeError, ServerError
from selfalign.records import Message

SAMPLING = Sampling(temperature=1.0, max_new_tokens=30)
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.002)


def api(server: FakeServer, **settings: Any) -> Engine:
    return connect(Endpoint(url=server.url, model="judge", **settings))


def ask(text: str, key: str = "one", seed: int = 0) -> GenerationRequest:
    return GenerationRequest(key, (Message(role="user", content=text),), seed)


def many(count: int) -> list[GenerationRequest]:
    return [ask("tell me of the sea", str(number), number) for number in range(count)]


def eventually(holds: Callable[[], bool], seconds: float = 2.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


# Asking again


def test_none_of_a_thousand_requests_is_lost_or_doubled_when_a_fifth_fails():
    faults = [BAD_JSON, HALF, BROKEN, Fault(429), NO_CHOICES, Fault(408)]

    def fault(number: int) -> Fault | None:
        if number % 250 == 7:
            return HANG
        return faults[number // 5 % len(faults)] if number % 5 == 0 else None

    with FakeServer(fault=fault) as server:
        engine = api(server, concurrency=16, timeout_seconds=1)
        found = list(engine.generate(many(1000), SAMPLING))
    assert Counter(g.key for g in found) == {str(number): 1 for number in range(1000)}
    assert len(server.seen) > 1200
    assert server.most_under_way <= 16
    with FakeServer() as server:
        expected = {g.key: g for g in api(server).generate(many(100), SAMPLING)}
    assert {g.key: g for g in found if int(g.key) < 100} == expected


@pytest.mark.parametrize(
    "fault", [BAD_JSON, HALF, BROKEN, HANG, NO_CHOICES, Fault(408), Fault(503), Fault(429)]
)
def test_what_may_pass_is_asked_again(fault: Fault):
    with FakeServer(fault=lambda number: fault if number < 2 else None) as server:
        [found] = api(server, timeout_seconds=1).generate([ask("x")], SAMPLING)
    assert found.text
    assert len(server.seen) == 3
    assert server.seen[0].body == server.seen[2].body


def test_two_choices_in_place_of_one_are_no_answer():
    two = '{"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}], "usage": null}'
    with (
        FakeServer(fault=lambda _: Fault(body=two)) as server,
        pytest.raises(
            ServerError, match=r"2 attempts: 2 x an answer that can't be read \(choices List should"
        ),
    ):
        list(api(server, retries=1).generate([ask("x")], SAMPLING))


def test_a_storm_of_refusals_is_waited_out_as_long_as_the_server_asks():
    with FakeServer(fault=lambda number: BUSY if number < 30 else None) as server:
        found = list(api(server, concurrency=10).generate(many(20), SAMPLING))
    assert len({g.key for g in found}) == 20
    first: dict[int, float] = {}
    for seen in server.seen:
        assert seen.at - first.get(seen.body["seed"], -math.inf) > 0.1
        first[seen.body["seed"]] = seen.at


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("0.5", 0.5, 0.5), ("soon", 0, 0), ("-3", 0, 0), ("", 0, 0), (None, 28, 31)],
)
def test_the_pause_that_a_server_asks_for_is_a_number_or_a_date(value: str | None, low: float, high: float):
    value = formatdate(time.time() + 30, usegmt=True) if value is None else value
    wait = http._retry_after(httpx2.Response(429, headers={"Retry-After": value}))
    assert low <= wait <= high


def test_after_the_last_attempt_the_error_says_what_failed_and_what_to_do():
    faults = [BROKEN, Fault(429, "slow  down\n"), BROKEN, HANG]
    with FakeServer(fault=lambda number: faults[number]) as server, pytest.raises(ServerError) as failure:
        list(api(server, retries=3, timeout_seconds=0.1).generate([ask("x")], SAMPLING))
    message = str(failure.value)
    assert f"{server.url}/chat/completions: no usable answer in 4 attempts" in message
    assert "2 x status 500 out of order; 1 x status 429 slow down; 1 x no answer in 0.1 s" in message
    assert "kept" in message
    assert "run again" in message


def test_answers_come_before_the_error_that_ends_them():
    with FakeServer(fault=lambda number: Fault(404, "no such model") if number == 5 else None) as server:
        answers = api(server, concurrency=1).generate(many(20), SAMPLING)
        found = [next(answers).key for _ in range(5)]
        with pytest.raises(ServerError, match="status 404: no such model"):
            next(answers)
    assert found == list("01234")
    assert len(server.seen) == 6


def test_a_server_that_is_not_there_is_named():
    with FakeServer() as server:
        pass
    with pytest.raises(ServerError, match=r"127\.0\.0\.1.*2 attempts: 2 x ConnectError"):
        list(api(server, retries=1).generate([ask("x")], SAMPLING))


# Refusals


def test_a_refusal_is_not_asked_again_and_shows_the_first_words_of_the_server():
    with FakeServer(fault=lambda _: Fault(400, "top_p is\nno number " + "x" * 5000)) as server:
        with pytest.raises(
            ServerError, match=r"/chat/completions: .* status 400: top_p is no number x"
        ) as failure:
            list(api(server).generate([ask("x")], SAMPLING))
        assert len(str(failure.value)) < 500
        assert len(server.seen) == 1


def test_a_wrong_key_is_told_by_its_variable_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with FakeServer(key="another") as server:
        engine = api(server, key_variable="JUDGE_KEY")
        with pytest.raises(
            ServerError, match=r"status 401: no such key: Bearer \[key\].*JUDGE_KEY"
        ) as failure:
            list(engine.generate([ask("x")], SAMPLING))
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"
    assert caplog.text
    error = failure.value
    assert KEY not in f"{error!r} {error.__cause__!r} {error.__context__!r} {engine!r} {caplog.text}"


def test_a_key_that_a_failing_server_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    with (
        FakeServer(fault=lambda _: Fault(500, f"can't look up {KEY}")) as server,
        pytest.raises(ServerError, match=r"can't look up \[key\]"),
    ):
        list(api(server, key_variable="JUDGE_KEY", retries=1).generate([ask("x")], SAMPLING))


def test_without_a_key_the_way_out_is_to_name_its_variable():
    with (
        FakeServer(key=KEY) as server,
        pytest.raises(ServerError, match="name its variable in `key_variable`"),
    ):
        list(api(server).generate([ask("x")], SAMPLING))


@pytest.mark.parametrize("value", [None, "  ", f"{KEY}\nX-Other: 1", f"{KEY}ä"])
def test_a_variable_without_a_usable_key_is_refused(monkeypatch: pytest.MonkeyPatch, value: str | None):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(RecipeError, match="JUDGE_KEY") as refusal:
        connect(Endpoint(url="http://localhost/v1", model="judge", key_variable="JUDGE_KEY"))
    assert KEY not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "api.example.com/v1",
        "ftp://x/v1",
        "http://",
        "http://me:pass@x/v1",
        "http://x/v1?key=pass",
        "http://x:port/v1",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_showing_it(url: str):
    with pytest.raises(RecipeError, match=r"https://api\.example\.com/v1") as refusal:
        connect(Endpoint(url=url, model="judge"))
    assert "pass@" not in str(refusal.value)
    assert "key=" not in str(refusal.value)


# Concurrency


def test_as_many_requests_are_under_way_as_allowed_and_no_more():
    with FakeServer(seconds=0.03) as server:
        assert len(list(api(server, concurrency=8).generate(many(40), SAMPLING))) == 40
    assert server.most_under_way == 8


def test_no_requests_no_answers():
    with FakeServer() as server:
        assert list(api(server).generate([], SAMPLING)) == []


def test_a_slow_reader_does_not_keep_the_server_waiting():
    with FakeServer() as server:
        answers = api(server, concurrency=2).generate(many(10), SAMPLING)
        first = next(answers)
        assert eventually(lambda: len(server.seen) == 10)
        assert len({first.key, *(g.key for g in answers)}) == 10


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_requests_under_way_end_with_the_reader(how: str):
    threads = threading.active_count()
    with FakeServer(fault=lambda number: HANG if number else None) as server:
        answers: Any = api(server, concurrency=4).generate(many(50), SAMPLING)
        next(answers)
        assert eventually(lambda: server.hanging == 4)
        started = time.monotonic()
        if how == "closed":
            answers.close()
        else:
            del answers
            gc.collect()
        assert time.monotonic() - started < 1
        assert eventually(lambda: server.hanging == 0)
        seen = len(server.seen)
        time.sleep(0.05)
        assert len(server.seen) == seen == 5
    assert eventually(lambda: threading.active_count() <= threads)


def test_two_calls_may_be_read_in_turns():
    with FakeServer() as server:
        engine = api(server, concurrency=2)
        pairs = list(zip(engine.generate(many(9), SAMPLING), engine.generate(many(9), SAMPLING), strict=True))
    assert {g.key for g, _ in pairs} == {g.key for _, g in pairs} == {str(number) for number in range(9)}
