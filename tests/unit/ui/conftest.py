"""A page of runs written by hand, asked as a browser asks."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from made_runs import write_run

from selfalign.ui.app import create_app

PORT = 8765
ORIGIN = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run into the directory that the page shows."""

    def make(name: str = "one", harm: str = "", **recipe: Any) -> Path:
        return write_run(tmp_path / "runs" / name, harm, **recipe)

    return make


@pytest.fixture
def page(tmp_path: Path) -> Iterator[TestClient]:
    """Return a client of the page of `tmp_path/runs` that asks as a browser would."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    with TestClient(create_app(tmp_path / "runs", PORT), base_url=ORIGIN, follow_redirects=False) as client:
        yield client


@pytest.fixture
def post(page: TestClient) -> Callable[..., Any]:
    """Return a function that posts as the page's own script does."""

    def send(address: str, body: Any, **headers: str | None) -> Any:
        found = re.search(r'name="selfalign-token" content="([^"]+)"', page.get("/").text)
        assert found is not None
        own = {"Origin": ORIGIN, "X-Selfalign-Token": found[1], "Sec-Fetch-Site": "same-origin"}
        given = own | {name.replace("_", "-"): value for name, value in headers.items()}
        return page.post(address, json=body, headers={k: v for k, v in given.items() if v is not None})

    return send
