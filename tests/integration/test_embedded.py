"""The quickstart recipe with the embedded model, made as small as it can be."""

import importlib.util
from pathlib import Path

import pytest

from selfalign.models.source import EMBEDDED_PACKAGE
from selfalign.runs.files import read_json

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec(EMBEDDED_PACKAGE) is None, reason=f"{EMBEDDED_PACKAGE} is not installed"
)
def test_the_embedded_model_goes_through_the_loop(tmp_path: Path, call):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir = tmp_path / "run"
    overrides = (
        "num_iterations=1",
        "data.ift.limit=8",
        "data.ranked.limit=16",
        "prompts.per_iteration=4",
        "prompts.requests_per_round=8",
        "candidates.sampling.max_new_tokens=40",
        "evaluation.samples=1",
    )
    assert call("run", QUICKSTART, *overrides, "--run-dir", run_dir) == 0
    model = AutoModelForCausalLM.from_pretrained(run_dir / "iteration-1" / "model")
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "iteration-1" / "model")
    turns = [
        {"role": "user", "content": "What is the capital of France?"},
        # The words to begin with are a coin's toss to this model, what it knows is not.
        {"role": "assistant", "content": "The capital of France is"},
    ]
    ids = tokenizer.apply_chat_template(
        turns, continue_final_message=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**ids, do_sample=False, max_new_tokens=1)[0][ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == " Paris"
    assert read_json(run_dir / "eft" / "manifests" / "judgments.json")["figures"]["parse_rate"] > 0.3
