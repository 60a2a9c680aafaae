"""A whole run in seconds: a tiny random model that trains, and the scripted engine that talks."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign.cli.main import main

Call = Callable[..., int]
Command = Callable[..., list[str]]

RECIPE = """\
policy: {{ model: {model}, device: cpu, precision: float32 }}
engine: {{ kind: scripted }}
data:
  ift: {{ path: starter, limit: 24 }}
  ranked: {{ paths: [starter], limit: 24 }}
sft: &train {{ learning_rate: 1.0e-3, batch_size: 4, checkpoint_every: 2, max_length: 8192 }}
eft: {{ agreement: per_reply, target: score, train: *train }}
prompts: {{ per_iteration: 30, requests_per_round: 16 }}
candidates: {{ n: 4, sampling: {{ max_new_tokens: 30 }} }}
dpo: {{ train: *train }}
evaluation: {{ bootstrap: 100 }}
"""
RLCD = """\
method: rlcd
policy: {{ model: {model}, device: cpu, precision: float32 }}
engine: {{ kind: scripted }}
data: {{ paths: [starter], limit: 60 }}
contrast: {{ strength_pairs: 8 }}
dpo: {{ train: {{ learning_rate: 1.0e-3, batch_size: 8, checkpoint_every: 2, max_length: 8192 }} }}
evaluation: {{ max_new_tokens: 30 }}
"""


@pytest.fixture(scope="session")
def tiny_recipe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe that runs to M3 in seconds."""
    folder = tmp_path_factory.mktemp("recipe")
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = 8192  # a byte is a token here, and a rubric has 1,500 of them
    (model / "config.json").write_text(json.dumps(config))
    (folder / "tiny.yaml").write_text(RECIPE.format(model=model), encoding="utf-8")
    return folder / "tiny.yaml"


@pytest.fixture(scope="session")
def rlcd_recipe(tiny_recipe: Path) -> Path:
    """Return an RLCD recipe that runs in seconds, on the model of the tiny recipe."""
    path = tiny_recipe.parent / "rlcd.yaml"
    path.write_text(RLCD.format(model=tiny_recipe.parent / "model"), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def command(tiny_recipe: Path) -> Command:
    """Return the words that run a recipe, the tiny one if none is given, as a user would."""

    def words(run_dir: Path, *more: str, recipe: Path = tiny_recipe) -> list[str]:
        return [
            sys.executable, "-c", "from selfalign.cli.main import main; main()",
            "run", str(recipe), *more, "--run-dir", str(run_dir),
        ]  # fmt: skip

    return words


@pytest.fixture(scope="session")
def finished_run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that was never interrupted; nothing may write into it."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(run_dir), check=True, capture_output=True, text=True)
    return run_dir


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs the command line in this process and gives its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["selfalign", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    return run
