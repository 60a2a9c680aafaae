"""What several stages need: settings that shape texts, and token estimates."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfalign.config import BaseRecipe, Policy, Train
from selfalign.errors import RecipeError
from selfalign.runs.files import hash_file

CHARACTERS_PER_TOKEN = 4


def plain(section: BaseModel) -> Any:
    """Return a recipe section as plain JSON values."""
    return section.model_dump(mode="json")


def generation_settings(recipe: BaseRecipe) -> dict[str, Any]:
    """Return what shapes generated text besides model, prompts and sampling.

    Raises:
        RecipeError: The script of the scripted engine is missing.
    """
    script = recipe.engine.script
    if script is not None and not Path(script).is_file():
        raise RecipeError(f"engine.script: {script}: no such file")
    return {
        "engine": recipe.engine.kind,
        "script": hash_file(Path(script)) if script is not None else None,
        "precision": recipe.policy.precision,
        "chat_template": recipe.policy.chat_template,
        "seed": recipe.seed,
    }


def own_template(policy: Policy) -> Policy:
    """Return the settings for a fixed model: device and precision of the policy, and its own template."""
    return policy.model_copy(update={"chat_template": None})


def training_settings(recipe: BaseRecipe, train: Train) -> dict[str, Any]:
    """Return what shapes a trained model besides its start and its data."""
    shaping = train.model_dump(mode="json", exclude={"micro_batch_tokens", "checkpoint_every"})
    policy = {"precision": recipe.policy.precision, "chat_template": recipe.policy.chat_template}
    return {"train": shaping, **policy, "seed": recipe.seed}


def about_tokens(texts: Iterable[str]) -> int:
    """Return about how many tokens the texts have."""
    return sum(len(text) for text in texts) // CHARACTERS_PER_TOKEN
