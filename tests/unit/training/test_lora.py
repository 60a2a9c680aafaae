import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfalign.config import Lora, Policy, Train
from selfalign.errors import ModelError, TrainingError
from selfalign.models.load import load_adapter, load_chat, load_model, load_trainable
from selfalign.models.logps import CompletionLogps
from selfalign.models.merge import merge_adapter
from selfalign.models.source import check_directory
from selfalign.runs.events import EventLog
from selfalign.runs.work import Work
from selfalign.training.session import TrainingSession
from selfalign.training.sft import sft_objective
from selfalign.training.trainer import Objective

LORA = Train(learning_rate=1e-2, batch_size=4, epochs=3, lora=Lora(rank=4, alpha=8))
FULL = Train(learning_rate=1e-2, batch_size=4, epochs=3)
IDS = torch.arange(40).reshape(2, 20)


def work_in(directory: Path) -> Work:
    directory.mkdir(parents=True, exist_ok=True)
    return Work("test", directory, "train", EventLog(directory / "events.jsonl"))


@pytest.fixture
def session_of(tiny_policy: Policy, sequences_of: Any, tmp_path: Path) -> Callable[..., Path]:
    """Train from one model directory to another and return that."""

    def train(
        start: Path, name: str, settings: Train, objective: Objective[Any] | None = None, seed: int = 0
    ) -> Path:
        with TrainingSession(start, tiny_policy, settings) as session:
            session.train(
                work_in(tmp_path / name),
                sequences_of(8),
                objective or sft_objective(),
                settings.learning_rate,
                seed,
            )
        return tmp_path / name / "model"

    return train


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def logits_of(directory: Path, policy: Policy) -> torch.Tensor:
    return logits(load_model(directory, policy, torch.float32))


def test_only_the_adapter_trains(
    tiny_model: Path, tiny_policy: Policy, run: Any, sequences_of: Any, tmp_path: Path
):
    model = CompletionLogps(load_trainable(tiny_model, tiny_policy, LORA.lora, dropout=0.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, sequences_of(8), tmp_path, LORA)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert len(changed) == 2 * 2 * 7  # A and B in two layers of seven linear maps


def test_a_lora_training_writes_an_adapter_that_loads_merged(
    tiny_model: Path, tiny_policy: Policy, session_of: Any
):
    adapter = session_of(tiny_model, "m1", LORA)
    check_directory(adapter)
    assert (adapter / "adapter_config.json").is_file()
    assert not (adapter / "model.safetensors").exists()
    loaded = load_model(adapter, tiny_policy, torch.float32)
    assert type(loaded) is type(AutoModelForCausalLM.from_pretrained(tiny_model))
    with_adapter = logits(load_adapter(adapter, tiny_policy, torch.float32, trainable=False))
    torch.testing.assert_close(logits(loaded), with_adapter, rtol=0, atol=1e-5)
    assert (with_adapter - logits_of(tiny_model, tiny_policy)).abs().max() > 0.1


def test_the_merged_model_answers_as_base_and_adapter(
    tiny_model: Path, tiny_policy: Policy, session_of: Any, tmp_path: Path
):
    adapter = session_of(tiny_model, "m1", LORA)
    merge_adapter(adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert merged.dtype == torch.float32
    with_adapter = logits(load_adapter(adapter, tiny_policy, torch.float32, trainable=False))
    torch.testing.assert_close(logits(merged), with_adapter, rtol=0, atol=1e-5)
    chat = load_chat(tmp_path / "merged", tiny_policy)
    assert chat.end_of_turn == load_chat(tiny_model, tiny_policy).end_of_turn


def test_merging_refuses_a_whole_model_and_an_existing_output(
    tiny_model: Path, session_of: Any, tmp_path: Path
):
    with pytest.raises(ModelError, match="not an adapter directory"):
        merge_adapter(tiny_model, tmp_path / "merged")
    adapter = session_of(tiny_model, "m1", LORA)
    (tmp_path / "there").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        merge_adapter(adapter, tmp_path / "there")


def test_a_second_training_goes_on_with_the_same_adapter(
    tiny_model: Path, tiny_policy: Policy, session_of: Any
):
    first = session_of(tiny_model, "m1", LORA)
    started = load_trainable(first, tiny_policy, LORA.lora, dropout=0.0)
    trains = {name for name, p in started.named_parameters() if p.requires_grad}
    assert trains == {name for name, _ in started.named_parameters() if "lora_" in name}
    torch.testing.assert_close(logits(started), logits_of(first, tiny_policy), rtol=0, atol=1e-5)

    second = session_of(first, "m2", LORA)
    base = [
        json.loads((d / "adapter_config.json").read_text())["base_model_name_or_path"]
        for d in (first, second)
    ]
    assert base == [str(tiny_model)] * 2
    one, two = (load_file(d / "adapter_model.safetensors") for d in (first, second))
    assert one.keys() == two.keys()
    assert all(not torch.equal(one[name], two[name]) for name in one)


def test_the_same_seed_trains_the_same_adapter_whatever_was_drawn_before(tiny_model: Path, session_of: Any):
    first = load_file(session_of(tiny_model, "one", LORA) / "adapter_model.safetensors")
    torch.manual_seed(123)
    again = load_file(session_of(tiny_model, "two", LORA) / "adapter_model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_full_training_from_an_adapter_starts_at_the_merged_model(
    tiny_model: Path, tiny_policy: Policy, session_of: Any
):
    adapter = session_of(tiny_model, "m1", LORA)
    started = load_trainable(adapter, tiny_policy, None, dropout=0.0)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in started.parameters())
    whole = session_of(adapter, "m2", FULL)
    assert not (whole / "adapter_config.json").exists()
    assert not torch.equal(logits_of(whole, tiny_policy), logits_of(adapter, tiny_policy))


def test_an_adapter_stands_on_its_base_from_any_directory(
    tiny_model: Path, tiny_policy: Policy, session_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tiny_model.parent)
    adapter = session_of(Path(tiny_model.name), "m1", LORA)
    monkeypatch.chdir(tmp_path)
    logits_of(adapter, tiny_policy)


def test_an_adapter_without_its_base_is_refused(tiny_model: Path, tiny_policy: Policy, session_of: Any):
    adapter = session_of(tiny_model, "m1", LORA)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/nowhere/base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="its base /nowhere/base is not there"):
        load_model(adapter, tiny_policy, torch.float32)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_full_training_saves_a_whole_model_in_the_asked_type(
    tiny_model: Path, session_of: Any, dtype: str, expected: torch.dtype
):
    saved = session_of(tiny_model, "m1", FULL.model_copy(update={"save_dtype": dtype}))
    check_directory(saved)
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {expected}
    assert AutoTokenizer.from_pretrained(saved).chat_template is not None
    assert "selfalign" not in (saved / "config.json").read_text()  # a name that only we know how to load
    rows = [json.loads(line) for line in (saved.parent / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_training_that_fails_writes_no_model(tiny_model: Path, session_of: Any, tmp_path: Path):
    objective = replace(sft_objective(), loss=lambda logps, _: (logps.sum() * float("nan"), {}))
    with pytest.raises(TrainingError, match="no model was saved"):
        session_of(tiny_model, "m1", FULL, objective)
    assert not (tmp_path / "m1" / "model").exists()
    assert not (tmp_path / "m1" / "training.jsonl").exists()


def test_sequences_are_limited_by_recipe_and_model(tiny_model: Path, tiny_policy: Policy):
    with TrainingSession(tiny_model, tiny_policy, FULL.model_copy(update={"max_length": 4096})) as session:
        assert session.max_length == 1024
    with TrainingSession(tiny_model, tiny_policy, FULL.model_copy(update={"max_length": 100})) as session:
        assert session.max_length == 100
