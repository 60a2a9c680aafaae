import json
import signal
import sys
from types import SimpleNamespace

import pytest

from selfalign.cli.main import main

RECIPE = """
policy: { model: model }
engine: { kind: scripted }
num_iterations: 2
prompts: { per_iteration: 10, requests_per_round: 5, max_rounds: 3 }
"""


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Give words to the command in an empty directory; what it answers, and nothing but its answer."""
    monkeypatch.chdir(tmp_path)
    terminate = signal.getsignal(signal.SIGTERM)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["selfalign", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return SimpleNamespace(code=stopped.value.code, out=out, err=err)

    yield call
    signal.signal(signal.SIGTERM, terminate)


CONFIG = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture
def recipe(tmp_path):
    """A recipe on the starter data, with a model directory that is whole enough to plan with."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).write_text("{}")
    (model / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return "mine.yaml"
