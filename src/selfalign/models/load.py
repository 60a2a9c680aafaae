"""Loading models and tokenizers: safetensors only, no remote code, adapters included."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from selfalign.config import Lora, Policy
from selfalign.errors import ModelError
from selfalign.models.chat import Chat
from selfalign.models.source import check_directory

_DROPOUT_FIELDS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")


def pick_device(policy: Policy) -> torch.device:
    """Return the device that the recipe asks for; `auto` prefers a GPU."""
    if policy.device != "auto":
        return torch.device(policy.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def compute_dtype(policy: Policy, device: torch.device) -> torch.dtype:
    """Return the type of matrix products; `auto` is bfloat16 where the processor computes in it."""
    if policy.precision != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[policy.precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    elif device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def load_chat(path: Path, policy: Policy) -> Chat:
    """Load the tokenizer of a model directory with its chat format.

    Raises:
        ModelError: It has no usable tokenizer or template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{path}: the tokenizer can't be loaded: {error}") from error
    return Chat(tokenizer, policy.chat_template)


def load_model(path: Path, policy: Policy, dtype: torch.dtype, *, dropout: float = 0.0) -> Any:
    """Load a model for inference or as the start of full training; an adapter is merged into its base.

    Args:
        path: A model directory, or an adapter directory whose base is where it says.
        policy: Device and placement.
        dtype: Type of the weights.
        dropout: Set in every dropout field that the architecture has.

    Raises:
        ModelError: It can't be loaded safely, or dropout is asked for and the architecture has none.
    """
    if (path / "adapter_config.json").is_file():
        merged = load_adapter(path, policy, dtype, dropout=dropout, trainable=False).merge_and_unload()
        return merged.requires_grad_(True)  # the adapter had frozen its base
    check_directory(path)
    logging.disable_progress_bar()
    placement = {"device_map": "auto"} if policy.device_map else {}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placement,
        )
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: the model can't be loaded: {error}") from error
    if found["missing_keys"]:  # transformers would make them up at random
        raise ModelError(
            f"{path}: the weights lack {min(found['missing_keys'])}; fetch the whole model again"
        )
    if dropout:
        fields = [name for name in _DROPOUT_FIELDS if hasattr(model.config, name)]
        if not fields:
            raise ModelError(f"{path}: dropout {dropout} is asked for, but this architecture has none")
        for module in model.modules():
            for name in fields:
                if hasattr(module, name) and isinstance(getattr(module, name), int | float):
                    setattr(module, name, dropout)
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
    return model if policy.device_map else model.to(pick_device(policy))


def load_adapter(
    path: Path, policy: Policy, dtype: torch.dtype, *, dropout: float = 0.0, trainable: bool
) -> Any:
    """Load an adapter directory on top of its base model.

    Raises:
        ModelError: The adapter, or the base it names, can't be loaded.
    """
    from peft import PeftConfig, PeftModel

    base = Path(str(PeftConfig.from_pretrained(path).base_model_name_or_path))
    if not base.is_dir():
        raise ModelError(f"{path}: its base {base} is not there; restore it or edit adapter_config.json")
    model = load_model(base, policy, dtype, dropout=dropout)
    with _quiet_peft():
        return PeftModel.from_pretrained(model, path, is_trainable=trainable)


def load_trainable(path: Path, policy: Policy, lora: Lora | None, *, dropout: float) -> Any:
    """Load the start of a training: float32 weights, or adapters over a frozen base.

    With `lora`, an adapter directory goes on with its adapter and any other model gets a fresh one; the
    frozen base is held in the computing type. Without, all weights train in float32.
    """
    if lora is None:
        return load_model(path, policy, torch.float32, dropout=dropout)
    dtype = compute_dtype(policy, pick_device(policy))
    if (path / "adapter_config.json").is_file():
        model = load_adapter(path, policy, dtype, dropout=dropout, trainable=True)
    else:
        # The adapter names its base by this path, and has to find it from any working directory.
        model = add_adapter(load_model(path.absolute(), policy, dtype, dropout=dropout), lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def add_adapter(model: Any, lora: Lora) -> Any:
    """Return the model with a fresh adapter, frozen but for that."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)  # an adapter starts from drawn numbers: the same ones in every run
    targets = lora.target_modules
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    with _quiet_peft():
        return get_peft_model(model, config)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Keep to ourselves that peft asks transformers for a property by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
