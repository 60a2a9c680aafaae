"""Merging a LoRA adapter into its base."""

from pathlib import Path

import torch

from selfalign.config import Policy
from selfalign.errors import ModelError
from selfalign.models.load import load_chat, load_model
from selfalign.runs.files import replacing


def merge_adapter(adapter: Path, output: Path) -> None:
    """Write the whole model that an adapter directory stands for, in float32.

    Raises:
        ModelError: It is no adapter directory, its base is missing, or the output exists.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter}: not an adapter directory (adapter_config.json is missing)")
    if output.exists():
        raise ModelError(f"{output}: exists already; give another directory")
    policy = Policy(device="cpu")
    model = load_model(adapter, policy, torch.float32)
    with replacing(output) as temporary:
        model.save_pretrained(temporary)
        load_chat(adapter, policy).tokenizer.save_pretrained(temporary)
