"""`selfalign status`, `ls` and `report`: looking at runs without changing them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from selfalign.cli.running import results, show_results, tell
from selfalign.cli.terminal import AsJson, RunDir, console, print_json, say
from selfalign.errors import RunError, SelfAlignError
from selfalign.report.text import duration, rate
from selfalign.runs.progress import Following, Pace


def status(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Show how far a run is, what it took, its pace, its last warnings and what it has measured."""
    from selfalign.cli.tables import status_table
    from selfalign.methods.execute import plan, recipe_of
    from selfalign.report.overview import costs
    from selfalign.report.problems import Problems
    from selfalign.report.read import finished_stages
    from selfalign.runs.events import read_events
    from selfalign.runs.lock import holder_of

    statuses = plan(recipe_of(run_dir), run_dir)
    unread = Problems(run_dir)
    took = {cost.name: cost for cost in costs(finished_stages(run_dir, unread))}
    following = Following()
    for event in read_events(run_dir / "events.jsonl"):
        unread.attempt("events.jsonl", following.take, event)
    holder, pace = holder_of(run_dir), following.pace()
    if as_json:
        stages = [_stage(s, took.get(s.stage.name)) for s in statuses]
        now = None if pace is None else vars(pace) | {"seconds_left": pace.seconds_left}
        print_json(
            {
                "held_by": holder,
                "stages": stages,
                "now": now,
                "stopped": following.stopped,
                "warnings": list(following.warnings),
                "results": results(run_dir),
                "problems": list(unread),
            }
        )
        return
    done = [s for s in statuses if s.state == "done"]
    seconds = sum(took[s.stage.name].seconds for s in done if s.stage.name in took)
    took_all = f" in {duration(seconds)}" if done else ""
    state = f"running ({holder})" if holder else "not running"
    say(f"{run_dir}: {len(done)} of {len(statuses)} stages done{took_all}; {state}")
    console.print(status_table(statuses, took))
    if pace is not None:
        say(f"{'now' if holder else 'stopped at'}: {pace_line(pace)}, {_ago(pace.at)}")
    elif following.stage is not None:
        say(f"{'now' if holder else 'stopped in'}: {following.stage}")
    if following.stopped is not None and not holder:
        say(f"! {following.stopped}")
    for warning in following.warnings:
        say(f"! {warning}")
    show_results(run_dir)
    tell(unread)


def _stage(status: Any, cost: Any) -> dict[str, Any]:
    """Return a stage as programs read it; what it took is `None` until it is done."""
    from selfalign.cli.tables import costs_of

    done = status.state == "done" and cost is not None
    return {
        "stage": status.stage.name,
        "state": status.state,
        "why": status.why,
        "seconds": cost.seconds if done else None,
        "tokens": cost.tokens if done else None,
        **costs_of(status),
    }


def pace_line(pace: Pace) -> str:
    """Say how far a stage is and how long it will take."""
    said = f"{pace.stage}, {pace.done:,} of {pace.total:,} {pace.unit}"
    if pace.per_second is not None and pace.seconds_left is not None:
        said += f", {rate(pace.per_second)}, {duration(pace.seconds_left)} left"
    return said


def _ago(time: str) -> str:
    return f"{duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()))} ago"


def report(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Write report.html from what a run holds so far, and say what of it can't be read."""
    from selfalign.methods.execute import RESOLVED
    from selfalign.report import write_report
    from selfalign.report.problems import Problems

    begun = any((run_dir / name).is_file() for name in (RESOLVED, "manifest.json", "events.jsonl"))
    if not begun and not any(run_dir.glob("*/manifests/*.json")):
        raise RunError(f"{run_dir}: not a run directory ({RESOLVED} is missing); `selfalign ls` lists runs")
    unread = Problems(run_dir)
    path = write_report(run_dir, unread)
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size, "problems": list(unread)})
        return
    say(f"wrote {path}")
    tell(unread)


def ls(
    runs_dir: Annotated[Path, typer.Argument(help="Directory of run directories.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List runs and how far they are."""
    from selfalign.methods.execute import RESOLVED

    rows = [_run_row(path.parent) for path in sorted(runs_dir.glob(f"*/{RESOLVED}"))]
    if as_json:
        print_json(rows)
        return
    if not rows:
        say(f"no run in {runs_dir}")
    width = max((len(row["run"]) for row in rows), default=0)
    for row in rows:
        if "error" in row:
            say(f"{row['run']:<{width}}  unusable  {row['error']}")
            continue
        say(f"{row['run']:<{width}}  {row['state']:<8}  {row['done']}/{row['stages']}  {row['model']}")


def _run_row(root: Path) -> dict[str, Any]:
    from selfalign.methods.execute import plan, recipe_of
    from selfalign.runs.lock import holder_of

    try:
        recipe = recipe_of(root)
        statuses = plan(recipe, root)
    except SelfAlignError as error:
        return {"run": str(root), "error": str(error)}
    done, holder = sum(s.state == "done" for s in statuses), holder_of(root)
    return {
        "run": str(root), "method": recipe.method, "model": recipe.policy.model,
        "state": "running" if holder else "finished" if done == len(statuses) else "stopped",
        "done": done, "stages": len(statuses), "held_by": holder,
    }  # fmt: skip
