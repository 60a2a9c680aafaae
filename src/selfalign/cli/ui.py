"""`selfalign ui`: the live page of a directory of runs."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from selfalign.errors import RunError

_NEEDED = ("duckdb", "fastapi", "psutil", "uvicorn")


def ui(
    runs_dir: Annotated[Path, typer.Argument(help="Directory of run directories.")] = Path("runs"),
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port on this machine; the next free one if it is taken.")
    ] = 8765,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
) -> None:
    """Show runs as they go, their rows and models, and let people vote, on a page for this machine alone."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f"the page needs {', '.join(missing)}; run `pip install 'selfalign[ui]'`")
    from selfalign.ui.serve import serve

    serve(runs_dir, port, browser=browser, say=lambda text: print(text, flush=True))
