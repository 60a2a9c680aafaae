"""Checkpoints that are whole or not there: trainable weights, optimizer, and where training stands."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfalign.runs.files import hash_file, read_json, remove, replacing, write_json

_KEPT = 2
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that train, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write a checkpoint in one step and drop all but the newest two.

    Args:
        folder: Where the checkpoints of this training are.
        model: Its trainable weights are saved.
        optimizer: Its moments are saved; its hyperparameters come from the recipe.
        state: JSON values; `step` names the checkpoint.
    """
    with replacing(folder / f"step-{state['step']:08d}") as temporary:
        temporary.mkdir()
        save_file({n: p.detach().cpu() for n, p in trainable(model).items()}, temporary / _WEIGHTS)
        save_file(_moments(model, optimizer), temporary / _OPTIMIZER)
        hashes = {name: hash_file(temporary / name) for name in (_WEIGHTS, _OPTIMIZER)}
        write_json(temporary / _STATE, {**state, "sha256": hashes})
    for old in _checkpoints(folder)[_KEPT:]:
        remove(old)


def load_checkpoint(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any] | None, list[str]]:
    """Restore the newest checkpoint that is whole.

    Returns:
        Its state, `None` if there is no whole one; and a warning for each damaged one passed over.
    """
    warnings: list[str] = []
    for checkpoint in _checkpoints(folder):
        problem = _problem(checkpoint)
        if problem is None:
            restore_weights(checkpoint / _WEIGHTS, model)
            _restore_moments(load_file(checkpoint / _OPTIMIZER), model, optimizer)
            return read_json(checkpoint / _STATE), warnings
        warnings.append(f"{checkpoint.name} is damaged ({problem}) and passed over")
    return None, warnings


def restore_weights(file: Path, model: torch.nn.Module) -> None:
    """Load trainable weights saved by `save_checkpoint` or `save_weights`."""
    saved = load_file(file)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(saved[name])


def save_weights(file: Path, model: torch.nn.Module) -> None:
    """Write the trainable weights alone, in one step."""
    with replacing(file) as temporary:
        save_file({n: p.detach().cpu() for n, p in trainable(model).items()}, temporary)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _problem(checkpoint: Path) -> str | None:
    try:
        hashes = read_json(checkpoint / _STATE)["sha256"]
        changed = [name for name, digest in hashes.items() if hash_file(checkpoint / name) != digest]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return str(error)
    return f"{changed[0]} changed" if changed else None


def _moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}|{key}": value.detach().cpu()
        for name, parameter in trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_moments(
    saved: dict[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    parameters = trainable(model)
    for full_name, value in saved.items():
        name, _, key = full_name.rpartition("|")
        device = "cpu" if key == "step" else parameters[name].device
        optimizer.state[parameters[name]][key] = value.to(device)
