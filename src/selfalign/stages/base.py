"""The models that a run starts from."""

from selfalign.config import BaseRecipe
from selfalign.models.source import EMBEDDED, find_model
from selfalign.runs import Artifact, Run


def base_model(run: Run[BaseRecipe], name: str | None = None) -> Artifact:
    """Return a model from outside the run, by default M0.

    It is converted or downloaded only when the run is done, not when it is planned.

    Raises:
        ModelError: There is no such model, or it is of a kind that we refuse.
    """
    policy = run.recipe.policy
    revision = policy.revision if name is None and policy.model != EMBEDDED else None
    source = find_model(name or policy.model, revision)
    path = run.root if run.planning else source.materialise().resolve()
    return Artifact(path, source.fingerprint)
