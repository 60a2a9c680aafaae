"""`selfalign eval`: benchmarks of one model, or of every model of a run."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from selfalign.cli.running import go, show_plan, tell
from selfalign.cli.terminal import AsJson, console, print_event, print_json, say
from selfalign.config import EvaluationRecipe, SelfRewardingRecipe
from selfalign.errors import RecipeError
from selfalign.evaluation.results import LABELS
from selfalign.report.benchmarks import EVALUATION, BenchmarkRow, read_plan, read_results, read_table
from selfalign.report.problems import Problems


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
    from selfalign.methods.evaluation import doctor
    from selfalign.methods.execute import plan

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
            print_json(found)
        else:
            console.print(doctor_table(found), soft_wrap=False)  # which folds cells that are too long
        return
    recipe = evaluation_recipe(target, options, overrides or [])
    root = run_dir or evaluation_root(target, recipe)
    if dry_run:
        show_plan(plan(recipe, root), as_json, {})
        return
    import yaml

    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path = go(recipe, root, text, as_json=as_json, update=update)
    unread = Problems(root)
    if as_json:
        print_event({"event": "results", "report": str(path), **benchmark_results(root, unread)})
        return
    if (table := read_table(root, unread)) is not None:
        console.print(benchmark_table(*table), soft_wrap=False)
        say(f"results: {root}; report: {path}")
    tell(unread)


def benchmark_results(root: Path, unread: Problems) -> dict[str, Any]:
    """Return what an evaluation has measured, JSON-ready: a row a benchmark, model and measure."""
    plan = read_plan(root, unread)
    rows = [
        {"task": task, "model": model, "measure": name, "unit": result.unit, **measure}
        for (task, model), result in read_results(root, plan, unread).items()
        for name, measure in result.measures.items()
    ]
    return {"models": plan["models"], "rows": rows, "not_run": plan["not_run"], "problems": list(unread)}


def evaluation_recipe(target: str, options: dict[str, Any], overrides: list[str]) -> EvaluationRecipe:
    """Return the recipe that measures a model, or the models of a run directory under the run's own policy.

    Args:
        target: A run directory, or a model as `policy.model` takes it.
        options: Keys of the recipe from the command line; `None` leaves one out.
        overrides: As for `selfalign run`.

    Raises:
        RecipeError: A key or value is wrong.
    """
    from selfalign.methods.execute import RESOLVED, recipe_of
    from selfalign.recipes import resolve_recipe

    own = {"method": "evaluation", **{key: value for key, value in options.items() if value is not None}}
    if (Path(target) / RESOLVED).is_file():
        run = recipe_of(Path(target))
        settings = run.model_dump(mode="json", include={"policy", "engine", "seed"})
        if isinstance(run, SelfRewardingRecipe):
            settings["judging"] = run.judge.model_dump(mode="json", exclude={"model", "endpoint"})
        own = settings | {"of_run": target} | own
    else:
        own |= {"policy": {"model": target}}
    recipe = resolve_recipe(own, overrides, where="eval")
    if not isinstance(recipe, EvaluationRecipe):
        raise RecipeError("eval: method has to be evaluation; `selfalign run` runs the others")
    return recipe


def evaluation_root(target: str, recipe: EvaluationRecipe) -> Path:
    """Return where an evaluation lives: in the run that it measures, or under the model's name."""
    if recipe.of_run is not None:
        return Path(target) / EVALUATION
    return Path("evaluations") / Path(target).name


def benchmark_table(models: list[str], rows: list[BenchmarkRow], not_run: dict[str, str]) -> Table:
    """Return the table of an evaluation for the terminal."""
    table = Table(
        box=None, pad_edge=False, title="benchmarks, in per cent (95 % interval)", title_justify="left"
    )
    table.add_column("benchmark", no_wrap=True)
    for model in models:
        table.add_column(escape(model), justify="right", no_wrap=True)
    if len(models) > 1:
        table.add_column("change", justify="right", no_wrap=True)
    table.add_column("questions", justify="right")
    table.add_column("", overflow="fold")
    for row in rows:
        change = [row.change or "–"] if len(models) > 1 else []
        table.add_row(row.label, *(cell or "–" for cell in row.cells), *change, row.over, escape(row.note))
    for task, reason in not_run.items():
        blank = [""] * (len(models) - 1 + (len(models) > 1))
        table.add_row(
            f"[dim]{LABELS.get(task, task)}[/]", "[dim]not run[/]", *blank, "", f"[dim]{escape(reason)}[/]"
        )
    return table


def doctor_table(tasks: dict[str, str | None]) -> Table:
    """Return what each benchmark needs and does not find."""
    table = Table(box=None, pad_edge=False)
    for heading in ("benchmark", "state", "what is missing"):
        table.add_column(heading, overflow="fold")
    for task, problem in tasks.items():
        state = "[green]ready[/]" if problem is None else "[yellow]can't run[/]"
        table.add_row(LABELS.get(task, task), state, escape(problem or ""))
    return table
