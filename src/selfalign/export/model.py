"""A trained model as a whole one with its model card."""

import shutil
from pathlib import Path

from selfalign.errors import RunError
from selfalign.export.cards import model_card
from selfalign.export.dataset import refuse_existing
from selfalign.models.source import accepted_models, trained_models
from selfalign.runs.files import hash_file, replacing, write_text


def export_model(root: Path, output: Path, name: str | None = None, *, licence: str | None = None) -> str:
    """Write a model of a run, an adapter merged into its base, with a card, into a new directory.

    Args:
        root: The run directory.
        output: Directory to write; it appears whole or not at all.
        name: Such as "M2"; the last one that no gate turned down if `None`.
        licence: What the card states, by its name on the hub; that of the base if `None` and known.

    Returns:
        The model's name.

    Raises:
        RunError: There is no such model, or the output exists.
        ModelError: The base of an adapter is missing.
    """
    models = trained_models(root)
    name = name or next(reversed(accepted_models(root)), None)
    if name not in models:
        raise RunError(f"{root}: no model {name or ''} yet; finished are: {', '.join(models) or 'none'}")
    refuse_existing(output)
    with replacing(output) as temporary:
        if (models[name] / "adapter_config.json").is_file():
            from selfalign.models.merge import write_whole

            write_whole(models[name], temporary)
        else:
            shutil.copytree(models[name], temporary)
        weights = {file.name: hash_file(file) for file in sorted(temporary.glob("*.safetensors"))}
        write_text(temporary / "README.md", model_card(root, name, weights, licence))
    return name
