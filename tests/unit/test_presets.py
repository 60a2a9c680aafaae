from pathlib import Path

import pytest
import yaml

from selfalign.recipes import METHODS, load_preset, load_recipe, recipe_schema, resolve_recipe

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
RLCD_AUTOALIGN = {
    "contrast.per_prompt": 1,
    "contrast.samples": 1,
    "contrast.sampling.temperature": 0.0,
    "contrast.sampling.max_new_tokens": 1024,
    "dpo.beta": 0.1,
    "dpo.train.learning_rate": 5e-7,
    "dpo.train.schedule": "cosine",
    "dpo.train.warmup_ratio": 0.04,
    "dpo.train.weight_decay": 0.0,
    "dpo.train.epochs": 1,
    "dpo.train.batch_size": 16,
    "dpo.train.max_length": 2048,
}
# The columns of the published tables, those of each method; head to head and AlpacaEval are the paper's.
EVALUATION_RLCD = {
    "tasks": (
        *("mt_bench", "math", "gsm8k", "humaneval", "mbpp", "humaneval_cn", "mbpp_cn"),
        *("mmlu", "gpqa", "cmmlu", "ceval"),
    )
}
EVALUATION_SELF_REWARDING = {
    "tasks": (
        *(
            "mt_bench",
            "alpaca_eval",
            "head_to_head",
            "judge_quality",
            "ifeval",
            "arc_easy",
            "arc_challenge",
            "hellaswag",
        ),
        *("siqa", "piqa", "gsm8k", "mmlu", "openbookqa", "nq"),
    )
}
NUMBERS = {
    ("self_rewarding", "paper"): PAPER,
    ("self_rewarding", "autoalign"): AUTOALIGN,
    ("rlcd", "autoalign"): RLCD_AUTOALIGN,
    ("evaluation", "rlcd"): EVALUATION_RLCD,
    ("evaluation", "self_rewarding"): EVALUATION_SELF_REWARDING,
}


def leaves(mapping, prefix=""):
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_these_are_all_the_presets():
    files = (ROOT / "src" / "selfalign" / "presets").glob("*/*.yaml")
    assert {(file.parent.name, file.stem) for file in files} == NUMBERS.keys()


@pytest.mark.parametrize(("method", "preset"), NUMBERS)
def test_a_preset_holds_the_published_numbers(method, preset):
    recipe = dict(leaves(resolve_recipe({"method": method, "preset": preset}).model_dump()))
    numbers = NUMBERS[method, preset]
    assert {path: recipe[path] for path in numbers} == numbers


@pytest.mark.parametrize(("method", "preset"), NUMBERS)
def test_a_preset_holds_no_number_that_the_table_of_this_test_lacks(method, preset):
    # These repeat in one section what the table states for another.
    repeated = {
        ("self_rewarding", "paper"): {"eft.train.schedule"},
        ("self_rewarding", "autoalign"): {
            "data.ift.language", "eft.balance_scores", "eft.train.weight_decay", "eft.train.warmup_ratio",
            "eft.train.schedule", "eft.train.max_length", "dpo.train.max_length",
        },
    }.get((method, preset), set())  # fmt: skip
    stated = {path for path, _ in leaves(load_preset(method, preset))}
    assert stated - NUMBERS[method, preset].keys() == repeated


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_parses_and_opens_with_its_command_and_hardware(path):
    load_recipe(path)
    opening = path.read_text(encoding="utf-8").splitlines()[:6]
    comments = [line for line in opening if line.startswith("#")]
    assert any(line.endswith(f"selfalign run recipes/{path.name}") for line in comments)
    assert any(line.startswith("# Hardware: ") for line in comments)


def test_there_is_a_shipped_recipe_of_either_method():
    assert {"quickstart", "rlcd_quickstart"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_schema_knows_every_key_of_a_shipped_recipe(path):
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    model = METHODS[own.get("method", "self_rewarding")]
    assert own.keys() <= recipe_schema()["$defs"][model.__name__]["properties"].keys()
