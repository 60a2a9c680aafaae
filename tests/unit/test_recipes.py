import ast
import json
from pathlib import Path
from typing import get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from selfalign.config import Endpoint, EvaluationRecipe, Recipe, RLCDRecipe, SelfRewardingRecipe
from selfalign.errors import RecipeError
from selfalign.recipes import METHODS, explain_recipe, load_preset, load_recipe, recipe_schema, resolve_recipe

ROOT = Path(__file__).resolve().parents[2]
PRESETS = [
    ("self_rewarding", None), ("self_rewarding", "paper"), ("self_rewarding", "autoalign"),
    ("rlcd", None), ("rlcd", "autoalign"),
]  # fmt: skip


def section_in(annotation):
    """The recipe section that a field holds or may hold, or None."""
    options = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
    sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    return sections[0] if sections else None


def fields(model, prefix=""):
    """Every field of a recipe, those of optional sections too: path, field, section or None."""
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        yield prefix + name, field, section
        if section is not None:
            yield from fields(section, f"{prefix}{name}.")


FIELDS = {method: list(fields(model)) for method, model in METHODS.items()}


def leaves(mapping, prefix=""):
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def own_keys(method, preset):
    """A recipe that names nothing but its method and preset."""
    return {"method": method, **({"preset": preset} if preset else {})}


def written(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_recipe_is_all_defaults(tmp_path):
    assert load_recipe(written(tmp_path, "# nothing yet\n")) == SelfRewardingRecipe()


def test_overrides_win_over_the_recipe_and_the_recipe_over_the_preset(tmp_path):
    path = written(tmp_path, "preset: paper\nsft: {batch_size: 4, dropout: 0.0}\n")
    recipe = load_recipe(path, ["sft.batch_size=2", "num_iterations=3"])
    assert recipe.sft.learning_rate == 5.5e-6  # the preset's
    assert recipe.sft.dropout == 0.0  # the recipe's
    assert recipe.sft.batch_size == 2  # the override's
    assert recipe.num_iterations == 3
    assert recipe.eft.train.dropout == 0.1  # shares an anchor with sft in the preset, yet stays


def test_the_last_of_two_overrides_wins():
    assert resolve_recipe({}, ["seed=1", "seed=2"]).seed == 2


def test_the_preset_itself_can_be_overridden():
    assert resolve_recipe({"preset": "paper"}, ["preset=autoalign"]).eft.target == "score"
    assert resolve_recipe({"preset": "paper"}, ["preset=null"]) == SelfRewardingRecipe()


def test_lists_are_replaced_not_joined_and_null_takes_a_section_away():
    recipe = resolve_recipe({"preset": "autoalign"}, ["dpo.learning_rates=[1e-6]"])
    assert recipe.dpo.learning_rates == (1e-6,)
    assert resolve_recipe({"preset": "paper"}, ["dpo.train.validation=null"]).dpo.train.validation is None


def test_an_override_below_an_optional_section_turns_it_on():
    assert resolve_recipe({}, ["sft.lora.rank=4"]).sft.lora.rank == 4
    assert resolve_recipe({}, ["sft.lora={}"]).sft.lora.alpha == 32


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_a_key_given_alone_leaves_its_neighbours_as_they_were(method, preset):
    own = own_keys(method, preset)
    expected = resolve_recipe(own)
    for path, value in leaves(expected.model_dump(mode="json")):
        assert resolve_recipe(own, [f"{path}={json.dumps(value)}"]) == expected, path


def test_the_mappings_given_are_left_as_they_are():
    own = {"sft": {"epochs": 2}}
    resolve_recipe(own, ["sft.epochs=3", "sft.batch_size=1"])
    assert own == {"sft": {"epochs": 2}}


@pytest.mark.parametrize(
    ("method", "key", "suggestion"),
    [
        ("self_rewarding", "polcy", "did you mean 'policy'?"),
        ("self_rewarding", "policy.modell", "did you mean 'model'?"),
        ("self_rewarding", "data.ift.fromat", "did you mean 'format'?"),
        ("self_rewarding", "sft.lora.rnk", "did you mean 'rank'?"),
        ("self_rewarding", "eft.train.validation.evry", "did you mean 'every'?"),
        ("self_rewarding", "candidates.filters", "known keys: n, sampling"),
        (
            "self_rewarding",
            "dpo.xyzzyx",
            "known keys: loss, beta, label_smoothing, length_penalty, sft_weight, train, learning_rates",
        ),
        ("rlcd", "contrst", "did you mean 'contrast'?"),
        ("rlcd", "data.path", "did you mean 'paths'?"),
        ("rlcd", "contrast.filters.refusal", "did you mean 'refusals'?"),
        ("rlcd", "judge.sample", "did you mean 'samples'?"),
        (
            "rlcd",
            "dpo.learning_rates",
            "known keys: loss, beta, label_smoothing, length_penalty, sft_weight, train",
        ),
        ("rlcd", "candidates", "known keys: preset, seed, policy, engine, report_to, method, data, contrast"),
    ],
)
def test_an_unknown_key_is_refused_with_file_path_and_suggestion(tmp_path, method, key, suggestion):
    nested = 1
    for part in reversed(key.split(".")):
        nested = {part: nested}
    path = written(tmp_path, yaml.safe_dump({"method": method, **nested}))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert f"{path}:\n  {key}: unknown key; {suggestion}" in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        resolve_recipe({"method": method}, [f"{key}=1"])
    assert f"{key}: unknown key; {suggestion}" in str(caught.value)


@pytest.mark.parametrize("method", ["rlcdd", 5, ["x"], None])
def test_an_unknown_method_is_refused_with_all_that_are_known(method):
    with pytest.raises(RecipeError, match=r"method: .* is not one of self_rewarding, rlcd") as caught:
        resolve_recipe({"method": method})
    assert ("did you mean 'rlcd'?" in str(caught.value)) == (method == "rlcdd")
    with pytest.raises(RecipeError, match=r"did you mean 'self_rewarding'\?"):
        explain_recipe("self-rewarding")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.epochs=many", 'sft.epochs: Input should be a valid integer, .*got "many"'),
        ("sft.epochs=1.5", r"sft.epochs: .*fractional part \(got 1.5\)"),
        ("sft.epochs=0", r"sft.epochs: Input should be greater than or equal to 1 \(got 0\)"),
        ("sft.learning_rate=-1e-6", "sft.learning_rate: Input should be greater than 0"),
        ("sft.schedule=cosin", "sft.schedule: Input should be 'cosine', 'linear' or 'constant'"),
        ("sft=5", r"sft: Input should be a valid dictionary .*got 5"),
        ("sft=null", r"sft: Input should be a valid dictionary .*got null"),
        ("sft.lora.rank=null", "sft.lora.rank: Input should be a valid integer"),
        ("policy.model=3", "policy.model: Input should be a valid string"),
        ("data.ranked.paths=a.jsonl", "data.ranked.paths: Input should be a valid tuple"),
        ("dpo.learning_rates=[1e-6, 0]", r"dpo.learning_rates.1: Input should be greater than 0 \(got 0\)"),
        ("candidates.n=1", "candidates.n: Input should be greater than or equal to 2"),
        ("candidates.sampling.temperature=-1", "temperature: Input should be greater than or equal to 0"),
        ("data.ranked.evaluation_fraction=1", "data.ranked.evaluation_fraction: Input should be less than 1"),
        ("engine.kind=vllm", "engine.kind: Input should be 'transformers', 'server' or 'scripted'"),
        ("preset=5", "preset: Input should be a valid string"),
        ("dpo.beta=nan", "dpo.beta: Input should be"),
        ("sft.gradient_clip=inf", "sft.gradient_clip: Input should be a finite number"),
        ("pairs.min_margin=inf", "pairs.min_margin: Input should be a finite number"),
    ],
)
def test_a_wrong_value_is_refused_with_path_and_value(override, message):
    with pytest.raises(RecipeError, match=message):
        resolve_recipe({}, [override])


def test_every_problem_is_told_at_once():
    with pytest.raises(RecipeError) as caught:
        resolve_recipe({"sft": {"epoch": 1}, "seed": "x"})
    assert "sft.epoch: unknown key; did you mean 'epochs'?" in str(caught.value)
    assert "seed: Input should be a valid integer" in str(caught.value)


RANKING = ["judge.method=expected", "eft={target: ranking, agreement: none, training: sequential}"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.script=rules.toml"], "engine.script is for engine.kind: scripted"),
        (["prompts.shots=2"], "prompts.generated_shots must be below prompts.shots"),
        (["prompts.min_words=200"], "prompts.min_words is above prompts.max_words"),
        (["sft.min_learning_rate=1e-3"], "sft: min_learning_rate is above learning_rate$"),
        (["eft.train.min_learning_rate=1e-3"], "eft.train: min_learning_rate is above learning_rate$"),
        (["dpo.train.min_learning_rate=1e-3"], "dpo.train: min_learning_rate is above learning_rate$"),
        (
            ["dpo.train.min_learning_rate=1e-7", "dpo.learning_rates=[1e-6, 1e-8]"],
            "dpo: train.min_learning_rate is above one of learning_rates$",
        ),
        (["candidates.sampling.temperature=0"], "candidates.sampling.temperature is 0: greedy samples"),
        (["prompts.sampling.temperature=0"], "prompts.sampling.temperature is 0: greedy samples"),
        (["judge.sampling.temperature=0"], "judge: sampling.temperature is 0: greedy samples"),
        (
            ["judge={structured: true, method: expected}"],
            "judge: structured is for method: sampled; expected",
        ),
        (
            ["judge={structured: true, method: pairwise}"],
            "judge: structured is for method: sampled; pairwise",
        ),
        (
            ["judge={structured: true, method: expected_after_rationale}"],
            "judge: structured is for method: sampled; expected_after_rationale",
        ),
        (["judge={structured: true, reply_start: 'Score:'}"], "judge: structured and reply_start both shape"),
        (
            ["method=rlcd", "judge={samples: 3, sampling: {temperature: 0}}"],
            "judge: sampling.temperature is 0: greedy samples",
        ),
        (["eft.target=ranking"], "eft.target: ranking trains expected scores; set judge.method: expected"),
        (
            [*RANKING, "judge.model=other", "judge.samples=1"],
            "eft.target: ranking trains the policy to judge, but the recipe names another judge",
        ),
        ([*RANKING, "eft.agreement=ranking"], "from all ranked replies, after IFT; set eft.agreement: none"),
        ([*RANKING, "eft.training=joint"], "after IFT; set eft.training: sequential"),
        ([*RANKING, "eft.max_length_correlation=0.5"], "set eft.max_length_correlation: null"),
        (["method=rlcd", "contrast.samples=2"], "contrast: sampling.temperature is 0: greedy samples"),
        (["method=rlcd", "dpo.train.min_learning_rate=1"], "dpo.train: min_learning_rate is above"),
        (["method=rlcd", "engine.script=rules.toml"], "engine.script is for engine.kind: scripted"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(RecipeError, match=message):
        resolve_recipe({}, overrides)


def test_a_single_answer_may_be_greedy():
    assert resolve_recipe({}, ["judge.samples=1", "judge.sampling.temperature=0"]).judge.samples == 1
    assert resolve_recipe({"method": "rlcd"}).contrast.sampling.temperature == 0
    assert resolve_recipe({"method": "rlcd"}, ["contrast.samples=2", "contrast.sampling.temperature=1"])


@pytest.mark.parametrize("word", ["1e-6", "5.5e-8", "1E-6", "1.e-6", ".5e-6", "+1e-6", "0.000001"])
def test_numbers_may_be_written_as_anyone_writes_them(tmp_path, word):
    expected = float(word)
    assert load_recipe(written(tmp_path, f"sft: {{learning_rate: {word}}}")).sft.learning_rate == expected
    assert resolve_recipe({}, [f"sft.learning_rate={word}"]).sft.learning_rate == expected
    assert resolve_recipe({}, [f"dpo.learning_rates=[{word}]"]).dpo.learning_rates == (expected,)


@pytest.mark.parametrize("word", ["3200", "3.2e3", "32e2", "3200.0"])
def test_a_whole_number_may_be_written_as_a_float(word):
    assert resolve_recipe({}, [f"data.ift.limit={word}"]).data.ift.limit == 3200


@settings(deadline=None)
@given(st.floats(min_value=1e-30, max_value=1e30))
def test_every_float_that_python_writes_is_read_back(number):
    assert resolve_recipe({}, [f"dpo.beta={number!r}"]).dpo.beta == number


@pytest.mark.parametrize("word", ["e5", "1e", "1-6", ".", "+", "model-1e6", "1e-6x"])
def test_words_that_only_look_like_numbers_stay_words(word):
    assert resolve_recipe({}, [f"policy.model={word}"]).policy.model == word


@pytest.mark.parametrize(
    "text",
    ["seed: 1\nseed: 2\n", "sft:\n  epochs: 1\n  epochs: 1\n", "sft: {epochs: 1, 'epochs': 2}\n"],
)
def test_a_key_given_twice_is_refused(tmp_path, text):
    with pytest.raises(RecipeError, match=r"mine\.yaml: not valid YAML: key '(seed|epochs)' appears twice"):
        load_recipe(written(tmp_path, text))


def test_anchors_and_merge_keys_work_and_own_keys_win(tmp_path):
    text = (
        "sft: &train {epochs: 2, batch_size: 4}\n"
        "eft: {train: {<<: *train, epochs: 3}}\n"
        "dpo: {train: {<<: *train, learning_rate: 1e-6}}\n"
    )
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.eft.train.epochs, recipe.eft.train.batch_size) == (3, 4)
    assert (recipe.dpo.train.epochs, recipe.dpo.train.learning_rate) == (2, 1e-6)


@pytest.mark.parametrize("word", ["seed", "=1", "sft..epochs=1", ".seed=1", "seed.=1", "--seed", ""])
def test_a_word_that_is_no_override_is_refused_with_the_form_to_use(word):
    with pytest.raises(RecipeError, match=r"is no override; write it as section\.key=value"):
        resolve_recipe({}, [word])


def test_an_override_whose_value_is_not_yaml_is_refused():
    with pytest.raises(RecipeError, match=r"'dpo.learning_rates=\[1e-6': the value is not valid YAML"):
        resolve_recipe({}, ["dpo.learning_rates=[1e-6"])


def test_the_value_of_an_override_may_hold_equals_signs():
    assert resolve_recipe({}, ["judge.reply_start=score="]).judge.reply_start == "score="


def test_an_override_without_a_value_is_null():
    assert resolve_recipe({"policy": {"revision": "main"}}, ["policy.revision="]).policy.revision is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sft: [", "not valid YAML"),
        (b"- a\n- b\n", "a recipe is a mapping of keys, not a list"),
        (b"hello", "a recipe is a mapping of keys, not a str"),
        (b"\xff\xfe\x00", "not a recipe file"),
        (b"!!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"1: 2\n", "1: Keys should be strings"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}:")


def test_a_missing_recipe_and_a_directory_are_refused_by_name(tmp_path):
    with pytest.raises(RecipeError, match=r"nothing\.yaml: no such recipe; `selfalign init` writes one"):
        load_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="not a recipe file"):
        load_recipe(tmp_path)


def test_an_unknown_preset_is_refused_with_a_suggestion():
    for call in (load_preset, explain_recipe, lambda *own: resolve_recipe(own_keys(*own))):
        with pytest.raises(RecipeError, match=r"'papper' is not one of .*did you mean 'paper'"):
            call("self_rewarding", "papper")
        with pytest.raises(RecipeError, match=r"'paper' is not one of autoalign"):
            call("rlcd", "paper")


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_an_explained_recipe_is_the_recipe_that_it_explains(tmp_path, method, preset):
    explained = load_recipe(written(tmp_path, explain_recipe(method, preset)))
    assert explained == resolve_recipe(own_keys(method, preset))


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_an_explained_recipe_can_be_changed_key_by_key(tmp_path, method, preset):
    text = (
        explain_recipe(method, preset).replace("seed: 0\n", "seed: 5\n").replace("beta: 0.1\n", "beta: 0.3\n")
    )
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.seed, recipe.dpo.beta) == (5, 0.3)


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_an_explained_recipe_shows_every_key_under_its_meaning(method, preset):
    lines = explain_recipe(method, preset).splitlines()
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("#"), line
    text = "\n".join(lines)
    for path, _, _ in FIELDS[method]:
        assert f"{path.split('.')[-1]}:" in text


@pytest.mark.parametrize("method", METHODS)
def test_every_key_and_every_section_has_a_meaning_of_its_own(method):
    for path, field, section in FIELDS[method]:
        assert field.description or (section and section.__doc__), path


@pytest.mark.parametrize("model", METHODS.values())
def test_the_schema_knows_every_key_and_refuses_all_others(model):
    schema = json.loads(json.dumps(recipe_schema()))
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"$ref": f"#/$defs/{model.__name__}"} in schema["anyOf"]

    def resolved(part):
        return schema["$defs"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part

    def walk(part, model):
        assert part["additionalProperties"] is False
        assert set(part["properties"]) == set(model.model_fields)
        needed = {
            RLCDRecipe: ["method"],
            EvaluationRecipe: ["method"],
            Endpoint: ["url", "model"],
        }
        assert part.get("required", []) == needed.get(model, [])
        for name, field in model.model_fields.items():
            section = section_in(field.annotation)
            if section is not None:
                options = part["properties"][name].get("anyOf", [part["properties"][name]])
                walk(resolved(next(option for option in options if "$ref" in option)), section)

    walk(schema["$defs"][model.__name__], model)


IMPORTS = {
    "imports.pairs=[a, b, c]": "imports has files for 3 iterations, num_iterations is 2",
    "imports={pairs: [a], judgments: [b]}": "judgments and pairs both name iteration 1",
    "imports={prompts: [null, a], candidates: [null, b]}": "prompts and candidates both name iteration 2",
}


@pytest.mark.parametrize("override", IMPORTS)
def test_imports_that_contradict_each_other_are_refused(override):
    with pytest.raises(RecipeError, match=IMPORTS[override]):
        resolve_recipe({}, [override])


def test_imports_are_of_the_iterations_in_turn():
    imports = resolve_recipe({}, ["imports={pairs: [null, a], candidates: [b]}"]).imports
    assert [imports.of("pairs", t) for t in (1, 2, 3)] == [None, "a", None]
    assert [imports.of("candidates", t) for t in (1, 2)] == ["b", None]
    assert imports.of("judgments", 1) is None


def test_every_key_is_read_somewhere():
    def attributes(tree):
        return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    trees = {
        file: ast.parse(file.read_text(encoding="utf-8"))
        for file in (ROOT / "src" / "selfalign").rglob("*.py")
    }
    read = {"preset"}  # laid under the recipe before it is validated; nothing asks for it later
    read |= set().union(*(attributes(tree) for file, tree in trees.items() if file.parent.name != "config"))
    for file, tree in trees.items():
        if file.parent.name == "config":  # validators do not count; methods do if they are used themselves
            methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            asked = [node for node in methods if not node.decorator_list and node.name in read]
            read |= set().union(*map(attributes, asked))
    paths = [path for method in METHODS for path, _, _ in FIELDS[method]]
    assert [path for path in paths if path.split(".")[-1] not in read] == []


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_a_recipe_survives_the_json_that_is_kept_beside_the_run(method, preset):
    recipe = resolve_recipe(own_keys(method, preset), ["dpo.train.lora={}", "policy.model=模型"])
    kept = json.loads(json.dumps(recipe.model_dump(mode="json"), allow_nan=False))
    assert TypeAdapter(Recipe).validate_python(kept) == recipe


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_cannot_be_changed_once_it_is_resolved(method):
    with pytest.raises(ValueError, match="frozen"):
        resolve_recipe({"method": method}).policy.model = "another"
