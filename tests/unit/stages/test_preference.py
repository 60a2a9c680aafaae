import pytest

from selfalign.engines import Generation
from selfalign.recipes import resolve_recipe
from selfalign.records import Message, Prompt
from selfalign.runs import Artifact, Run
from selfalign.runs.events import EventLog
from selfalign.runs.files import read_json, write_rows
from selfalign.stages.preference import PairScore, compare_outputs, preference_measures


def score(number: int, *values: float, tokens: tuple[int, int] = (1, 1)) -> PairScore:
    """Scores in the order base chosen, base rejected, policy chosen, policy rejected."""
    names = ("base_chosen", "base_rejected", "policy_chosen", "policy_rejected")
    return PairScore(
        pair_id=f"pair {number}",
        prompt_id=f"p{number}",
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
        **dict(zip(names, values, strict=True)),
    )


def values(*scores: PairScore) -> dict[str, float | None]:
    return {name: measure["value"] for name, measure in preference_measures(scores, seed=0).items()}


def test_the_measures_are_what_hand_calculation_gives():
    """Five pairs (base chosen, base rejected -> policy chosen, policy rejected), in nats; tokens 1 and 1.

    1: (-2, -1 -> -1, -3): reward (-1+2) - (-3+1) = +3; the preference turns from 0 to 1.
    2: (-1, -2 -> -1, -1.5): reward 0 - 0.5 = -0.5; prefers the positive before and after.
    3: (-1, -1 -> -2, -2): reward -1 - -1 = 0, a tie; a tie before and after.
    4: (-1, -2 -> -3, -2): reward -2 - 0 = -2; the preference turns from 1 to 0.
    5: 10 and 2 tokens, (-20, -5 -> -12, -3): reward 8 - 2 = +6, though a token gains 0.8 and 1; means
       -2, -2.5 -> -1.2, -1.5: prefers the positive before and after, though its sum is the lower.
    """
    found = values(
        score(1, -2, -1, -1, -3),
        score(2, -1, -2, -1, -1.5),
        score(3, -1, -1, -2, -2),
        score(4, -1, -2, -3, -2),
        score(5, -20, -5, -12, -3, tokens=(10, 2)),
    )
    assert found == {
        "implicit_reward_accuracy": pytest.approx((1 + 0 + 0.5 + 0 + 1) / 5),
        "implicit_reward_margin": pytest.approx((3 - 0.5 + 0 - 2 + 6) / 5),
        "prefers_positive_before": pytest.approx((0 + 1 + 0.5 + 1 + 1) / 5),
        "prefers_positive_after": pytest.approx((1 + 1 + 0.5 + 0 + 1) / 5),
        "prefers_positive_change": pytest.approx((1 + 0 + 0 - 1 + 0) / 5),
    }


def test_a_model_that_did_not_change_is_right_half_the_time_whatever_it_prefers():
    found = values(score(1, -1, -2, -1, -2), score(2, -1, -5, -1, -5), score(3, -4, -3, -4, -3))
    assert found["implicit_reward_accuracy"] == 0.5
    assert found["implicit_reward_margin"] == found["prefers_positive_change"] == 0
    assert found["prefers_positive_before"] == found["prefers_positive_after"] == pytest.approx(2 / 3)


def test_without_held_out_pairs_nothing_is_measured():
    assert set(values().values()) == {None}


def test_every_measure_says_over_how_many_pairs():
    measures = preference_measures([score(i, -1, -2, -1, -2) for i in range(3)], seed=0)
    assert {measure["n"] for measure in measures.values()} == {3}


class Echo:
    """Answers with the name of its model where it likes, and leaves long prompts unanswered."""

    def __init__(self, model):
        self._model = model

    def generate(self, requests, _sampling):
        for request in requests:
            text = request.messages[-1].content
            if text == "long":
                yield Generation(request.key, None, "prompt_too_long", 0)
            else:
                words = text if text == "same" else f"{self._model.name} and more"
                yield Generation(request.key, words, "stop", len(words.split()))


def test_prompts_without_an_answer_are_counted_and_weigh_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "selfalign.stages.complete.open_engine", lambda _settings, _policy, model: Echo(model)
    )
    prompts = [Prompt.of((Message(role="user", content=text),), "here") for text in ("same", "long", "new")]
    write_rows(tmp_path / "held_out.jsonl", prompts)
    run = Run(tmp_path / "run", resolve_recipe({"method": "rlcd"}), EventLog(tmp_path / "events.jsonl"))
    base, policy, held_out = (Artifact(tmp_path / n, n) for n in ("base", "policy", "held_out.jsonl"))
    made = compare_outputs(run, base, policy, held_out)
    measures = read_json(made.path)
    assert {name: (m["value"], m["n"]) for name, m in measures.items()} == {
        "changed": (0.5, 2),
        "tokens_before": (2.0, 2),
        "tokens_after": (2.0, 2),
        "tokens_change": (0.0, 2),
    }
    assert dict(made.figures) == {"rows": 2, "too_long": 1, "changed": 0.5}
