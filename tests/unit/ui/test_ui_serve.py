"""The page listens on loopback alone, and finds a port."""

import subprocess
import sys

import httpx2
import pytest

from selfalign.errors import RunError
from selfalign.ui import serve as serve_module
from selfalign.ui.serve import listen, serve


def test_a_taken_port_gives_the_next_one() -> None:
    with listen(20_000) as first, listen(first.getsockname()[1]) as second:
        assert second.getsockname()[0] == "127.0.0.1"
        assert second.getsockname()[1] > first.getsockname()[1]


def test_no_free_port_is_an_error_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setattr(serve_module, "TRIES", 1)
    with listen(20_000) as taken, pytest.raises(RunError, match="give another --port"):
        listen(taken.getsockname()[1])


def test_a_directory_that_is_none_or_a_run_is_refused(make_run, tmp_path) -> None:
    with pytest.raises(RunError, match="no such directory"):
        serve(tmp_path / "none", 20_000, browser=False, say=print)
    with pytest.raises(RunError, match="is a run itself"):
        serve(make_run(), 20_000, browser=False, say=print)


def test_the_command_serves_at_the_address_that_it_says(make_run, tmp_path) -> None:
    make_run()
    with listen(20_000) as taken:
        port = taken.getsockname()[1]
        program = "from selfalign.cli.main import main; main()"
        words = ["ui", str(tmp_path / "runs"), "--no-browser", "--port", str(port)]
        served = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True)
        try:
            assert served.stdout.readline() == f"port {port} is taken\n"
            said = served.stdout.readline()
            assert said.startswith(f"runs in {tmp_path / 'runs'}: http://127.0.0.1:")
            address = said.split()[3]
            assert "one" in httpx2.get(address, trust_env=False).text
        finally:
            served.terminate()
            served.communicate()


def test_what_is_missing_is_named(monkeypatch, tmp_path) -> None:
    import importlib.util

    from selfalign.cli import ui

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "duckdb" else object())
    with pytest.raises(RunError, match=r"the page needs duckdb; run `pip install 'selfalign\[ui\]'`"):
        ui.ui(tmp_path)
