import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.config import Sampling
from selfalign.judging import ParsedScore, parse_score
from selfalign.stages.structured import Answer, draw_score, judge_form, read_answer

SAYING = st.text() | st.sampled_from(
    ["Score: 1", "Score:", 'He said "Score: 5".', "Final score (0-5):", "**"]
)

# The form


@given(rationale=SAYING, score=st.integers(0, 5))
def test_every_text_of_the_form_has_the_score_that_it_ends_in(rationale: str, score: int):
    reply = f"{rationale}\nScore: {score}"
    assert re.fullmatch(judge_form(256).pattern, reply)
    assert parse_score(reply) == ParsedScore(score, None)


@pytest.mark.parametrize(
    "reply", ["", "It is good.", "It is good. Score: 4", "well\nScore: 6", "well\nScore: 4 or 5", "Score: -1"]
)
def test_what_ends_in_no_score_line_is_not_of_the_form(reply: str):
    assert not re.fullmatch(judge_form(256).pattern, reply)


def test_prose_in_the_form_fits_into_the_token_limit():
    """English has some 4 characters a token; the line itself takes fewer than 16 of any tokenizer."""
    pattern = judge_form(256).pattern
    longest = max(n for n in range(2000) if re.fullmatch(pattern, "x" * n + "\nScore: 4"))
    assert longest > 60 * 6  # the 60 words that the rubric allows
    assert longest / 4 + 16 < 256
    assert not re.fullmatch(judge_form(10).pattern, "x\nScore: 4")
    assert re.fullmatch(judge_form(10).pattern, "Score: 4")


def test_the_schema_asks_for_the_rationale_first_and_takes_nothing_else():
    schema = judge_form(256).schema
    assert list(schema["properties"]) == ["rationale", "score"]
    assert schema["properties"]["score"]["enum"] == [0, 1, 2, 3, 4, 5]
    assert schema["properties"]["rationale"]["type"] == "string"
    # What a strict schema has to say.
    assert (schema["required"], schema["additionalProperties"]) == (["rationale", "score"], False)


# Answers in JSON


@given(rationale=SAYING, score=st.integers(0, 5), indent=st.sampled_from([None, 2]), truncated=st.booleans())
def test_an_answer_in_json_reads_like_any_other_reply(
    rationale: str, score: int, indent: int | None, truncated: bool
):
    answer = json.dumps({"rationale": rationale, "score": score}, indent=indent)
    text, parsed = read_answer(answer, truncated=truncated)
    assert parsed == parse_score(text) == ParsedScore(score, None)
    assert text.endswith(f"Score: {score}")


@pytest.mark.parametrize(
    ("rationale", "text"),
    [
        ("It is clear.\n", "It is clear.\nScore: 2"),
        ("It is clear.\n\n**Score:** 5/5", "It is clear.\nScore: 2"),
        ("Score: 5", "Score: 2"),
        ("", "Score: 2"),
        ("Score: 5 is claimed.\nIt isn't so.", "Score: 5 is claimed.\nIt isn't so.\nScore: 2"),
        ("Scores as this go:\nhigh", "Scores as this go:\nhigh\nScore: 2"),
    ],
)
def test_the_rationale_is_kept_without_a_score_line_of_its_own(rationale: str, text: str):
    answer = Answer(rationale=rationale, score=2).model_dump_json()
    assert read_answer(answer, truncated=False) == (text, ParsedScore(2, None))


@pytest.mark.parametrize(
    "answer",
    [
        '{"rationale": "Bad. Score: 5"}',
        '{"rationale": "Bad.", "score": 6}',
        '{"rationale": "Bad.", "score": "5"}',
        '{"rationale": "Bad.", "score": 4, "more": 1}',
        '{\n  "rationale": "Bad. Score: 5",\n',
        '{"rationale": "Bad. Score: 5',
    ],
)
def test_json_of_another_form_or_without_its_end_has_no_score(answer: str):
    assert read_answer(answer, truncated=True) == (answer, ParsedScore(None, "truncated"))
    assert read_answer(answer, truncated=False) == (answer, ParsedScore(None, "no_score"))


def test_an_api_that_ignores_the_schema_is_read_like_any_judge():
    assert read_answer("Fine.\nScore: 4", truncated=False) == ("Fine.\nScore: 4", ParsedScore(4, None))
    assert read_answer("Fine.\nScore: 4", truncated=True)[1].reason == "truncated"


# Drawn scores


def shares(probabilities: list[float], draws: int = 4000, **sampling: float) -> list[float]:
    drawn = Counter(draw_score(probabilities, Sampling(**sampling), seed) for seed in range(draws))
    return [drawn[score] / draws for score in range(6)]


def test_scores_are_drawn_by_their_probabilities_among_themselves():
    """Half of the probability is on no score; 4000 draws are within 4 standard deviations of 0.8 %."""
    found = shares([0, 0.05, 0.1, 0, 0.1, 0.25], temperature=1.0, top_p=1.0)
    assert found == pytest.approx([0, 0.1, 0.2, 0, 0.2, 0.5], abs=4 * 0.008)
    assert found[0] == found[3] == 0


def test_temperature_and_nucleus_shape_the_draw():
    """At temperature 1/2 the weights 1 : 3 become 1 : 9; a nucleus of 0.7 leaves the likelier one alone."""
    assert shares([0.1, 0.3, 0, 0, 0, 0], temperature=0.5, top_p=1.0)[0] == pytest.approx(0.1, abs=0.02)
    assert shares([0.1, 0.3, 0, 0, 0, 0], draws=200, temperature=1.0, top_p=0.7)[1] == 1
    assert shares([0.2, 0.1, 0.3, 0, 0, 0], draws=20, temperature=0, top_p=0.9)[2] == 1


def test_a_score_is_drawn_however_unlikely_all_are_but_not_where_there_is_none():
    assert draw_score([0, 0, 0, 1e-60, 0, 0], Sampling(), 1) == 3
    assert draw_score([0.0] * 6, Sampling(), 1) is None
    assert draw_score((), Sampling(), 1) is None
