from pathlib import Path

import pytest
import yaml

from selfalign.recipes import load_preset, load_recipe, recipe_schema, resolve_recipe

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))

PAPER = {
    "data.ift.selection": "paper",
    "data.ift.language": "en",
    "data.ift.limit": 3200,
    "sft.learning_rate": 5.5e-6,
    "sft.min_learning_rate": 1.1e-6,
    "sft.schedule": "cosine",
    "sft.batch_size": 16,
    "sft.dropout": 0.1,
    "eft.agreement": "ranking",
    "eft.target": "rationale",
    "eft.balance_scores": True,
    "eft.training": "joint",
    "eft.train.learning_rate": 5.5e-6,
    "eft.train.min_learning_rate": 1.1e-6,
    "eft.train.batch_size": 16,
    "eft.train.dropout": 0.1,
    "prompts.shots": 8,
    "prompts.generated_shots": 2,
    "prompts.sampling.temperature": 0.6,
    "prompts.sampling.top_p": 0.9,
    "prompts.min_words": 4,
    "prompts.max_words": 150,
    "prompts.similarity": 0.7,
    "candidates.n": 4,
    "candidates.sampling.temperature": 0.7,
    "candidates.sampling.top_p": 0.9,
    "judge.rubric": "additive",
    "judge.samples": 3,
    "judge.sampling.temperature": 0.7,
    "judge.sampling.top_p": 0.9,
    "pairs.strategy": "best_worst",
    "pairs.min_margin": 0.0,
    "pairs.keep_truncated": False,
    "dpo.beta": 0.1,
    "dpo.learning_rates": (),
    "dpo.train.learning_rate": 1e-6,
    "dpo.train.min_learning_rate": 1e-7,
    "dpo.train.schedule": "cosine",
    "dpo.train.batch_size": 16,
    "dpo.train.dropout": 0.1,
    "dpo.train.validation.every": 200,
    "num_iterations": 2,
}
AUTOALIGN = {
    "data.ift.selection": "autoalign",
    "data.ift.limit": 3200,
    "sft.learning_rate": 5e-6,
    "sft.weight_decay": 0.1,
    "sft.warmup_ratio": 0.04,
    "sft.schedule": "cosine",
    "sft.max_length": 4096,
    "sft.epochs": 3,
    "eft.agreement": "per_reply",
    "eft.target": "score",
    "eft.training": "sequential",
    "eft.train.learning_rate": 2e-7,
    "prompts.shots": 8,
    "prompts.generated_shots": 2,
    "prompts.sampling.temperature": 0.6,
    "prompts.sampling.top_p": 0.9,
    "candidates.n": 4,
    "candidates.sampling.temperature": 0.7,
    "candidates.sampling.top_p": 0.9,
    "candidates.sampling.max_new_tokens": 512,
    "judge.rubric": "additive",
    "judge.samples": 3,
    "judge.sampling.temperature": 0.7,
    "judge.sampling.top_p": 0.9,
    "dpo.beta": 0.1,
    "dpo.learning_rates": (5.5e-8, 3e-8),
    "dpo.train.schedule": "cosine",
    "dpo.train.warmup_ratio": 0.04,
    "dpo.train.batch_size": 8,
    "num_iterations": 2,
}


def leaves(mapping, prefix=""):
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize(("preset", "numbers"), [("paper", PAPER), ("autoalign", AUTOALIGN)])
def test_a_preset_holds_the_published_numbers(preset, numbers):
    recipe = dict(leaves(resolve_recipe({"preset": preset}).model_dump()))
    assert {path: recipe[path] for path in numbers} == numbers


@pytest.mark.parametrize("preset", ["paper", "autoalign"])
def test_a_preset_holds_no_number_that_the_table_of_this_test_lacks(preset):
    listed = {"paper": PAPER, "autoalign": AUTOALIGN}[preset]
    # These repeat in one section what the table states for another.
    repeated = {
        "paper": {"eft.train.schedule"},
        "autoalign": {
            "data.ift.language", "eft.balance_scores", "eft.train.weight_decay", "eft.train.warmup_ratio",
            "eft.train.schedule", "eft.train.max_length", "dpo.train.max_length",
        },
    }[preset]  # fmt: skip
    assert {path for path, _ in leaves(load_preset(preset))} - set(listed) == repeated


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_parses_and_opens_with_its_command_and_hardware(path):
    load_recipe(path)
    opening = path.read_text(encoding="utf-8").splitlines()[:6]
    comments = [line for line in opening if line.startswith("#")]
    assert any(line.endswith(f"selfalign run recipes/{path.name}") for line in comments)
    assert any(line.startswith("# Hardware: ") for line in comments)


def test_there_is_a_shipped_recipe():
    assert "quickstart" in [path.stem for path in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_schema_knows_every_key_of_a_shipped_recipe(path):
    properties = recipe_schema()["properties"]
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= set(properties)
