"""The `selfalign` command."""

import errno
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from selfalign import __version__
from selfalign.cli.export import export, merge, push
from selfalign.errors import SelfAlignError

# Libraries that load models must not draw over our progress.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

app = typer.Typer(
    help="Align a language model with its own feedback.\n\n"
    "A first run: `selfalign run recipes/quickstart.yaml`. The same command again goes on where it stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_WIDTH = None if sys.stdout.isatty() else 150
console = Console(soft_wrap=True, width=_WIDTH)
problems = Console(stderr=True, soft_wrap=True)

RecipeFile = Annotated[Path, typer.Argument(help="Recipe, a YAML file. `selfalign init` writes one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as dpo.beta=0.2.")
]
RunDir = Annotated[Path, typer.Argument(help="Run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    method: Annotated[str, typer.Option(help="What to run: self_rewarding or rlcd.")] = "self_rewarding",
    preset: Annotated[
        str | None, typer.Option(help="Published numbers to start from: paper, autoalign.")
    ] = None,
) -> None:
    """Write a recipe with every key, its default and what it means."""
    from selfalign.recipes import explain_recipe

    if path.exists():
        raise SelfAlignError(f"{path}: exists already; give another name")
    text = explain_recipe(method, preset)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    _say(f"wrote {path}; run it with: {shlex.join(['selfalign', 'run', str(path)])}")


@app.command()
def validate(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a recipe and show it with presets and overrides resolved."""
    from selfalign.recipes import load_recipe

    resolved = load_recipe(recipe, overrides or []).model_dump(mode="json")
    if as_json:
        print(json.dumps(resolved, indent=2))
    else:
        import yaml

        print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), end="")
        _say(f"{recipe}: valid", problems)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from selfalign.recipes import recipe_schema

    print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run lives; runs/ and the recipe's name if not given.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the stages, their state and what they need; do nothing.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Redo stages that a changed recipe or data has made stale.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe to its end, or go on where it stopped.

    Everything a stage finished is kept: kill it at any moment and give the same command again.
    """
    from selfalign.methods.execute import memory_plan, plan
    from selfalign.recipes import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    root = run_dir or Path("runs") / recipe.stem
    if dry_run:
        statuses = plan(resolved, root)
        _show_plan(statuses, as_json, memory_plan(resolved, statuses))
        return
    text = recipe.read_text(encoding="utf-8")
    report = _execute(resolved, root, text, as_json=as_json, update=update)
    if not as_json:
        _show_results(root)
        _say(f"report: {report}")


@app.command("eval")
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="Run directory, to measure all its models; or a model directory, a hub id or "
            "smollm2-135m-instruct; or `doctor`, to see what is missing here.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys of an evaluation recipe, such as max_new_tokens=512."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Benchmarks of a published table: rlcd, self_rewarding.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Benchmarks by name, such as gsm8k,mmlu.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Directory of the benchmarks' original files, to need no hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions of each benchmark; all if not given.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--bare", help="Ask in the chat format, or continue bare text.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Model that grades MT-Bench and AlpacaEval, and compares head to head.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where results go, if not where they would.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done; do nothing.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Redo what other settings or data have made stale.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model, or every model of a run, on benchmarks.

    `selfalign eval runs/quickstart --suite self_rewarding` shows gains and losses of M0, M1, … in one table.
    Kill it at any moment and give the same command again. A judge behind an API is named by
    `judge.endpoint.url=... judge.endpoint.model=...`.
    """
    from selfalign.cli.evaluate import benchmark_table, doctor_table, evaluation_recipe, evaluation_root
    from selfalign.methods.evaluation import doctor
    from selfalign.methods.execute import plan
    from selfalign.report.benchmarks import read_table

    options = {
        "preset": suite,
        "tasks": None if tasks is None else [name.strip() for name in tasks.split(",")],
        "data_dir": None if data_dir is None else str(data_dir),
        "limit": limit,
        "chat": chat,
        "judge": None if judge is None else {"model": judge},
    }
    if target == "doctor":
        found = doctor(evaluation_recipe("smollm2-135m-instruct", options, overrides or []))
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            console.print(doctor_table(found), soft_wrap=False)  # which folds cells that are too long
        return
    recipe = evaluation_recipe(target, options, overrides or [])
    root = run_dir or evaluation_root(target, recipe)
    if dry_run:
        _show_plan(plan(recipe, root), as_json, {})
        return
    import yaml

    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    report = _execute(recipe, root, text, as_json=as_json, update=update)
    if not as_json and (table := read_table(root)) is not None:
        console.print(benchmark_table(*table), soft_wrap=False)
        _say(f"results: {root}; report: {report}")


@app.command()
def status(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Show how far a run is, its last warnings and what it has measured."""
    from selfalign.methods.execute import plan, recipe_of
    from selfalign.runs.events import read_events
    from selfalign.runs.lock import holder_of

    statuses = plan(recipe_of(run_dir), run_dir)
    events = list(read_events(run_dir / "events.jsonl"))
    holder = holder_of(run_dir)
    warnings = [f"{e['stage']}: {e['message']}" for e in events if e["event"] == "warning"][-5:]
    if as_json:
        stages = [{"stage": s.stage.name, "state": s.state, "why": s.why} for s in statuses]
        print(json.dumps({"held_by": holder, "stages": stages, "warnings": warnings}, indent=2))
        return
    done = sum(s.state == "done" for s in statuses)
    _say(
        f"{run_dir}: {done} of {len(statuses)} stages done; "
        + (f"running ({holder})" if holder else "not running")
    )
    _show_plan(statuses, as_json=False, memory={})
    progress = [e for e in events if e["event"] == "progress"][-1:]
    if holder and progress:
        last = progress[0]
        _say(f"now: {last['stage']}, {last['done']} of {last['total']} {last['unit']} ({last['time']})")
    for warning in warnings:
        _say(f"! {warning}")
    _show_results(run_dir)


@app.command()
def report(run_dir: RunDir) -> None:
    """Write report.html from what a run holds so far."""
    from selfalign.methods.execute import recipe_of
    from selfalign.report import write_report

    recipe_of(run_dir)
    _say(f"wrote {write_report(run_dir)}")


@app.command()
def ls(
    runs_dir: Annotated[Path, typer.Argument(help="Directory of run directories.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List runs and how far they are."""
    from selfalign.methods.execute import RESOLVED

    rows = [_run_row(path.parent) for path in sorted(runs_dir.glob(f"*/{RESOLVED}"))]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        _say(f"no run in {runs_dir}")
    for row in rows:
        if "error" in row:
            _say(f"{row['run']:<32} unusable  {row['error']}")
            continue
        state = "running" if row["held_by"] else "finished" if row["done"] == row["stages"] else "stopped"
        _say(f"{row['run']:<32} {state:<9} {row['done']}/{row['stages']}  {row['model']}")


for command in (merge, export, push):
    app.command()(command)


def main() -> None:
    """Run the command; exit with 2 on an error that a user can put right, 130 on Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(standalone_mode=False)  # typer turns Ctrl-C and --help into a code that it returns
    except SelfAlignError as error:
        problems.print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _say(
            f"error: {error}\nWhat was finished is kept; make room or grant access, then run again: "
            f"{_command()}",
            problems,
        )
        sys.exit(2)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        _usage(error)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> None:
    """Show a wrong call of the command as typer would and exit."""
    if hasattr(error, "show"):
        error.show()
    sys.exit(error.exit_code)


def _terminated(signum: int, _: FrameType | None) -> None:
    _say(f"terminated; nothing is lost. The same command goes on: {_command()}", problems)
    sys.exit(128 + signum)


def _command() -> str:
    return shlex.join(["selfalign", *sys.argv[1:]])


def _say(text: str, to: Console = console) -> None:
    """Print a line as it is: brackets in names are no markup."""
    to.print(text, markup=False, highlight=False)


def _run_row(root: Path) -> dict[str, Any]:
    from selfalign.methods.execute import plan, recipe_of
    from selfalign.runs.lock import holder_of

    try:
        recipe = recipe_of(root)
        statuses = plan(recipe, root)
    except SelfAlignError as error:
        return {"run": str(root), "error": str(error)}
    done = sum(s.state == "done" for s in statuses)
    return {
        "run": str(root), "method": recipe.method, "model": recipe.policy.model,
        "done": done, "stages": len(statuses), "held_by": holder_of(root),
    }  # fmt: skip


def _execute(recipe: Any, root: Path, text: str, *, as_json: bool, update: bool) -> Path:
    """Do what is left of a run, telling about it, and return its report."""
    from selfalign.cli.console import Narrator
    from selfalign.methods.execute import execute

    try:
        with Narrator(console) as narrator:
            return execute(recipe, root, text, _print_json if as_json else narrator, update=update)
    except KeyboardInterrupt:
        _say(f"stopped; nothing is lost. The same command goes on: {_command()}", problems)
        raise


def _print_json(event: dict[str, Any]) -> None:
    print(json.dumps(event, ensure_ascii=False), flush=True)


def _show_plan(statuses: Any, as_json: bool, memory: Any) -> None:
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
        print(json.dumps(rows, indent=2))
        return
    console.print(plan_table(statuses))
    if memory:
        console.print(memory_table(memory))


def _show_results(root: Path) -> None:
    """Show what the run has measured so far; each method measures its own."""
    from selfalign.cli.tables import effect_table, judge_table
    from selfalign.report.effects import effects, price
    from selfalign.report.read import measured_models

    models = measured_models(root)
    if models:
        console.print(judge_table(models))
    rows = effects(root)
    if rows:
        console.print(effect_table(rows, price(root)))


def _version(value: bool) -> None:
    if value:
        console.print(f"selfalign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    del version
