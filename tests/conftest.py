import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from selfalign.config import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# No test reaches the hub; those marked `network` run with HF_HUB_OFFLINE=0.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads only get into each other's way on matrices this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes says nothing about it: the machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

CHATML = (resources.files("selfalign") / "prompts" / "templates" / "chatml.jinja").read_text()


def _make_tokenizer(
    *,
    special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    template: str | None = CHATML,
    bos: str | None = None,
    eos: str | None = "<|im_end|>",
) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(list(special))
    if bos is not None:
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, fast.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=bos,
        eos_token=eos,
        pad_token=special[0] if special else None,
        chat_template=template,
        model_max_length=1024,
    )


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Build a tokenizer with a token a byte; `bos` is also put first by its post-processor."""
    return _make_tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random 2-layer Llama with a byte tokenizer; the same one every time. Read only."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,  # wide enough that context and positions shape what it says
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    directory = tmp_path_factory.mktemp("tiny") / "model"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_policy(tiny_model: Path) -> Policy:
    """The tiny model as a recipe names it, computed in float32 on the processor."""
    return Policy(model=str(tiny_model), precision="float32", device="cpu")
