import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from selfalign.config import Lora, Policy
from selfalign.errors import ModelError
from selfalign.models.load import compute_dtype, load_model, load_trainable, pick_device

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def edit_config(model: Path, **values: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def saved(model: Any, tiny_model: Path, directory: Path) -> Path:
    """Save a model of another architecture with the tokenizer of the tiny one."""
    shutil.copytree(tiny_model, directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory)
    return directory


def is_random(model: Any) -> bool:
    """Whether a training pass differs from one to the next."""
    with torch.no_grad():
        return not torch.equal(model.train()(IDS).logits, model(IDS).logits)


# Types


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_full_training_holds_its_weights_in_float32_whatever_the_precision(
    tiny_model: Path, tiny_policy: Policy, precision: str
):
    policy = tiny_policy.model_copy(update={"precision": precision})
    loaded = load_trainable(tiny_model, policy, None, dropout=0.0)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in loaded.parameters())


def test_adapters_raise_no_warnings_of_libraries(tiny_model: Path, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_trainable(tiny_model, Policy(), Lora(), dropout=0.0).save_pretrained(tmp_path)
        load_trainable(tmp_path, Policy(), Lora(), dropout=0.0)


def test_adapters_train_in_float32_over_a_frozen_base_in_the_computing_type(
    tiny_model: Path, tiny_policy: Policy
):
    policy = tiny_policy.model_copy(update={"precision": "bfloat16"})
    loaded = load_trainable(tiny_model, policy, Lora(rank=2, target_modules=("q_proj",)), dropout=0.0)
    types = {(p.requires_grad, p.dtype) for p in loaded.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    trained = [name for name, p in loaded.named_parameters() if p.requires_grad]
    assert all("q_proj" in name for name in trained)


def test_the_asked_precision_is_the_computing_type():
    cpu = torch.device("cpu")
    assert compute_dtype(Policy(precision="float32"), cpu) == torch.float32
    assert compute_dtype(Policy(precision="bfloat16"), cpu) == torch.bfloat16
    assert compute_dtype(Policy(), torch.device("mps")) == torch.float32
    assert compute_dtype(Policy(), cpu) in (torch.float32, torch.bfloat16)
    assert pick_device(Policy(device="cpu")) == cpu


# Dropout


def test_dropout_acts_in_training_alone(tiny_model: Path, tiny_policy: Policy):
    loaded = load_model(tiny_model, tiny_policy, torch.float32, dropout=0.3)
    assert is_random(loaded)
    with torch.no_grad():
        plain = load_model(tiny_model, tiny_policy, torch.float32)
        assert torch.equal(loaded.eval()(IDS).logits, plain.eval()(IDS).logits)
    assert not is_random(plain)


def test_dropout_is_set_in_every_place_that_has_it(tiny_model: Path, tiny_policy: Policy, tmp_path: Path):
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=259, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
    )
    directory = saved(gpt2, tiny_model, tmp_path / "gpt2")
    loaded = load_model(directory, tiny_policy, torch.float32, dropout=0.3)
    places = [module.p for module in loaded.modules() if isinstance(module, torch.nn.Dropout)]
    assert set(places) == {0.3}
    assert len(places) == 4  # embedding, attention weights, attention output, MLP


def test_dropout_is_set_where_the_configuration_says_a_whole_zero(model: Path, tiny_policy: Policy):
    edit_config(model, attention_dropout=0)
    assert is_random(load_model(model, tiny_policy, torch.float32, dropout=0.3))


def test_dropout_leaves_the_saved_configuration_alone(tiny_model: Path, tiny_policy: Policy, tmp_path: Path):
    load_model(tiny_model, tiny_policy, torch.float32, dropout=0.3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention_dropout"] == 0.0


# Refusals


def test_code_that_comes_with_a_model_is_never_run(model: Path, tiny_policy: Policy, tmp_path: Path):
    trace = tmp_path / "was-run"
    source = f"open({str(trace)!r}, 'w').close()\nclass Model: pass\nclass Config: pass\n"
    (model / "custom.py").write_text(source)
    edit_config(
        model,
        model_type="unheard-of",
        auto_map={"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"},
    )
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(model, tiny_policy, torch.float32)
    assert not trace.exists()


def test_a_known_architecture_ignores_the_code_beside_it(model: Path, tiny_policy: Policy, tmp_path: Path):
    trace = tmp_path / "was-run"
    (model / "custom.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Model: pass\n")
    edit_config(model, auto_map={"AutoModelForCausalLM": "custom.Model"})
    assert type(load_model(model, tiny_policy, torch.float32)).__name__ == "LlamaForCausalLM"
    assert not trace.exists()


def test_damaged_weights_are_refused(model: Path, tiny_policy: Policy):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="copy: the model can't be loaded"):
        load_model(model, tiny_policy, torch.float32)


def test_weights_of_another_shape_are_refused(model: Path, tiny_policy: Policy):
    edit_config(model, intermediate_size=128)
    with pytest.raises(ModelError, match="copy: the model can't be loaded"):
        load_model(model, tiny_policy, torch.float32)


def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(model: Path, tiny_policy: Policy):
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"copy: .*model\.norm\.weight"):
        load_model(model, tiny_policy, torch.float32)
