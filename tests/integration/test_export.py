"""What a run exports, read back by the libraries that it is for, and by our own readers."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfalign.data import read_pairs
from selfalign.export.formats import SUFFIX
from selfalign.records import PreferencePair
from selfalign.runs.files import hash_file, read_json, read_rows


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what `datasets` converts out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def pairs_of(run: Path) -> list[PreferencePair]:
    files = [run / f"iteration-{t}" / "pairs.jsonl" for t in (1, 2)]
    return [pair for file in files for pair in read_rows(file, PreferencePair)]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("format", SUFFIX)
def test_pairs_load_and_come_back_the_same(call, finished_run: Path, tmp_path: Path, format: str):
    out = tmp_path / "out"
    assert call("export", finished_run, out, "--to", format) == 0
    loaded = load_dataset(str(out), split="train")
    expected = pairs_of(finished_run)
    assert loaded["pair_id"] == [pair.pair_id for pair in expected]
    # `datasets` reads JSON arrays to ten digits.
    assert list(loaded["score_chosen"]) == pytest.approx([pair.reward_chosen for pair in expected])
    assert set(loaded["iteration"]) == {1, 2}
    assert list(read_pairs(str(out / f"train.{SUFFIX[format]}"), len, Counter())) == expected
    if format == "llamafactory":
        (entry,) = read_json(out / "dataset_info.json").values()
        assert (out / entry["file_name"]).is_file()
        assert set(entry["columns"].values()) <= set(loaded.column_names)


ONE_STEP = {
    "max_steps": 1, "per_device_train_batch_size": 2, "bf16": False, "use_cpu": True, "report_to": [],
    "logging_steps": 1,
}  # fmt: skip


def test_trl_takes_a_dpo_step_on_exported_pairs(call, finished_run: Path, tiny_recipe: Path, tmp_path: Path):
    import trl

    assert call("export", finished_run, tmp_path / "out", "--iteration", 1) == 0
    model = tiny_recipe.parent / "model"
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.DPOConfig(output_dir=str(tmp_path / "trl"), **ONE_STEP),
        train_dataset=load_dataset(str(tmp_path / "out"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    log = next(row for row in trainer.state.log_history if "loss" in row)
    assert log["loss"] == pytest.approx(0.6931, abs=1e-3)  # an untrained policy is its own reference


@pytest.mark.parametrize("what", ["ift", "eft"])
def test_trl_takes_an_sft_step_on_exported_examples(
    call, finished_run: Path, tiny_recipe: Path, tmp_path: Path, what: str
):
    import trl

    assert call("export", finished_run, tmp_path / "out", "--what", what) == 0
    model = tiny_recipe.parent / "model"
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.SFTConfig(output_dir=str(tmp_path / "trl"), **ONE_STEP),
        train_dataset=load_dataset(str(tmp_path / "out"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    assert any(row.get("loss", 0) > 0 for row in trainer.state.log_history)


@pytest.mark.parametrize("format", ["trl", "parquet"])
@pytest.mark.parametrize(("what", "key"), [("candidates", "completion_id"), ("judgments", "judgment_id")])
def test_candidates_and_judgments_carry_their_prompts(
    call, finished_run: Path, tmp_path: Path, format: str, what: str, key: str
):
    words = ("--to", format, "--what", what, "--iteration", 2)
    assert call("export", finished_run, tmp_path / "out", *words) == 0
    loaded = load_dataset(str(tmp_path / "out"), split="train")
    rows = lines(finished_run / "iteration-2" / f"{what}.jsonl")
    assert loaded[key] == [row[key] for row in rows]
    prompts = lines(finished_run / "iteration-2" / "prompts.jsonl")
    asked = {row["prompt_id"]: row["messages"] for row in prompts}
    assert loaded["prompt"] == [asked[row["prompt_id"]] for row in rows]


def test_the_card_of_rows_has_a_header_counts_and_hashes(call, finished_run: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert call("export", finished_run, out, "--license", "cc-by-4.0") == 0
    _, header, body = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    stated = yaml.safe_load(header)
    assert stated["license"] == "cc-by-4.0"
    assert stated["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "train.jsonl"}]}
    ]
    assert hash_file(out / "train.jsonl") in body
    manifest = read_json(finished_run / "manifest.json")
    for digest in (manifest["model"]["fingerprint"], manifest["data"]["ift"]["path"]):
        assert digest in body
    assert "| Pairs: kept |" in body
    assert "SFT baseline" in body
    assert str(finished_run.parent) not in body


def test_a_model_is_whole_and_has_a_card(call, finished_run: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert call("export", finished_run, out, "--what", "M2") == 0
    written, own = (
        AutoModelForCausalLM.from_pretrained(place).state_dict()
        for place in (out, finished_run / "iteration-1" / "model")
    )
    assert written.keys() == own.keys()
    assert all(torch.equal(weight, own[name]) for name, weight in written.items())
    _, header, body = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "transformers"
    assert "license" not in yaml.safe_load(header)  # nobody has said one
    assert "Not stated" in body
    assert hash_file(out / "model.safetensors") in body
    capsys.readouterr()
    assert call("push", out, "me/model", "--dry-run") == 0
    assert "as a model to me/model (private if new)" in capsys.readouterr().out


def test_an_adapter_is_exported_as_a_whole_model(call, tiny_recipe: Path, tmp_path: Path):
    run, out = tmp_path / "run", tmp_path / "out"
    words = ("num_iterations=1", "start=M1", "dpo.train.lora={rank: 2}", "--run-dir", run)
    assert call("run", tiny_recipe, *words) == 0
    assert (run / "iteration-1" / "model" / "adapter_config.json").is_file()
    assert call("export", run, out, "--what", "model") == 0
    assert not (out / "adapter_config.json").exists()
    turns = [{"role": "user", "content": "Hello"}]
    ids = AutoTokenizer.from_pretrained(out).apply_chat_template(turns, return_tensors="pt", return_dict=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_recipe.parent / "model")
    whole = AutoModelForCausalLM.from_pretrained(out)
    assert not torch.equal(whole(**ids).logits, base(**ids).logits)
    assert call("merge", run / "iteration-1" / "model", tmp_path / "merged") == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(whole(**ids).logits, merged(**ids).logits)


def test_an_rlcd_run_exports_held_out_pairs_as_a_split(call, command, rlcd_recipe: Path, tmp_path: Path):
    run, out = tmp_path / "run", tmp_path / "out"
    assert call(*command(run, recipe=rlcd_recipe)[3:]) == 0
    assert call("export", run, out) == 0
    loaded = load_dataset(str(out))
    for split, file in (("train", "pairs.jsonl"), ("test", "held_out_pairs.jsonl")):
        pairs = list(read_rows(run / "contrast" / file, PreferencePair))
        assert list(read_pairs(str(out / f"{split}.jsonl"), len, Counter())) == pairs
        assert loaded[split]["contrast_id"] == [pair.contrast_id for pair in pairs]
    assert "implicit-reward accuracy" not in (out / "README.md").read_text(encoding="utf-8")
    assert call("export", run, tmp_path / "model", "--what", "model") == 0
    assert "implicit-reward accuracy" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--iteration", "7"), "no pairs of iteration 7 yet; finished are: ift, eft, pairs of iteration 1"),
        (("--what", "M9"), "no model M9 yet; finished are: SFT, M1, M2, M3"),
        (("--to", "alpaca"), "--to alpaca: not one of trl"),
        (("--what", "model", "--to", "trl"), "for rows, not for model"),
        (("--what", "judgments", "--to", "autoalign"), "export them with --to trl"),
    ],
)
def test_what_cannot_be_exported_is_refused(call, finished_run: Path, tmp_path: Path, capsys, words, message):
    assert call("export", finished_run, tmp_path / "out", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(call, finished_run: Path, tmp_path: Path, capsys):
    (tmp_path / "mine").write_text("precious")
    assert call("export", finished_run, tmp_path) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "precious"
