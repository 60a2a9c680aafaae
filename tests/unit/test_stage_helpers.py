import json
import re

import pytest

from selfalign.config import EngineSettings, SelfRewardingRecipe, Train
from selfalign.errors import DataError
from selfalign.methods.execute import plan
from selfalign.recipes import resolve_recipe
from selfalign.records import Judgment, Message, RankedPrompt, RankedReply
from selfalign.runs import Artifact, Run
from selfalign.runs.artifact import Stage
from selfalign.runs.events import EventLog
from selfalign.runs.files import read_rows
from selfalign.stages import read_data
from selfalign.stages.common import about_tokens, generation_settings, training_settings
from selfalign.stages.eft import judged_replies
from selfalign.stages.judge import Judged, judge

SCRIPTED = {"engine": {"kind": "scripted"}}


@pytest.fixture(scope="module")
def fingerprints(tmp_path_factory):
    """Plan a run on the starter data with some overrides; the fingerprint of every stage."""
    model = tmp_path_factory.mktemp("model")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).touch()

    def fingerprints(*overrides):
        recipe = resolve_recipe(SCRIPTED | {"policy": {"model": str(model)}}, overrides)
        return {s.stage.name: s.stage.fingerprint for s in plan(recipe, model / "run")}

    return fingerprints


EVALUATE = r"(sft|eft|iteration-\d)/evaluate"
AFTER_ONE = r"|iteration-1/evaluate|iteration-2/.*"
SECOND_TRAINING = r"iteration-2/(train|evaluate)"


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("num_iterations=1", ""),
        ("engine.batch_size=2", ""),
        ("policy.device=cpu", ""),
        ("sft.micro_batch_tokens=100", ""),
        ("dpo.train.checkpoint_every=1", ""),
        ("seed=1", r".*"),
        ("data.ift.limit=20", r".*"),
        ("policy.precision=float32", r"(?!data/).*"),
        ("sft.epochs=2", r"(?!data/).*"),
        ("judge.retries=3", r"(?!data/|sft/train).*"),
        ("judge.samples=5", r"(?!data/|sft/).*"),
        ("eft.target=score", r"eft/(examples|train|evaluate)|iteration-.*"),
        ("eft.training=sequential", r"eft/(train|evaluate)|iteration-.*"),
        ("eft.train.epochs=2", r"eft/(train|evaluate)|iteration-.*"),
        ("prompts.shots=6", r"iteration-.*"),
        ("candidates.n=6", r"iteration-1/(?!prompts|attacks).*" + AFTER_ONE),
        ("pairs.min_margin=1", r"iteration-1/(pairs|reference|train)" + AFTER_ONE),
        ("pairs.near_best=1", r"iteration-1/(pairs|reference|train)" + AFTER_ONE),
        ("judge.attacked_prompts=2", r"iteration-\d/attacks"),
        ("dpo.train.max_length=64", r"iteration-1/(reference|train)" + AFTER_ONE),
        ("dpo.train.lora={}", r"iteration-1/(reference|train)" + AFTER_ONE),
        ("dpo.beta=0.2", r"iteration-1/train" + AFTER_ONE),
        ("dpo.learning_rates=[2e-6]", r"iteration-1/train" + AFTER_ONE),
        ("dpo.learning_rates=[1e-6]", ""),
        ("dpo.learning_rates=[1e-6, 2e-6]", SECOND_TRAINING),
        ("evaluation.bootstrap=200", EVALUATE),
        ("evaluation.samples=5", EVALUATE),
    ],
)
def test_a_change_makes_exactly_the_stages_stale_that_it_shapes(fingerprints, override, stale):
    before, after = fingerprints(), fingerprints(override)
    changed = [name for name in after if after[name] != before[name]]
    assert changed == [name for name in after if re.fullmatch(stale, name)]


AFTER_PAIRS = r"contrast/(pairs|strength)|rlcd/.*"


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("engine.batch_size=2", ""),
        ("dpo.train.micro_batch_tokens=100", ""),
        ("seed=1", r".*"),
        ("data.held_out_fraction=0.3", r".*"),
        ("policy.precision=float32", r"(?!data/|contrast/contrasts).*"),
        ("contrast.per_prompt=2", r"(?!data/).*"),
        ("contrast.language=en", r"(?!data/).*"),
        ("contrast.own_system=replace", r"(?!data/).*"),
        ("contrast.sampling.max_new_tokens=5", r"(?!data/|contrast/contrasts).*"),
        ("contrast.filters.keep_truncated=true", AFTER_PAIRS),
        ("judge={}", r"contrast/judgments|" + AFTER_PAIRS),
        ("contrast.strength_pairs=5", r"contrast/strength"),
        ("dpo.train.max_length=64", r"rlcd/.*"),
        ("dpo.beta=0.2", r"rlcd/(?!reference).*"),
        ("evaluation.max_new_tokens=5", r"rlcd/outputs"),
    ],
)
def test_a_change_of_an_rlcd_recipe_makes_exactly_the_stages_stale_that_it_shapes(
    fingerprints, override, stale
):
    before, after = fingerprints("method=rlcd"), fingerprints("method=rlcd", override)
    changed = [name for name in after if after[name] != before.get(name)]
    assert changed == [name for name in after if re.fullmatch(stale, name)]


def test_settings_that_say_how_not_what_shape_no_training():
    recipe = SelfRewardingRecipe()
    same = Train(micro_batch_tokens=1, checkpoint_every=1)
    assert training_settings(recipe, same) == training_settings(recipe, Train())
    for other in (Train(epochs=2), Train(save_dtype="bfloat16"), Train(max_steps=3), Train(dropout=0.1)):
        assert training_settings(recipe, other) != training_settings(recipe, Train())


def test_a_script_shapes_texts_by_its_content_not_by_its_name(tmp_path):
    def settings(name):
        return generation_settings(
            SelfRewardingRecipe(engine=EngineSettings(kind="scripted", script=str(tmp_path / name)))
        )

    for name, text in (("one.toml", "same"), ("moved.toml", "same"), ("other.toml", "other")):
        (tmp_path / name).write_text(text)
    assert settings("one.toml") == settings("moved.toml")
    assert settings("one.toml") != settings("other.toml")


def test_tokens_are_estimated_from_all_characters_together():
    assert about_tokens(iter([])) == 0
    assert about_tokens(["abc", "defgh"]) == 2


def messages(text):
    return (Message(role="user", content=text),)


def test_every_reply_of_every_prompt_is_judged_under_its_own_id():
    prompts = [
        RankedPrompt(
            prompt_id=f"p{i}",
            messages=messages(f"question {i}"),
            replies=tuple(RankedReply(reply_id=f"r{i}{j}", text=f"{i}{j}", rank=j) for j in range(2)),
            source="here",
        )
        for i in range(2)
    ]
    assert judged_replies(prompts) == [
        Judged(f"r{i}{j}", f"p{i}", messages(f"question {i}"), f"{i}{j}") for i in range(2) for j in range(2)
    ]


JUDGE = """
vocabulary = "word"
[[rules]]
match = "zzz-never"
reply = "I would rather not say."
[[rules]]
match = "zzz-sometimes"
reply = "{% if number(0, 1) %}Score: 4{% else %}Hm.{% endif %}"
[[rules]]
match = ""
reply = "Score: 3"
"""


def judgments_of(folder, texts, *, retries, samples=1):
    """Have the scripted judge judge these texts; judgments and figures."""
    (folder / "judge.toml").write_text(JUDGE)
    recipe = resolve_recipe(
        {
            "engine": {"kind": "scripted", "script": str(folder / "judge.toml")},
            "judge": {"retries": retries, "samples": samples},
        }
    )
    run = Run(folder / "run", recipe, EventLog(folder / "events.jsonl"))
    items = [Judged(f"c{i}", "p", messages("question"), text) for i, text in enumerate(texts)]
    figures = {}

    def body(work):
        by = {"policy": Artifact(folder, "x")}
        figures.update(judge(run, work, by, items, "judgments.jsonl", recipe.judge))
        return figures

    judged = run.do(Stage("iteration-1/judgments", 1, ("judgments.jsonl",)), body)
    return list(read_rows(judged.path, Judgment)), figures


@pytest.mark.parametrize("retries", [0, 2])
def test_a_judgment_without_a_score_is_asked_for_again_and_then_left_unscored(tmp_path, retries):
    (never, plain), figures = judgments_of(tmp_path, ["zzz-never", "plain"], retries=retries)
    assert (never.score, never.attempts) == (None, 1 + retries)
    assert never.reason is not None
    assert never.text == "I would rather not say."
    assert (plain.score, plain.reason, plain.attempts) == (3.0, None, 1)
    assert figures["parse_rate"] == 0.5


def test_a_retry_draws_anew_and_ends_with_the_first_score(tmp_path):
    judgments, _ = judgments_of(tmp_path, ["zzz-sometimes"] * 40, retries=6)
    scored = [judgment for judgment in judgments if judgment.score is not None]
    assert len(scored) >= 38
    assert len({judgment.attempts for judgment in scored}) > 2
    assert {judgment.score for judgment in scored} == {4.0}


def test_judgments_stand_by_text_and_sample_and_each_sample_draws_its_own(tmp_path):
    judgments, _ = judgments_of(tmp_path, ["zzz-sometimes"] * 3, retries=0, samples=8)
    assert [(j.completion_id, j.sample) for j in judgments] == [
        (f"c{i}", k) for i in range(3) for k in range(8)
    ]
    for place in range(3):
        assert len({j.score for j in judgments[8 * place : 8 * place + 8]}) == 2


def ranked_row(number):
    replies = [{"text": f"good {number}", "rank": 0}, {"text": f"bad {number}", "rank": 1}]
    return {"messages": [{"role": "user", "content": f"ranked question {number}"}], "replies": replies}


@pytest.fixture
def data_recipe(tmp_path):
    ift = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(3)]
    for name, rows in (("ift.jsonl", ift), ("ranked.jsonl", [ranked_row(i) for i in range(8)])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return resolve_recipe(
        {
            "data": {
                "ift": {"path": str(tmp_path / "ift.jsonl")},
                "ranked": {"paths": [str(tmp_path / "ranked.jsonl")]},
            }
        }
    )


def test_a_plan_of_the_data_counts_what_reading_them_counts(tmp_path, data_recipe):
    planned = read_data(Run(tmp_path / "run", data_recipe))
    done = read_data(Run(tmp_path / "run", data_recipe, EventLog(tmp_path / "events.jsonl")))
    assert planned == done
    assert (done.ift.rows, done.ranked.rows, done.held_out.rows) == (3, 6, 2)
    assert done.ranked.figures["replies"] == 12


def test_a_moved_data_file_is_the_same_data_and_a_changed_one_is_not(tmp_path, data_recipe):
    read_data(Run(tmp_path / "run", data_recipe, EventLog(tmp_path / "events.jsonl")))
    (tmp_path / "ranked.jsonl").rename(tmp_path / "moved.jsonl")
    moved = resolve_recipe(
        data_recipe.model_dump(mode="json"), [f"data.ranked.paths=[{tmp_path / 'moved.jsonl'}]"]
    )
    run = Run(tmp_path / "run", moved)
    read_data(run)
    assert run.statuses[0].state == "done"
    with (tmp_path / "moved.jsonl").open("a") as file:
        file.write(json.dumps(ranked_row(9)) + "\n")
    run = Run(tmp_path / "run", moved)
    read_data(run)
    assert run.statuses[0].state == "stale"


def test_ranked_prompts_that_are_all_ift_prompts_leave_nothing_to_measure_with(tmp_path, data_recipe):
    both = resolve_recipe(data_recipe.model_dump(mode="json"), [f"data.ift.path={tmp_path / 'ranked.jsonl'}"])
    with pytest.raises(DataError, match="8 ranked prompts leave 0 to learn judging from and 0 to measure"):
        read_data(Run(tmp_path / "run", both))
