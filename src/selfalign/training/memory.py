"""The memory that a training will need, without loading a weight."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from selfalign.config import Policy, Train
from selfalign.errors import ModelError
from selfalign.models.load import add_adapter, compute_dtype, pick_device
from selfalign.models.logps import CHUNK, CompletionLogps
from selfalign.models.packing import TokenSequence

_MOMENTS = 2
"""Tensors that AdamW keeps of each trained weight, in float32 as the weight."""


class Memory(NamedTuple):
    """Bytes that one process of a training holds."""

    weights: int
    optimizer: int
    gradients: int
    activations: int
    """Kept for the backward pass over `micro_batch_tokens`, weights in the computing type included."""
    logits: int
    """A chunk of them with its gradient, and the gradient that it adds to the head; with checkpointing, the
    layer that is computed again, if that is more."""

    @property
    def total(self) -> int:
        """Return the sum: all of it is held in the last forward pass of a step.

        Libraries, fragments of free memory and a GPU's own context come on top.
        """
        return sum(self)


def training_memory(directory: Path, policy: Policy, settings: Train) -> Memory:
    """Return what a training needs on the device of the policy.

    The model's forward pass is gone through with tensors that have a shape but no numbers, and what it keeps
    for the backward pass is added up; so it holds for any architecture.

    Args:
        directory: Of the model; only its configuration is read.
        policy: Device, precision and number of processes.
        settings: Of the training.

    Raises:
        ModelError: The configuration is of no architecture that transformers knows.
    """
    device = pick_device(policy)
    model = _on_meta(directory, policy, settings, device)
    with FakeTensorMode():
        _place(model, device)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        logps = CompletionLogps(model, tried=False).train()
        row = _row(settings, logps.max_length)
        precision = logps.precision(compute_dtype(policy, device))
        kept = _kept(logps, precision, row)
        layer = 0
        if settings.gradient_checkpointing:
            layer = kept // model.config.get_text_config().num_hidden_layers  # the one computed again
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()
            kept = _kept(logps, precision, row)
        head = model.get_output_embeddings().weight
    size = policy.num_processes if isinstance(policy.num_processes, int) else torch.cuda.device_count() or 1
    targets = sum(len(sequence.completion) for sequence in row)
    logits = min(CHUNK, targets * head.shape[0]) * compute_dtype(policy, device).itemsize
    return Memory(
        weights=weights // size,
        optimizer=_MOMENTS * trained // size,
        gradients=trained // size,
        activations=kept,
        logits=max(layer, 2 * logits + (head.nbytes if head.requires_grad else 0)),
    )


def available_memory(policy: Policy) -> int:
    """Return the bytes that the device of the policy has."""
    device = pick_device(policy)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _on_meta(directory: Path, policy: Policy, settings: Train, device: torch.device) -> Any:
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{directory}: the model's configuration can't be read: {error}") from error
    held = torch.float32 if settings.lora is None else compute_dtype(policy, device)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=held)
        if settings.lora is not None:
            model = add_adapter(model, settings.lora)
    return model


def _place(model: Any, device: torch.device) -> None:
    """Give the model weights on the device, as far as the mode that this is called in makes them."""
    placed: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in placed:
                    placed[id(tensor)] = _placed(tensor, device)
                if tensor is not None:
                    tensors[name] = placed[id(tensor)]


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    if not isinstance(tensor, torch.nn.Parameter):
        return empty
    return torch.nn.Parameter(empty.float() if tensor.requires_grad else empty, tensor.requires_grad)


def _row(settings: Train, max_length: int) -> list[TokenSequence]:
    """Return pairs that fill a forward pass: as much prompt as chosen and rejected completion."""
    length = min(settings.max_length, max_length, settings.micro_batch_tokens * 2 // 3)
    part = max(1, length // 2)
    pairs = max(1, settings.micro_batch_tokens // (3 * part))
    return [TokenSequence((pair,) * part, (side,) * part) for pair in range(pairs) for side in range(2)]


def _kept(logps: CompletionLogps, precision: torch.autocast, row: list[TokenSequence]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in logps.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    same: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, same), precision:
        logps(row)
    return sum(storage.nbytes() for storage in kept.values())
