"""The models that an evaluation measures."""

from pathlib import Path

from selfalign.config import EvaluationRecipe
from selfalign.errors import ModelError
from selfalign.models.source import find_model, policy_source, trained_models
from selfalign.runs import Artifact, Run
from selfalign.runs.files import read_json


def models_to_measure(run: Run[EvaluationRecipe]) -> dict[str, Artifact]:
    """Return the models to measure by name, in the order of training: M0, SFT, M1, …; or the only one.

    A model is known by the content of its files, so that a changed one never meets an earlier one's answers.

    Raises:
        ModelError: There is no such model or run, or a model is damaged.
    """
    recipe = run.recipe
    if recipe.of_run is None:
        source = policy_source(recipe.policy)
        path = run.root if run.planning else source.materialise().resolve()
        return {"model": Artifact(path, source.fingerprint)}
    root = Path(recipe.of_run)
    started = root / "manifest.json"
    if not started.is_file():
        raise ModelError(f"of_run: {root} is no run directory, or its run has not begun")
    # The run's own policy says what M0 was; `policy` here has its template and device too.
    base = find_model(read_json(started)["model"]["name"], recipe.policy.revision)
    path = run.root if run.planning else base.materialise().resolve()
    models = {"M0": Artifact(path, base.fingerprint)}
    for name, directory in trained_models(root).items():
        models[name] = Artifact(directory.resolve(), find_model(str(directory)).fingerprint)
    return models
