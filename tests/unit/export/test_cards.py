import pytest
import yaml
from markdown_it import MarkdownIt

from selfalign.evaluation.results import TaskResult
from selfalign.export.cards import dataset_card, model_card
from selfalign.export.contents import Part
from selfalign.recipes import resolve_recipe
from selfalign.runs.files import write_json

INVOCATION = {"selfalign": "0.1.0", "git_revision": None, "torch": "2", "transformers": "5"}


@pytest.fixture
def run(tmp_path):
    """Begin a run directory under a recipe, with what a card needs at least."""

    def run(*overrides, base="org/base", name="run"):
        root = tmp_path / name
        recipe = resolve_recipe({}, overrides)
        write_json(root / "recipe.resolved.json", recipe.model_dump(mode="json"))
        manifest = {
            "model": {"name": base, "fingerprint": "f" * 64},
            "seed": 0,
            "data": {"ift": {"path": "a" * 64}, "ranked": {"paths": ["b" * 64]}},
            "invocations": [INVOCATION],
        }
        write_json(root / "manifest.json", manifest)
        return root

    return run


def parsed(card):
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def test_a_base_on_the_hub_is_named_and_one_on_this_machine_is_not(run, tmp_path):
    assert parsed(model_card(run(), "M1", {}, None))[0]["base_model"] == "org/base"
    local = tmp_path / "secret" / "base"
    local.mkdir(parents=True)
    header, body = parsed(model_card(run(base=str(local)), "M1", {}, None))
    assert "base_model" not in header
    assert "`base`" in body
    assert "secret" not in body


@pytest.mark.parametrize(("stated", "expected"), [(None, "mit"), ("cc0-1.0", "cc0-1.0")])
def test_the_licence_is_the_stated_one_or_that_of_the_base(run, tmp_path, stated, expected):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    header, body = parsed(model_card(run(base=str(base)), "M1", {}, stated))
    assert header["license"] == expected
    assert f"`{expected}`" in body


def test_paths_and_addresses_of_the_recipe_stay_at_home(run, tmp_path):
    private = tmp_path / "private" / "ift.jsonl"
    root = run(
        f"data.ift.path={private}",
        "judge.endpoint={url: 'http://10.0.0.7/v1', model: judge}",
        "engine={kind: server, serve: {python: ~/vllm/bin/python}}",
    )
    body = parsed(model_card(root, "M1", {}, None))[1]
    assert "ift.jsonl" in body
    for kept_back in ("private", "10.0.0.7", "vllm/bin"):
        assert kept_back not in body


def test_names_are_no_markup(run):
    root = run("judge.rubric='<img src=x>'", name="a`b<script>")
    body = parsed(model_card(root, "M1", {"x`<b>.safetensors": "0" * 64}, "`<i>"))[1]
    blocks = MarkdownIt("commonmark").parse(body)
    tokens = [token for block in blocks for token in (block, *(block.children or ()))]
    html = {line for token in tokens if token.type.startswith("html") for line in token.content.split("\n")}
    assert html == {"<details>", "<summary>Recipe</summary>", "</details>", ""}


def test_benchmarks_stand_in_the_header_and_in_the_table(run):
    root = run()
    measure = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 100, "reason": None}
    result = TaskResult(task="gsm8k", model="M1", metric="exact_match", measures={"exact_match": measure})
    place = root / "evaluation" / "M1"
    write_json(place / "gsm8k.json", result.model_dump(mode="json"))
    write_json(place / "manifests" / "gsm8k.json", {})
    plan = {"models": ["M1"], "tasks": ["gsm8k", "mmlu"], "not_run": {"mmlu": "no files"}}
    write_json(root / "evaluation" / "plan.json", plan)
    header, body = parsed(model_card(root, "M1", {}, None))
    (found,) = header["model-index"][0]["results"]
    assert found["dataset"]["name"] == "GSM8K"
    assert found["metrics"] == [{"type": "exact_match", "value": 0.25}]
    assert "25.0 (20.0–30.0)" in body
    assert "no files" in body


def test_what_was_not_measured_is_not_said(run):
    body = parsed(model_card(run(), "M1", {}, None))[1]
    assert "Benchmarks have not been measured." in body
    assert "None" not in body


@pytest.mark.parametrize(("rows", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**6, "n>1M")])
def test_the_size_of_a_data_set_is_in_the_words_of_the_hub(run, tmp_path, rows, size):
    part = Part("pairs", tmp_path / "pairs.jsonl", "train", 1)
    header, body = parsed(
        dataset_card(run(), [part], "trl", {"train": rows}, {"train.jsonl": "0" * 64}, None)
    )
    assert header["size_categories"] == [size]
    assert "license" not in header
    assert f"{rows:,} rows in `train`" in body
