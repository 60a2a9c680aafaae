import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from selfalign.config import Lora, Policy, Train
from selfalign.errors import ModelError
from selfalign.models.load import load_trainable
from selfalign.models.logps import CompletionLogps
from selfalign.models.packing import TokenSequence
from selfalign.training.memory import _row, training_memory
from selfalign.training.trainer import Objective, train

CONFIG = LlamaConfig(
    vocab_size=6000,
    hidden_size=256,
    intermediate_size=700,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=True,
)
PLAIN = Train(micro_batch_tokens=768, batch_size=1, max_length=512, max_steps=2, learning_rate=1e-6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(CONFIG).save_pretrained(directory)
    (directory / "tokenizer.json").touch()  # not read here
    return directory


def held_at_most(model: Path, policy: Policy, settings: Train, scratch: Path) -> int:
    """The most bytes of tensors that a training held at once, by the profiler of torch."""
    row = _row(settings, 2048)
    rows = [tuple(moved(sequence, by) for sequence in row) for by in (9, 99, 999, 1999)]
    settings = settings.model_copy(update={"batch_size": 2})  # two forward passes a step
    objective = Objective[tuple[TokenSequence, ...]](
        sequences=lambda row: row, weight=lambda _: 1.0, loss=lambda logps, _: (-logps.sum(), {})
    )
    logps = CompletionLogps(load_trainable(model, policy, settings.lora, dropout=0.0))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train(
            logps,
            rows,
            objective,
            settings,
            learning_rate=1e-6,
            autocast=getattr(torch, policy.precision),
            seed=0,
            scratch=scratch,
            on_warning=pytest.fail,
        )
    profiled.export_chrome_trace(str(scratch / "trace.json"))
    events = json.loads((scratch / "trace.json").read_text())["traceEvents"]
    more = max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")
    return more + sum(parameter.nbytes for parameter in logps.parameters())


def moved(sequence: TokenSequence, by: int) -> TokenSequence:
    """Another sequence as long."""
    return TokenSequence(tuple(i + by for i in sequence.prompt), tuple(i + by for i in sequence.completion))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        PLAIN.model_copy(update={"gradient_checkpointing": True}),
        PLAIN.model_copy(update={"lora": Lora(rank=8)}),
    ],
    ids=["all weights", "checkpointing", "adapters"],
)
def test_the_plan_is_within_a_fifth_of_what_training_holds(
    model: Path, settings: Train, precision: Any, tmp_path: Path
):
    policy = Policy(device="cpu", precision=precision)
    found = held_at_most(model, policy, settings, tmp_path)
    assert training_memory(model, policy, settings).total == pytest.approx(found, rel=0.2)


def test_the_parts_are_those_of_the_weights(model: Path):
    policy, weights = (
        Policy(device="cpu", precision="float32"),
        sum(p.nbytes for p in AutoModelForCausalLM.from_pretrained(model).parameters()),
    )
    memory = training_memory(model, policy, PLAIN)
    assert (memory.weights, memory.optimizer, memory.gradients) == (weights, 2 * weights, weights)
    shared = training_memory(model, policy.model_copy(update={"num_processes": 2}), PLAIN)
    assert (shared.weights, shared.optimizer, shared.activations) == (
        weights // 2,
        weights,
        memory.activations,
    )


def test_a_plan_leaves_nothing_of_itself_behind(model: Path):
    policy = Policy(device="cpu", precision="float32")
    training_memory(model, policy, PLAIN)
    logps = CompletionLogps(load_trainable(model, policy, None, dropout=0.0))
    assert logps.not_packed is None
    assert logps([TokenSequence((1, 2), (3,) * 200)]).item() < 0


def test_an_unknown_architecture_is_an_error_with_its_place(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such"}')
    with pytest.raises(ModelError, match="configuration can't be read"):
        training_memory(tmp_path, Policy(), PLAIN)
