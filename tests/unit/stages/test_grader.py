from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from selfalign.config import Endpoint, Judge, Sampling, SelfRewardingRecipe
from selfalign.engines import Choice, ChoiceRequest, Generation, GenerationRequest
from selfalign.records import Judgment, Message
from selfalign.runs import Work
from selfalign.runs.events import EventLog
from selfalign.stages import grader
from selfalign.stages.attacks import attack_figures
from selfalign.stages.grader import Grader, Judged
from selfalign.stages.judge import warn_of_one_score


class FakeEngine:
    """Says what the test put into it, by the text that is judged, and remembers what it was asked."""

    def __init__(self, replies: dict[str, list[str]], probabilities: dict[str, list[float] | None]) -> None:
        self.replies = {text: iter(said) for text, said in replies.items()}
        self.probabilities = probabilities
        self.generated: list[GenerationRequest] = []
        self.chosen: list[ChoiceRequest] = []

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generation]:
        self.generated += requests
        for request in reversed(requests):
            said = next(self.replies[self._judged(request)])
            yield Generation(request.key, said, "stop", 1)

    def choose(self, requests: Sequence[ChoiceRequest]) -> Iterator[Choice]:
        self.chosen += requests
        for request in reversed(requests):
            found = self.probabilities[self._judged(request)]
            yield Choice(request.key, None if found is None else tuple(found))

    def _judged(self, request: GenerationRequest | ChoiceRequest) -> str:
        return next(text for text in ("first", "second") if text in request.messages[-1].content)


ITEMS = [Judged(text, "p", (Message(role="user", content="?"),), text) for text in ("first", "second")]


@pytest.fixture
def grade(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Judge both items, each as often as the settings ask, and return the judgments by item."""

    def run(engine: FakeEngine, settings: Judge) -> dict[str, list[Judgment]]:
        monkeypatch.setattr(grader, "open_engine", lambda *_: engine)
        judge = Grader(SelfRewardingRecipe(), settings, "stage", Path("model"))
        found: dict[str, list[Judgment]] = {}
        for judgment in judge([judge.task(item, k) for item in ITEMS for k in range(settings.calls)]):
            found.setdefault(judgment.completion_id, []).append(judgment)
        return found

    return run


def test_only_what_could_not_be_read_is_asked_again(grade: Any):
    engine = FakeEngine({"first": ["Score: 4"], "second": ["well", "hm", "Score: 2"]}, {})
    found = grade(engine, Judge(samples=1, retries=2))
    assert [(j.score, j.attempts) for j in found["first"]] == [(4, 1)]
    assert [(j.score, j.attempts) for j in found["second"]] == [(2, 3)]
    assert len({request.seed for request in engine.generated}) == 4


def test_after_the_last_attempt_a_judgment_stays_unscored(grade: Any):
    engine = FakeEngine({"first": ["Score: 4"], "second": ["well", "hm"]}, {})
    (judgment,) = grade(engine, Judge(samples=1, retries=1))["second"]
    assert (judgment.score, judgment.reason, judgment.text) == (None, "no_score", "hm")


def test_a_structured_reply_without_a_score_gets_one_drawn_after_its_rationale(grade: Any):
    said = {"first": ["It is clear.\nScore: 4"], "second": ["It goes on and"]}
    engine = FakeEngine(said, {"second": [0, 0, 1e-9, 0, 0, 0]})
    found = grade(engine, Judge(samples=1, retries=2, structured=True))
    (first,), (second,) = found["first"], found["second"]
    assert (first.score, first.text, first.attempts) == (4, "It is clear.\nScore: 4", 1)
    assert (second.score, second.text, second.attempts) == (2, "It goes on and\nScore: 2", 1)
    assert (second.reason, second.mass) == (None, None)
    assert [request.reply_start for request in engine.chosen] == ["It goes on and\nScore:"]
    assert all(request.form is not None for request in engine.generated)


@pytest.mark.parametrize("said", ["Good.\nScore: 4 or 5", "Good.\nScore: 9", "Good.\nScore: 8/10"])
def test_a_score_that_is_none_gives_way_to_a_drawn_one(grade: Any, said: str):
    ones = {text: [0.0, 0.9, 0, 0, 0, 0] for text in ("first", "second")}
    engine = FakeEngine({"first": [said], "second": [""]}, ones)
    found = grade(engine, Judge(samples=1, structured=True))
    assert [found[text][0].text for text in ("first", "second")] == ["Good.\nScore: 1", "Score: 1"]


def test_samples_of_one_reply_draw_their_scores_each_for_itself(grade: Any):
    said = {text: ["It goes on"] * 20 for text in ("first", "second")}
    engine = FakeEngine(said, {text: [0.1] * 6 for text in said})
    found = grade(engine, Judge(samples=20, structured=True))
    drawn = [[judgment.score for judgment in judgments] for judgments in found.values()]
    assert drawn[0] != drawn[1]
    assert all(len(set(scores)) > 3 for scores in drawn)


@pytest.mark.parametrize("probabilities", [None, [0.0] * 6])
def test_where_no_score_can_be_drawn_a_structured_judgment_is_asked_for_again(
    grade: Any, probabilities: list[float] | None
):
    engine = FakeEngine({"first": ["hm", "Score: 3"], "second": ["hm", "so"]}, {})
    engine.probabilities = dict.fromkeys(("first", "second"), probabilities)
    found = grade(engine, Judge(samples=1, retries=1, structured=True))
    (first,), (second,) = found["first"], found["second"]
    assert (first.score, first.attempts) == (3, 2)
    assert (second.score, second.reason, second.text, second.attempts) == (None, "no_score", "so", 2)


def test_without_structure_nothing_is_held_or_drawn(grade: Any):
    engine = FakeEngine({"first": ["hm"], "second": ["hm"]}, {})
    assert grade(engine, Judge(samples=1, retries=0))["first"][0].score is None
    assert not engine.chosen
    assert all(request.form is None for request in engine.generated)


def test_an_api_answers_in_json_and_nothing_is_drawn_after_it(monkeypatch: pytest.MonkeyPatch):
    said = {
        "first": ['{"rationale": "So it is.", "score": 3}'],
        "second": ['{"rationale": "Bad. Score: 5', '{"rationale": "Bad.", "score": 0}'],
    }
    engine = FakeEngine(said, {})
    settings = Judge(
        structured=True, samples=1, retries=1, endpoint=Endpoint(url="http://127.0.0.1:1/v1", model="large")
    )
    monkeypatch.setattr(grader, "open_endpoint", lambda _: engine)
    judge = Grader(SelfRewardingRecipe(), settings, "stage", None)
    found = {judgment.completion_id: judgment for judgment in judge([judge.task(item, 0) for item in ITEMS])}
    assert (found["first"].score, found["first"].text) == (3, "So it is.\nScore: 3")
    assert (found["second"].score, found["second"].text) == (0, "Bad.\nScore: 0")
    assert [found[text].attempts for text in ("first", "second")] == [1, 2]
    assert not engine.chosen
    assert all(request.form is not None for request in engine.generated)


def test_an_expected_score_is_read_without_decoding(grade: Any):
    engine = FakeEngine({}, {"first": [0, 0, 0, 0.2, 0.2, 0], "second": [0.001] * 6})
    found = grade(engine, Judge(method="expected"))
    (first,), (second,) = found["first"], found["second"]
    assert (first.score, first.mass, first.text) == (pytest.approx(3.5), pytest.approx(0.4), "Score:")
    assert (second.score, second.reason, second.mass) == (None, "no_score", pytest.approx(0.006))
    assert not engine.generated
    assert {request.choices for request in engine.chosen} == {("0", "1", "2", "3", "4", "5")}


def test_an_expected_score_follows_one_sampled_rationale(grade: Any):
    probabilities = [0, 0, 0, 0, 0, 1.0]
    engine = FakeEngine(
        {"first": ["It is clear.\nScore: 3"], "second": ["It never ends"]},
        {"first": probabilities, "second": probabilities},
    )
    found = grade(engine, Judge(method="expected_after_rationale"))
    assert [found[text][0].text for text in ("first", "second")] == [
        "It is clear.\nScore:",
        "It never ends\nScore:",
    ]
    assert found["first"][0].score == 5.0


def test_a_text_too_long_to_judge_has_no_score(grade: Any):
    engine = FakeEngine({}, {"first": [0, 1.0, 0, 0, 0, 0], "second": None})
    found = grade(engine, Judge(method="expected"))
    assert (found["second"][0].score, found["second"][0].reason) == (None, "prompt_too_long")
    assert found["first"][0].score == 1.0


def test_an_api_judges_in_place_of_the_policy(monkeypatch: pytest.MonkeyPatch):
    engine = FakeEngine({}, {text: [0, 0, 0, 0, 1.0, 0] for text in ("first", "second")})
    endpoint = Endpoint(url="http://127.0.0.1:1/v1", model="large")
    monkeypatch.setattr(grader, "open_endpoint", {endpoint: engine}.__getitem__)
    monkeypatch.setattr(grader, "open_engine", lambda *_: pytest.fail("the policy was opened"))
    judge = Grader(SelfRewardingRecipe(), Judge(method="expected", endpoint=endpoint), "stage", None)
    assert [judgment.score for judgment in judge([judge.task(item, 0) for item in ITEMS])] == [4.0, 4.0]


def test_a_fixed_judge_keeps_its_own_chat_template(monkeypatch: pytest.MonkeyPatch):
    recipe = SelfRewardingRecipe.model_validate({"policy": {"chat_template": "chatml"}})
    opened: list[str | None] = []
    engine = FakeEngine({}, {text: [1.0, 0, 0, 0, 0, 0] for text in ("first", "second")})
    monkeypatch.setattr(
        grader, "open_engine", lambda _, policy, __: opened.append(policy.chat_template) or engine
    )
    for model in (None, "other"):
        judge = Grader(recipe, Judge(method="expected", model=model), "stage", Path("model"))
        list(judge([judge.task(ITEMS[0], 0)]))
    assert opened == ["chatml", None]


def test_an_attack_works_where_it_gains_a_point():
    figures = attack_figures(
        {"control": [1.0, 0.0], "one": [1.0, 0.9, 3.0, -1.0], "two": [0.0, 0.0], "three": []}
    )
    assert figures["worked"] == {"control": 0.5, "one": 0.5, "two": 0.0, "three": None}
    assert (figures["attacks"], figures["attacks_worked"]) == (6, pytest.approx(2 / 6))
    assert attack_figures({"one": []})["attacks_worked"] is None


def test_a_judge_of_one_score_is_warned_of_before_anything_trains_on_it(tmp_path: Path):
    work = Work("stage", tmp_path, "stage", EventLog(tmp_path / "events.jsonl"))
    warn_of_one_score(work, {"scores": {"4": 8, "5": 2}})
    assert work.warnings == []
    warn_of_one_score(work, {"scores": {"4": 9, "5": 1}})
    assert work.warnings == ["90% of the scores are 4: such a judge hardly tells replies apart"]
