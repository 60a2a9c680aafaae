"""The models that a run starts from."""

from selfalign.config import BaseRecipe
from selfalign.models.source import find_model, policy_source
from selfalign.runs import Artifact, Run


def base_model(run: Run[BaseRecipe], name: str | None = None) -> Artifact:
    """Return a model from outside the run, by default M0.

    It is converted or downloaded only when the run is done, not when it is planned.

    Raises:
        ModelError: There is no such model, or it is of a kind that we refuse.
    """
    source = policy_source(run.recipe.policy) if name is None else find_model(name)
    path = run.root if run.planning else source.materialise().resolve()
    return Artifact(path, source.fingerprint)
