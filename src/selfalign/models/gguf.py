"""Turning a GGUF file into an ordinary model directory, once."""

from pathlib import Path

from filelock import FileLock

from selfalign.errors import ModelError
from selfalign.runs.files import replacing


def convert_gguf(file: Path, target: Path) -> Path:
    """De-quantise a GGUF file to bfloat16 safetensors with its tokenizer, unless that is done.

    A model that transformers loads from GGUF is flagged as quantised and refuses to be saved, so an
    unflagged one is built from its configuration and takes over the weights.

    Args:
        file: The GGUF file.
        target: Directory to make; another process that makes it at the same time is waited for.

    Raises:
        ModelError: transformers or the gguf package can't read the file.
    """
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not (target / "config.json").is_file():
            _convert(file, target)
    return target


def _convert(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        flagged = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    except (ImportError, ValueError, OSError, NotImplementedError) as error:
        raise ModelError(f"{file}: can't be de-quantised: {error}") from error
    config = type(flagged.config).from_dict(
        {k: v for k, v in flagged.config.to_dict().items() if k != "quantization_config"}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(flagged.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    with replacing(target) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
