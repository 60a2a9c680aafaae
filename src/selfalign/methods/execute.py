"""Planning and doing a run of any method."""

import importlib.util
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from selfalign import __version__
from selfalign.config import EvaluationRecipe, Recipe, RLCDRecipe
from selfalign.engines import close_engine
from selfalign.errors import RecipeError, RunError
from selfalign.methods.evaluation import evaluation
from selfalign.methods.rlcd import rlcd
from selfalign.methods.self_rewarding import self_rewarding
from selfalign.models.machine import machine
from selfalign.models.source import policy_source
from selfalign.report import write_report
from selfalign.runs import Run
from selfalign.runs.events import EventLog, Listener
from selfalign.runs.files import hash_file, read_json, write_json, write_text
from selfalign.runs.lock import hold
from selfalign.runs.run import StageStatus

RESOLVED = "recipe.resolved.json"
_VERSIONED = ("torch", "transformers", "peft", "tokenizers", "numpy", "pydantic")


def plan(recipe: Recipe, root: Path) -> list[StageStatus]:
    """Return where every stage of the run stands, doing none."""
    return _go_through(recipe, root, None)


def execute(recipe: Recipe, root: Path, text: str, listener: Listener, *, update: bool = False) -> Path:
    """Do what is left of a run and write its report.

    Args:
        recipe: The resolved recipe.
        root: The run directory, made if need be.
        text: The recipe as the user wrote it, kept beside the run.
        listener: Told every event.
        update: Redo stages that the recipe, the data or the code has made stale; what they had made is
            moved to `stale/`.

    Returns:
        The path of the report.

    Raises:
        RecipeError: A tracker is not installed.
        RunError: Another process holds the directory, or stages are stale and `update` is false.
        SelfAlignError: As the stages raise it; what was finished is kept.
    """
    _check_trackers(recipe.report_to)
    with hold(root):
        statuses = plan(recipe, root)
        stale = [status for status in statuses if status.state == "stale"]
        if stale and not update:
            raise RunError(f"{root}: {_refusal(stale)}")
        write_text(root / "recipe.yaml", text)
        write_json(root / RESOLVED, recipe.model_dump(mode="json"))
        events = EventLog(root / "events.jsonl", _tracking(recipe, root, listener))
        events.emit("run_started", run=str(root), model=recipe.policy.from_run or recipe.policy.model)
        data = next((s.stage.settings for s in statuses if s.stage.name == "data/read"), {})
        _write_manifest(recipe, root, data)
        try:
            _go_through(recipe, root, events)
        except BaseException as error:
            events.emit("run_stopped", reason=type(error).__name__, message=str(error))
            raise
        finally:
            close_engine()
        report = write_report(root)
        events.emit("run_finished", report=str(report))
        return report


def _tracking(recipe: Recipe, root: Path, listener: Listener) -> Listener:
    """Return a listener that passes figures of finished stages on to the trackers of the recipe, if any."""
    if not recipe.report_to:
        return listener

    def tell(event: dict[str, Any]) -> None:
        listener(event)
        if event["event"] == "stage_finished":
            from selfalign.training.tracking import track_figures

            track_figures(recipe.report_to, event["stage"], root)

    return tell


def _go_through(recipe: Recipe, root: Path, events: EventLog | None) -> list[StageStatus]:
    match recipe:
        case RLCDRecipe():
            distillation = Run(root, recipe, events)
            rlcd(distillation)
            return distillation.statuses
        case EvaluationRecipe():
            measured = Run(root, recipe, events)
            evaluation(measured)
            return measured.statuses
        case _:
            run = Run(root, recipe, events)
            self_rewarding(run)
            return run.statuses


def memory_plan(recipe: Recipe, statuses: Sequence[StageStatus]) -> dict[str, dict[str, int]]:
    """Return the bytes that each training still to be done will hold, by its stage.

    The parts are those of `Memory`, with their `total` and what is `available`.

    Raises:
        ModelError: The model's configuration can't be read.
    """
    left = {s.stage.name: s.stage.training for s in statuses if s.stage.training and s.state != "done"}
    if not left:
        return {}
    from selfalign.training.memory import available_memory, training_memory

    configuration, available = policy_source(recipe.policy).configuration(), available_memory(recipe.policy)
    known = {settings: training_memory(configuration, recipe.policy, settings) for settings in left.values()}
    return {
        name: {**known[settings]._asdict(), "total": known[settings].total, "available": available}
        for name, settings in left.items()
    }


def recipe_of(root: Path) -> Recipe:
    """Return the resolved recipe of a run directory.

    Raises:
        RunError: It is no run directory, or one of another version.
    """
    if not (root / RESOLVED).is_file():
        raise RunError(f"{root}: not a run directory ({RESOLVED} is missing); `selfalign ls` lists runs")
    try:
        return TypeAdapter[Recipe](Recipe).validate_python(read_json(root / RESOLVED))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise RunError(
            f"{root / RESOLVED}: made by another version of selfalign, which manifest.json names "
            f"({key}: {problem['msg']}); look at it with that version"
        ) from None


def _check_trackers(names: Sequence[str]) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"report_to: {missing[0]} is not installed; run `pip install {missing[0]}`")


def _refusal(stale: Sequence[StageStatus]) -> str:
    reasons = "\n".join(f"  {s.stage.name}: {'; '.join(s.why[:3])}" for s in stale[:8])
    return (
        "what it holds was made under other settings, data or code:\n"
        f"{reasons}\n"
        "Take another --run-dir, or add --update to redo these stages (their files move to stale/)"
    )


def _write_manifest(recipe: Recipe, root: Path, data: Mapping[str, Any]) -> None:
    path = root / "manifest.json"
    before = read_json(path)["invocations"] if path.exists() else []
    source = policy_source(recipe.policy)
    model = source.materialise()
    template = next(
        (f for f in (model / "chat_template.jinja", model / "tokenizer_config.json") if f.exists()), None
    )
    invocation = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "selfalign": __version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
        **{name: metadata.version(name) for name in _VERSIONED},
    }
    write_json(
        path,
        {
            "method": recipe.method,
            "seed": recipe.seed,
            "model": {"name": source.name, "fingerprint": source.fingerprint},
            "chat_template": recipe.policy.chat_template or (hash_file(template) if template else None),
            "data": data,
            "invocations": [*before, invocation],
        },
    )


def _git_revision() -> str | None:
    """Return the commit of the checkout that this code runs from; `None` for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- fixed words
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
