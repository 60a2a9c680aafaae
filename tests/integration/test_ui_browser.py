"""A person's way through the live page in a real browser, with text that wants to do harm everywhere."""

import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "ui"))

from made_runs import HARM, manifest, write_models, write_run

from selfalign.engines import close_engine
from selfalign.report.votes import read_votes
from selfalign.runs.files import write_json
from selfalign.ui.app import create_app
from selfalign.ui.serve import listen

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SCRIPT = f"""vocabulary = "one two"
[[rules]]
match = ""
reply = '''I say {HARM}'''
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a run whose every text, and whose scripted model, wants to do harm."""
    script = tmp_path / "script.toml"
    script.write_text(SCRIPT, encoding="utf-8")
    run = write_run(tmp_path / "runs" / "one", HARM, engine={"kind": "scripted", "script": str(script)})
    write_models(run, tmp_path / "model")
    return run


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    """Serve the page and return its address."""
    import uvicorn

    with listen(20_100) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_app(root.parent, port), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{port}/"
        server.should_exit = True
        thread.join()
    close_engine()


@pytest.fixture
def browser() -> Iterator[Any]:
    """Start a browser; its time limits suit a busy machine."""
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_person_finds_filters_compares_and_votes(address, browser, root, tmp_path, width) -> None:
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme="dark" if width < 400 else "light"
    )
    page.set_default_timeout(120_000)
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    shots = iter(range(20))

    def look(name: str) -> None:
        assert "harmed" not in page.title()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            f"{name} is too wide"
        )
        assert page.locator("img, iframe, [onerror]").count() == 0
        page.screenshot(path=tmp_path / f"{width}-{next(shots):02}-{name}.png", full_page=True)

    page.goto(address)
    look("runs")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/one")
    look("run")

    holder = {"pid": os.getpid(), "host": socket.gethostname()}
    write_json(root / ".holder.json", holder)
    progress = {"stage": "iteration-2/train", "done": 3, "total": 9, "unit": "steps", "time": "12:00"}
    with (root / "events.jsonl").open("a") as events:
        for event in ({"event": "run_started"}, {"event": "progress", **progress}):
            events.write(json.dumps(event) + "\n")
    page.get_by_text("iteration-2/train: 3 of 9 steps").wait_for()
    look("running")

    def follow(name: str, leads_to: str) -> None:
        page.get_by_role("link", name=name, exact=True).click()
        page.wait_for_url(leads_to)

    def press(key: str, leads_to: str) -> None:
        page.keyboard.press(key)
        page.wait_for_url(leads_to)

    follow("Pairs", "**/pairs")
    page.keyboard.press("/")
    page.keyboard.type("SKY")
    press("Enter", "**text=SKY**")
    assert page.get_by_role("status").inner_text() == "1 pair"
    look("filtered")
    follow("Clear", "**/pairs")
    page.locator("select[name=place]").select_option("iteration-1")
    page.wait_for_url("**place=iteration-1**")
    assert page.get_by_role("status").inner_text() == "2 pairs"
    page.keyboard.press("j")
    press("Enter", "**/prompt?**")
    assert page.locator(".side.chosen").count() == 1
    look("prompt")

    follow("Compare", "**/compare")
    page.keyboard.press("j")
    press("Enter", "**/prompt?**")
    assert page.locator(".side h4 bdi").all_inner_texts() == ["M0", "M1", "M2"]
    look("compared")
    before = page.url
    page.keyboard.press("n")
    page.wait_for_url(lambda url: url != before)
    assert "held-out prompt 2 of 4" in page.locator("main").inner_text()

    follow("Vote", "**/vote")
    follow("M1 and M0", "**one=M1**")
    assert page.locator(".whose").all_inner_texts() == ["", ""]
    look("ballot")
    page.keyboard.press("ArrowLeft")
    page.get_by_text("your vote counts").wait_for()
    [vote] = read_votes(root)
    left = vote.one if vote.left == "one" else vote.other
    assert page.locator(".whose").first.inner_text() == f"by {left}"
    assert vote.preferred == vote.left
    look("voted")
    page.keyboard.press("Enter")
    page.get_by_text("1 vote, 3 prompts left").wait_for()
    page.wait_for_load_state()
    page.get_by_role("button", name="Equally good").click()
    page.get_by_text("your vote counts").wait_for()
    follow("Table", "**/runs/one#head-to-head")
    cells = page.locator("tr.people").locator("th, td").all_inner_texts()
    assert cells[:3] == ["M1", "M0", "people"]
    assert (cells[5], cells[7]) == ("1", "2")
    look("table")

    follow("Chat", "**/chat")
    page.get_by_label("Message", exact=True).fill(f"hello {HARM}")
    page.keyboard.press("Control+Enter")
    page.locator(".turn.assistant, .turn.failed").wait_for()
    assert "I say </script>" in (answer := page.locator(".turn.assistant").inner_text())
    assert "⟨U+202E⟩" in answer
    look("chat")
    assert said == []


def test_a_whole_text_comes_on_demand_and_where_it_was_cut(address, browser, root) -> None:
    long = "long " * 100_000
    write_run(root.parent / "two", long)
    write_json(root.parent / "two" / "manifest.json", manifest("x", seed=1, model={"name": "m"}))
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{address}runs/two/candidates?sort=length")
    page.locator("a.open").first.click()
    cut = page.locator(".side .text", has_text="bad long").first
    assert len(cut.inner_text()) < 10_000
    link = cut.locator("xpath=following-sibling::p/a")
    link.click()
    link.wait_for(state="detached")
    assert len(cut.inner_text()) > 400_000
