"""Doing a run on behalf of a command, telling about it, and showing what came of it."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign.cli.terminal import console, print_event, print_json, problems, say


def go(recipe: Any, root: Path, text: str, *, as_json: bool, update: bool) -> Path:
    """Do what is left of a run, telling about it, and return its report.

    Args:
        recipe: The resolved recipe.
        root: The run directory.
        text: The recipe as the user wrote it.
        as_json: Print every event as a line of JSON.
        update: Redo stale stages.
    """
    from selfalign.cli.console import Narrator
    from selfalign.methods.execute import execute

    try:
        with Narrator(console) as narrator:
            return execute(recipe, root, text, print_event if as_json else narrator, update=update)
    except KeyboardInterrupt:
        say(f"stopped; nothing is lost. The same command goes on: {command()}", problems)
        raise


def command() -> str:
    """Return the command that this process was given."""
    return shlex.join(["selfalign", *sys.argv[1:]])


def show_plan(statuses: Sequence[Any], as_json: bool, memory: Mapping[str, Any]) -> None:
    """Show the stages of a run, their state and what they need."""
    from selfalign.cli.tables import costs_of, memory_table, plan_table

    if as_json:
        rows = [
            {
                "stage": s.stage.name,
                "state": s.state,
                "why": s.why,
                **costs_of(s),
                "training_memory": memory.get(s.stage.name),
            }
            for s in statuses
        ]
        print_json(rows)
        return
    console.print(plan_table(statuses))
    if memory:
        console.print(memory_table(memory))


def show_results(root: Path) -> None:
    """Show what the run has measured so far; each method measures its own."""
    from selfalign.cli.tables import effect_table, judge_table
    from selfalign.report.effects import effects, price
    from selfalign.report.problems import Problems
    from selfalign.report.read import measured_models

    unread = Problems(root)
    models = measured_models(root, unread)
    if models:
        console.print(judge_table(models))
    rows = unread.attempt("what training did", effects, root, unread)
    if rows:
        console.print(effect_table(rows, price(root)))
    tell(unread)


def results(root: Path) -> dict[str, Any]:
    """Return what the run has measured so far, JSON-ready."""
    from selfalign.report.effects import measures_of
    from selfalign.report.problems import Problems
    from selfalign.report.read import measured_models

    unread = Problems(root)
    judges = {model.name: model.quality for model in measured_models(root, unread)}
    measures = {name: measures_of(root, name, unread) for name in ("preference", "outputs")}
    return {
        "judges": judges,
        **{name: found for name, found in measures.items() if found is not None},
        "problems": list(unread),
    }


def tell(unread: Any) -> None:
    """Say what of a run directory could not be read."""
    for problem in unread:
        say(f"! {problem}", problems)
