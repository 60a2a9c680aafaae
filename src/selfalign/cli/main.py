"""The `selfalign` command."""

import errno
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.markup import escape

from selfalign import __version__
from selfalign.cli.evaluate import evaluate
from selfalign.cli.export import export, merge, push
from selfalign.cli.running import command, go, results, show_plan, show_results
from selfalign.cli.status import ls, report, status
from selfalign.cli.terminal import AsJson, console, print_event, print_json, problems, say
from selfalign.cli.ui import ui
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
RecipeFile = Annotated[Path, typer.Argument(help="Recipe, a YAML file. `selfalign init` writes one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as dpo.beta=0.2.")
]


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
    say(f"wrote {path}; run it with: {shlex.join(['selfalign', 'run', str(path)])}")


@app.command()
def validate(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a recipe and show it with presets and overrides resolved."""
    from selfalign.recipes import load_recipe

    resolved = load_recipe(recipe, overrides or []).model_dump(mode="json")
    if as_json:
        print_json(resolved)
    else:
        import yaml

        print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), end="")
        say(f"{recipe}: valid", problems)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from selfalign.recipes import recipe_schema

    print_json(recipe_schema())


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
        show_plan(statuses, as_json, memory_plan(resolved, statuses))
        return
    text = recipe.read_text(encoding="utf-8")
    path = go(resolved, root, text, as_json=as_json, update=update)
    if as_json:
        print_event({"event": "results", "report": str(path), **results(root)})
    else:
        show_results(root)
        say(f"report: {path}")


app.command("eval")(evaluate)
app.command()(status)
app.command()(report)
app.command()(ls)
app.command()(merge)
app.command()(export)
app.command()(push)
app.command()(ui)


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
        say(
            f"error: {error}\nWhat was finished is kept; make room or grant access, then run again: "
            f"{command()}",
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
    say(f"terminated; nothing is lost. The same command goes on: {command()}", problems)
    sys.exit(128 + signum)


def _version(value: bool) -> None:
    if value:
        console.print(f"selfalign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    del version
