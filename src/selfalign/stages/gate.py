"""The gate: whether the model of an iteration takes the place of the one before it."""

from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_json, write_json

VERSION = 1


def accepted(run: Run[SelfRewardingRecipe], iteration: int, before: Artifact, after: Artifact) -> bool:
    """Say whether no measure of the gate falls further than it may; without a gate every model is accepted.

    A measure that the new model doesn't have counts as fallen; one that the old one doesn't have can't fall.
    While the run is only planned, the model counts as accepted.

    Args:
        run: With the recipe.
        iteration: Counted from 1.
        before: Judge quality of the model before.
        after: Judge quality of the new one.

    Reads:
        judge_quality.json of both models
    Writes:
        iteration-<t>/gate.json

    Source: our choice, because a first iteration that drifts is otherwise noticed only when all are done.
    """
    gate = run.recipe.gate
    if gate is None:
        return True
    stage = Stage(
        name=f"iteration-{iteration}/gate",
        version=VERSION,
        outputs=("gate.json",),
        settings={"max_fall": dict(gate.max_fall)},
        inputs={"before": before, "after": after},
        expected={"accepted": True},
    )

    def body(work: Work) -> dict[str, Any]:
        old, new = (read_json(quality.path)["judge"] for quality in (before, after))
        looks = {name: _look(old[name], new[name], most) for name, most in gate.max_fall.items()}
        fallen = [name for name, look in looks.items() if look["fell"]]
        write_json(work.output("gate.json"), {"accepted": not fallen, "measures": looks})
        if fallen:
            told = "; ".join(_told(name, looks[name]) for name in fallen)
            then = "the run stops with" if gate.otherwise == "stop" else "the next iteration goes on from"
            work.warn(f"M{iteration + 1} is not accepted: {told}. So {then} the model before it")
        return {"accepted": not fallen}

    return bool(run.do(stage, body).figures["accepted"])


def _look(before: Any, after: Any, most: float) -> dict[str, Any]:
    """Compare the two values of a measure, plain ones or such with an interval."""
    old, new = (found["value"] if isinstance(found, dict) else found for found in (before, after))
    fell = old is not None and (new is None or old - new > most)
    return {"before": old, "after": new, "max_fall": most, "fell": fell}


def _told(name: str, look: dict[str, Any]) -> str:
    words = name.replace("_", " ")
    if look["after"] is None:
        return f"{words} was {look['before']:.3f} and has no value any more"
    return f"{words} fell from {look['before']:.3f} to {look['after']:.3f}, by more than {look['max_fall']}"
