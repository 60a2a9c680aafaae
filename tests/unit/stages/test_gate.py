from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from selfalign import stages
from selfalign.config import Policy, SelfRewardingRecipe
from selfalign.config.self_rewarding import GateMeasure
from selfalign.evaluation.judge_quality import MEASURES
from selfalign.methods.self_rewarding import self_rewarding
from selfalign.models.source import policy_source
from selfalign.recipes import resolve_recipe
from selfalign.runs import Artifact, Run
from selfalign.runs.events import EventLog
from selfalign.runs.files import read_json, write_json


def recipe_of(**gate: Any) -> SelfRewardingRecipe:
    recipe = resolve_recipe({"gate": gate}, [], where="test")
    assert isinstance(recipe, SelfRewardingRecipe)
    return recipe


def quality(folder: Path, name: str, accuracy: float | None, parse_rate: float | None = 1.0) -> Artifact:
    path = folder / name / "judge_quality.json"
    path.parent.mkdir()
    write_json(path, {"judge": {"pairwise_accuracy": {"value": accuracy}, "parse_rate": parse_rate}})
    return Artifact(path, name)


def look(folder: Path, recipe: SelfRewardingRecipe, before: Artifact, after: Artifact) -> tuple[bool, Any]:
    run = Run(folder, recipe, EventLog(folder / "events.jsonl"))
    found = stages.accepted(run, 1, before, after)
    return found, read_json(folder / "iteration-1" / "manifests" / "gate.json")["warnings"]


def test_a_fall_within_the_bound_is_accepted(tmp_path: Path) -> None:
    before, after = quality(tmp_path, "a", 0.60), quality(tmp_path, "b", 0.59)
    assert look(tmp_path, recipe_of(max_fall={"pairwise_accuracy": 0.02}), before, after) == (True, [])


def test_a_fall_beyond_the_bound_is_not_and_the_run_says_why(tmp_path: Path) -> None:
    before, after = quality(tmp_path, "a", 0.60), quality(tmp_path, "b", 0.55)
    recipe = recipe_of(max_fall={"parse_rate": 0, "pairwise_accuracy": 0.02}, otherwise="keep")
    assert look(tmp_path, recipe, before, after) == (
        False,
        [
            "M2 is not accepted: pairwise accuracy fell from 0.600 to 0.550, by more than 0.02. So the next "
            "iteration goes on from the model before it"
        ],
    )
    found = read_json(tmp_path / "iteration-1" / "gate.json")
    assert found["accepted"] is False
    assert found["measures"]["parse_rate"] == {"before": 1.0, "after": 1.0, "max_fall": 0.0, "fell": False}


def test_a_measure_without_a_value_has_fallen_but_can_rise(tmp_path: Path) -> None:
    nothing, something = quality(tmp_path, "a", None, 0.0), quality(tmp_path, "b", 0.5)
    recipe = recipe_of(max_fall={"pairwise_accuracy": 1})
    assert look(tmp_path, recipe, something, nothing)[0] is False
    (tmp_path / "second").mkdir()
    assert look(tmp_path / "second", recipe, nothing, something)[0] is True


def test_without_a_gate_every_model_is_accepted(tmp_path: Path) -> None:
    run = Run(tmp_path, SelfRewardingRecipe())
    assert stages.accepted(run, 1, Artifact(tmp_path, "a"), Artifact(tmp_path, "b"))
    assert run.statuses == []


def test_the_gate_knows_the_measures_that_exist() -> None:
    assert set(get_args(GateMeasure)) <= {*MEASURES, "parse_rate"}
    with pytest.raises(ValidationError):
        SelfRewardingRecipe.model_validate({"gate": {"max_fall": {}}})


@pytest.mark.parametrize(
    ("otherwise", "places"), [("stop", {"iteration-1"}), ("keep", {"iteration-1", "iteration-2"})]
)
def test_a_model_that_is_turned_down_ends_the_run_or_leaves_the_one_before(
    otherwise: str, places: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "accepted", lambda *_: False)
    run = Run(tmp_path, recipe_of(max_fall={"parse_rate": 0}, otherwise=otherwise))
    self_rewarding(run)
    found = {status.stage.name: status.stage for status in run.statuses}
    assert {name.partition("/")[0] for name in found if name.startswith("iteration")} == places
    started = {found[f"{place}/candidates"].inputs["policy"].fingerprint for place in places}
    assert started == {found["eft/train"].fingerprint}


def test_going_on_from_a_run_takes_the_last_model_that_was_accepted(tiny_model: Path, tmp_path: Path) -> None:
    for place, accepted in (("iteration-1", True), ("iteration-2", False)):
        (tmp_path / place / "manifests").mkdir(parents=True)
        write_json(tmp_path / place / "manifests" / "train.json", {})
        (tmp_path / place / "model").symlink_to(tiny_model)
        write_json(tmp_path / place / "gate.json", {"accepted": accepted})
    source = policy_source(Policy(from_run=str(tmp_path)))
    assert source.name == str(tmp_path / "iteration-1" / "model")
