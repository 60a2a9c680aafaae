"""Checkpoints that are whole or not there: trainable weights, optimizer, and where training stands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfalign.runs.files import hash_file, read_json, remove, replacing, write_json
from selfalign.training.group import local

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
        save_file(_weights(model), temporary / _WEIGHTS)
        save_file(_moments(model, optimizer), temporary / _OPTIMIZER)
        hashes = {name: hash_file(temporary / name) for name in (_WEIGHTS, _OPTIMIZER)}
        write_json(temporary / _STATE, {**state, "sha256": hashes})
    for old in _checkpoints(folder)[_KEPT:]:
        remove(old)


def load_checkpoint(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, agree: Callable[[int], int]
) -> tuple[dict[str, Any] | None, list[str]]:
    """Restore the newest checkpoint that is whole.

    Args:
        folder: Where the checkpoints of this training are.
        model: Gets the trained weights.
        optimizer: Gets the moments.
        agree: Told the step of the newest whole checkpoint, 0 if there is none; returns the one to go on
            from, which is an earlier one where another process lacks the newest.

    Returns:
        Its state, `None` if training starts anew; and a warning for each damaged one passed over.
    """
    warnings: list[str] = []
    whole: dict[int, Path] = {}
    for checkpoint in _checkpoints(folder):
        problem = _problem(checkpoint)
        if problem is None:
            whole[int(checkpoint.name.removeprefix("step-"))] = checkpoint
        elif not whole:
            warnings.append(f"{checkpoint.name} is damaged ({problem}) and passed over")
    step = agree(max(whole, default=0))
    if agree(int(step in whole)) == 0:
        return None, warnings
    restore_weights(whole[step] / _WEIGHTS, model)
    _restore_moments(load_file(whole[step] / _OPTIMIZER), model, optimizer)
    return read_json(whole[step] / _STATE), warnings


def restore_weights(file: Path, model: torch.nn.Module) -> None:
    """Load trainable weights saved by `save_checkpoint` or `save_weights`."""
    saved = load_file(file)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            local(parameter).copy_(saved[name])


def save_weights(file: Path, model: torch.nn.Module) -> None:
    """Write the trainable weights alone, in one step."""
    with replacing(file) as temporary:
        save_file(_weights(model), temporary)


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return what this process holds of the trainable weights."""
    return {name: local(p.detach()).cpu() for name, p in trainable(model).items()}


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
        f"{name}|{key}": local(value.detach()).cpu()
        for name, parameter in trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_moments(
    saved: dict[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    parameters = trainable(model)
    for full_name, value in saved.items():
        name, _, key = full_name.rpartition("|")
        moment = value if key == "step" else torch.zeros_like(parameters[name])
        if key != "step":
            local(moment).copy_(value)
        optimizer.state[parameters[name]][key] = moment
