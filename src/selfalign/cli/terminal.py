"""Where the command line prints: for people on a terminal, plain lines into a log, JSON for programs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

# A log has no right edge: a table there is as wide as what stands in it.
_WIDTH = None if sys.stdout.isatty() else 10_000
console = Console(soft_wrap=True, width=_WIDTH)
problems = Console(stderr=True, soft_wrap=True)

RunDir = Annotated[Path, typer.Argument(help="Run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def say(text: str, to: Console = console) -> None:
    """Print a line as it is: brackets in names are no markup."""
    to.print(text, markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Print a JSON value that people can read too."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_event(event: dict[str, Any]) -> None:
    """Print an event on a line of its own, at once."""
    print(json.dumps(event, ensure_ascii=False), flush=True)
