"""Talking to models: one at a time, and clear words where there is none."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from made_runs import write_models

from selfalign.config import EngineSettings
from selfalign.engines import Generation, close_engine
from selfalign.runs.files import write_json
from selfalign.ui import chat as chat_module

SAID = {"model": "M0", "messages": [{"role": "user", "content": "hello"}], "max_new_tokens": 8}


@pytest.fixture(autouse=True)
def closed():
    yield
    close_engine()


@pytest.fixture
def run(make_run, tmp_path):
    """A run of the scripted engine with an M0 and an M1."""
    root = make_run()
    write_models(root, tmp_path / "model")
    return root


def test_a_model_answers_the_same_way_to_the_same_seed(run, post) -> None:
    first, again, other = (post("/runs/one/chat", SAID | {"seed": seed}).json() for seed in (1, 1, 2))
    assert first == again != other
    assert first["finish_reason"] in ("stop", "length")
    assert first["tokens"] <= 8


def test_real_weights_are_opened_one_at_a_time(make_run, post, tiny_model, monkeypatch) -> None:
    run = make_run()
    write_models(run, tiny_model)
    policy = {"model": "m", "device": "cpu", "precision": "float32"}
    serve = {"kind": "server", "serve": {"python": "/nowhere/python"}}
    recipe = {"method": "self_rewarding", "policy": policy, "engine": serve}
    write_json(run / "recipe.resolved.json", recipe)
    opened = []
    open_engine, close = chat_module.open_engine, chat_module.close_engine
    monkeypatch.setattr(
        chat_module, "open_engine", lambda *given: opened.append(given) or open_engine(*given)
    )
    monkeypatch.setattr(chat_module, "close_engine", lambda: opened.append("closed") or close())
    for model in ("M0", "M0", "M1"):
        assert isinstance(post("/runs/one/chat", SAID | {"model": model}).json()["text"], str)
    assert [given == "closed" or given[0].kind for given in opened] == [
        True, "transformers", "transformers", True, "transformers"
    ]  # fmt: skip


def test_the_page_answers_while_a_model_thinks(run, post, page, monkeypatch) -> None:
    class Slow:
        def generate(self, requests, sampling):
            time.sleep(1)
            yield Generation("chat", "done", "stop", 1)

    monkeypatch.setattr(chat_module, "open_engine", lambda *_: Slow())
    with ThreadPoolExecutor() as threads:
        thinking = threads.submit(post, "/runs/one/chat", SAID)
        time.sleep(0.2)
        assert page.get("/runs/one/live").status_code == 200
        assert not thinking.done()
        assert thinking.result().json()["text"] == "done"


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"model": "M9"}, "no such model in one; there is M0, M1"), ({"model": "../M1"}, "no such model")],
)
def test_a_model_that_is_not_there_is_named(run, post, changed, said) -> None:
    answer = post("/runs/one/chat", SAID | changed)
    assert answer.status_code == 409
    assert said in answer.json()["error"]


def test_a_base_model_that_is_gone_is_named(run, post) -> None:
    write_json(run / "manifest.json", {"seed": 7, "model": {"name": "/gone/model"}})
    assert "/gone/model: no such model" in post("/runs/one/chat", SAID).json()["error"]


def test_a_model_too_big_for_the_memory_is_not_loaded(run, post, monkeypatch) -> None:
    write_json(run / "recipe.resolved.json", {"policy": {"model": "m"}, "engine": {}})
    monkeypatch.setattr(chat_module, "_ROOM", 10**15)
    answer = post("/runs/one/chat", SAID)
    assert answer.status_code == 409
    assert "needs about 1000000.0 GB" in answer.json()["error"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_lets_go_of_the_model_and_says_so(run, post, monkeypatch, error) -> None:
    def short(*_: object) -> None:
        raise error

    monkeypatch.setattr(chat_module, "open_engine", short)
    answer = post("/runs/one/chat", SAID)
    assert answer.status_code == 409
    assert "memory does not suffice" in answer.json()["error"]


@pytest.mark.parametrize("recipe", [{}, {"policy": {"model": "m"}, "engine": {"kind": "magic"}}])
def test_a_recipe_of_another_version_is_told(run, post, recipe) -> None:
    write_json(run / "recipe.resolved.json", recipe)
    answer = post("/runs/one/chat", SAID)
    assert answer.status_code == 409
    assert "of another version" in answer.json()["error"]


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": []},
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"messages": [{"role": "x", "content": "y"}]},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(run, post, changed) -> None:
    assert post("/runs/one/chat", SAID | changed).status_code == 422


def test_no_server_of_a_recipe_is_ever_started(run) -> None:
    serve = {"python": "/nowhere/python"}
    write_json(
        run / "recipe.resolved.json", {"policy": {"model": "m"}, "engine": {"kind": "server", "serve": serve}}
    )
    assert chat_module._wanted(run, "M1").settings == EngineSettings()
