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
    with replacing(output) as temporary:
        write_whole(adapter, temporary)


def write_whole(adapter: Path, directory: Path) -> None:
    """Write the files of the whole model that an adapter directory stands for, in float32.

    Raises:
        ModelError: Its base is missing.
    """
    policy = Policy(device="cpu")
    load_model(adapter, policy, torch.float32).save_pretrained(directory)
    load_chat(adapter, policy).tokenizer.save_pretrained(directory)
