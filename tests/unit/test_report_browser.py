"""Hostile text in a browser: nothing of it runs, and nothing breaks the layout."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import fake_run
import pytest
import test_report_rlcd
from test_report_evaluation import evaluation

from selfalign.report import write_report
from selfalign.runs.files import read_json, write_json

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

ALARM = "window.alarm=document.title=parent.alarm=1"
HOSTILE = (
    f"<script>{ALARM}</script></script></style></title></textarea><script>{ALARM}</script>"
    f"<img src=x onerror='{ALARM}'><svg onload='{ALARM}'><iframe srcdoc='<script>{ALARM}</script>'></iframe>"
    "<style>body{display:none}</style><base href='https://example.org/'><meta http-equiv=refresh content=0>"
    f"\" autofocus onfocus='{ALARM}' x=\" <a href='javascript:{ALARM}'>x</a> <details open ontoggle={ALARM}>"
    "<!-- --> <![CDATA[ ]]> &#60;script> {{ 7 * 7 }} {% raw %} "
    "\x00\x07\x1b[31m\x7f\u202etxet\u202c\u2066\u200f "
)
LONG = ("0", "name", "model", "rubric", "d1")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
FORBIDDEN = re.compile(r"<(?:script|img|iframe|base|object|embed|a href=\"(?!#))", re.IGNORECASE)


def say(kind: str, key: str) -> str:
    return f"{HOSTILE}{'W' * 1_000_000 if key in LONG or key.endswith('/0:0') else ''} {kind} {key}"


def self_rewarding(root: Path) -> Path:
    return fake_run.FakeRun(root, say).until(fake_run.STAGES[-1]).root


def rlcd(root: Path) -> Path:
    return test_report_rlcd.FakeRun(root, say).until(test_report_rlcd.STAGES[-1]).root


def evaluated(root: Path) -> Path:
    evaluation(root)
    plan = read_json(root / "plan.json")
    name = f"{HOSTILE} a model".replace("/", "|").replace("\x00", "")[:200]
    write_json(root / "plan.json", plan | {"models": ["M0", name], "not_run": {"gpqa": say("reason", "0")}})
    (root / "M2").rename(root / name)
    return root


RUNS = {"self_rewarding": self_rewarding, "rlcd": rlcd, "evaluation": evaluated}


def browse(page: Path, profile: Path, width: int = 1280) -> str:
    """Return the page's elements as the browser has them when all is loaded."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
        f"--window-size={width},900", "--virtual-time-budget=8000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.mark.parametrize("kind", RUNS)
def test_nothing_of_hostile_text_runs_or_becomes_an_element(tmp_path: Path, kind: str) -> None:
    page = write_report(RUNS[kind](tmp_path / "<script>alert(1)<\u2215script>"))
    assert page.stat().st_size < 5_000_000
    found = browse(page, tmp_path / "profile")
    title = re.search("<title>(.*?)</title>", found)
    assert title is not None
    assert html.unescape(title[1]) == "<script>alert(1)<\u2215script> – selfalign report"
    assert POLICY.search(found)
    assert FORBIDDEN.findall(found) == []
    assert "49 {% raw %}" not in found
    assert "{{ 7 * 7 }}" in found


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_text_stays_inside_the_page(
    tmp_path: Path, kind: str, width: int, measured: Callable[[Path, int], dict[str, int]]
) -> None:
    found = measured(write_report(RUNS[kind](tmp_path / "run")), width)
    assert found == {"beyond": 0, "alarm": 0, "shown": 1}


@pytest.fixture
def measured(tmp_path: Path) -> Callable[[Path, int], dict[str, int]]:
    """Return what is measured in a page of a width: without its policy, and with all of it opened."""

    def measured(page: Path, width: int) -> dict[str, int]:
        source, policies = POLICY.subn("", page.read_text(encoding="utf-8"))
        assert policies == 1
        source = source.replace("<details", "<details open")
        source += (
            "<script>addEventListener('load', () => setTimeout(() => parent.postMessage(JSON.stringify({"
            "beyond: document.documentElement.scrollWidth - document.documentElement.clientWidth, "
            "alarm: window.alarm || 0, "
            "shown: +(document.body.getBoundingClientRect().height > 1000)}), '*'), 500))</script>"
        )
        (tmp_path / "measured.html").write_text(source, encoding="utf-8")
        frame = tmp_path / "frame.html"
        frame.write_text(
            "<script>onmessage = (message) => { document.title = message.data }</script>"
            f"<iframe src='measured.html' style='width:{width}px;height:900px;border:0'></iframe>",
            encoding="utf-8",
        )
        title = re.search("<title>(.*?)</title>", browse(frame, tmp_path / "profile", width + 100))
        assert title is not None
        found: dict[str, int] = json.loads(html.unescape(title[1]))
        return found

    return measured
