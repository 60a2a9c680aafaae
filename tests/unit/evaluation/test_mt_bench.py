import json
import re
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.errors import DataError
from selfalign.evaluation.mt_bench import (
    TEMPERATURES,
    MTBench,
    Question,
    judge_request,
    read_mt_bench,
    wrong_references,
)
from selfalign.evaluation.mt_bench_scores import TurnScore, mt_bench, parse_rating
from selfalign.judging import ParsedScore

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "mt_bench"
REFERENCES = Path("reference_answer") / "gpt-4.jsonl"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data files are not here")

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["w1", "w2"]},
    {"question_id": 2, "category": "math", "turns": ["m1", "m2"], "reference": ["", ""]},
]
ANSWERS = [{"question_id": 2, "choices": [{"index": 0, "turns": ["r1", "r2"]}]}]
PROMPTS = [
    {"name": "pair-v2", "system_prompt": "", "prompt_template": "{another} {kind}"},
    {"name": "single-v1", "system_prompt": "sys", "prompt_template": "Q {question} A {answer} {{x}}"},
    {
        "name": "single-math-v1",
        "system_prompt": "sys",
        "prompt_template": "Q {question} R {ref_answer_1} A {answer}",
    },
    {
        "name": "single-v1-multi-turn",
        "system_prompt": "",
        "prompt_template": "{question_1}/{answer_1}/{question_2}/{answer_2}",
    },
    {
        "name": "single-math-v1-multi-turn",
        "system_prompt": "sys",
        "prompt_template": "{ref_answer_1}/{ref_answer_2}/{question_1}/{answer_1}/{question_2}/{answer_2}",
    },
]


def write(folder, *, questions=QUESTIONS, answers=ANSWERS, prompts=PROMPTS):
    (folder / "reference_answer").mkdir(exist_ok=True)
    for name, rows in (
        ("question.jsonl", questions),
        ("judge_prompts.jsonl", prompts),
        (REFERENCES, answers),
    ):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def rows_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def bench_of(**categories):
    """A benchmark with a number of questions in each category, numbered from 1, and nothing else."""
    names = [name for name, count in categories.items() for _ in range(count)]
    return MTBench(
        tuple(Question(question_id=i, category=name, turns=("a", "b")) for i, name in enumerate(names, 1)),
        {},
        {},
    )


def scored(question_id, turn, score):
    reason = score if isinstance(score, str) else None
    return TurnScore(question_id=question_id, turn=turn, score=None if reason else score, reason=reason)


def test_each_turn_is_asked_with_its_own_template(tmp_path):
    bench = read_mt_bench(write(tmp_path))
    writing, maths = bench.questions
    asked = {
        (question.category, turn): [
            (message.role, message.content)
            for message in judge_request(bench, question, turn, ["a{1}", "a2"])
        ]
        for question in (writing, maths)
        for turn in (1, 2)
    }
    assert asked == {
        ("writing", 1): [("system", "sys"), ("user", "Q w1 A a{1} {x}")],
        ("writing", 2): [("user", "w1/a{1}/w2/a2")],
        ("math", 1): [("system", "sys"), ("user", "Q m1 R r1 A a{1}")],
        ("math", 2): [("system", "sys"), ("user", "r1/r2/m1/a{1}/m2/a2")],
    }
    assert judge_request(bench, writing, 1, ["a{1}"]) == judge_request(bench, writing, 1, ["a{1}", "a2"])


def test_a_corrected_file_of_reference_answers_takes_the_place_of_the_published_one(tmp_path):
    better = tmp_path / "better.jsonl"
    better.write_text('{"question_id": 2, "choices": [{"turns": ["right", "r2"]}]}\n')
    assert read_mt_bench(write(tmp_path), better).references == {2: ("right", "r2")}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("question.jsonl", {"questions": [QUESTIONS[0], {"category": "math", "turns": ["a", "b"]}]}, "row 2"),
        (
            "question.jsonl",
            {"questions": [*QUESTIONS, QUESTIONS[0]]},
            'row 3: "question_id" 1 is there twice',
        ),
        (
            "question.jsonl",
            {"questions": [{"question_id": 1, "category": "math", "turns": ["a"]}]},
            "row 1: .* has 1 items",
        ),
        (
            "question.jsonl",
            {"questions": [{"question_id": 1, "category": "math", "turns": ["a", " "]}]},
            "row 1",
        ),
        (
            "question.jsonl",
            {"questions": [{"question_id": 1, "category": "math", "turns": "ab"}]},
            "row 1: .* is text",
        ),
        ("gpt-4.jsonl", {"answers": [{"question_id": 2, "choices": []}]}, "row 1: .* has 0 items"),
        ("gpt-4.jsonl", {"answers": [{**ANSWERS[0], "question_id": 1}]}, "no reference answer to 2"),
        ("judge_prompts.jsonl", {"prompts": PROMPTS[:-1]}, "no judge prompt single-math-v1-multi-turn"),
        ("judge_prompts.jsonl", {"prompts": [*PROMPTS, PROMPTS[1]]}, "row 6: .* single-v1 is there twice"),
        (
            "judge_prompts.jsonl",
            {"prompts": [{**PROMPTS[1], "prompt_template": "{question} {answers}"}]},
            "row 1: .* can't be filled",
        ),
        (
            "judge_prompts.jsonl",
            {"prompts": [{**PROMPTS[1], "prompt_template": "{question} {answer} {"}]},
            "row 1: .* can't be filled",
        ),
        (
            "judge_prompts.jsonl",
            {"prompts": [{**PROMPTS[1], "prompt_template": "{question}"}]},
            "row 1: .* doesn't show answer",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path, file, change, message):
    with pytest.raises(DataError, match=f"{re.escape(file)}.*{message}"):
        read_mt_bench(write(tmp_path, **change))


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("A fair answer. Rating: [[7]]", 7),
        ("Rating: [[7.5]]", 7.5),
        ("Rating: [[10]]", 10),
        ("Rating: [[1]]", 1),
        ("**Rating:** **[[8]]**", 8),
        ("Rating: [[**8**]]", 8),
        ("Rating: [[ 8 ]]", 8),
        ("Rating: ［［８］］", 8),
        ("Rating: [\u200b[8]]", 8),
        ("The format is [[5]]. My rating: [[3]]", 3),
        ("It uses nums[4] and cites [2]. Rating: [[9]]", 9),
        ("Rating: [8]", 8),
        ("I would rate this response a [6.5].", 6.5),
        ("评分：[6]", 6),
        ("Rating: [4]\nOn reflection, rating: [5]", 5),
    ],
)
def test_the_last_rating_is_read(reply, score):
    assert parse_rating(reply) == ParsedScore(score, None)
    assert parse_rating(f"{reply}\n", truncated=True).score == score


def test_a_forgotten_bracket_costs_no_rating_unless_the_reply_may_end_there():
    assert parse_rating("Rating: [[8]") == ParsedScore(8, None)
    assert parse_rating("Rating: [[8]", truncated=True) == ParsedScore(None, "truncated")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty"),
        (" \u200b\n", "empty"),
        ("A fine answer.", "no_score"),
        ("Rating: 8", "no_score"),
        ("Rating: [[rating]]", "no_score"),
        ("The answer reads nums[4], see [2].", "no_score"),
        ("Rating: [[7-8]]", "ambiguous"),
        ("Rating: [[8/10]]", "ambiguous"),
        ("Rating: [[8, 7]]", "ambiguous"),
        ("By the format [[5]]: [[7-8]]", "ambiguous"),
        ("Rating: [[0]]", "out_of_range"),
        ("Rating: [[11]]", "out_of_range"),
        ("Rating: [[-3]]", "out_of_range"),
        ("Rating: [[0.9]]", "out_of_range"),
        ("First [[7]], then [[70]]", "out_of_range"),
    ],
)
def test_without_a_sound_rating_there_is_a_reason_and_no_number(reply, reason):
    found = parse_rating(reply)
    assert (found.score, found.reason) == (None, reason)


@pytest.mark.parametrize(
    "reply",
    [
        "The assistant explains",
        "By the format [[5]] I say. Rating:",
        "By the format [[5]] I say. Rating: [",
        "By the format [[5]] I say: [[1",
        "By the format [[5]] I say: [[10]",
    ],
)
def test_a_rating_that_may_have_been_cut_off_does_not_count(reply):
    found = parse_rating(reply, truncated=True)
    assert (found.score, found.reason) == (None, "truncated")


@given(st.text(), st.booleans())
def test_any_reply_gives_a_score_in_range_or_a_reason(reply, truncated):
    found = parse_rating(reply, truncated=truncated)
    assert (found.score is None) != (found.reason is None)
    assert found.score is None or 1 <= found.score <= 10


def test_means_by_turn_and_category_over_what_was_scored():
    """Two writing questions and a maths one.

    turn 1: 8, 6, none     -> mean 7   of 2, one `no_score`
    turn 2: 4, 9, none     -> mean 6.5 of 2, one not judged
    all:    8, 6, 4, 9     -> 27 / 4 = 6.75
    writing has all four scores, maths none.
    """
    scores = [scored(2, 2, 9), scored(1, 1, 8), scored(2, 1, 6), scored(1, 2, 4), scored(3, 1, "no_score")]
    result = mt_bench(bench_of(writing=2, math=1), scores)
    found = {name: result[name] for name in ("turn_1", "turn_2", "all")} | result["categories"]
    assert {name: (cell["value"], cell["n"], cell["turns"]) for name, cell in found.items()} == {
        "turn_1": (7.0, 2, 3),
        "turn_2": (6.5, 2, 3),
        "all": (6.75, 4, 6),
        "writing": (6.75, 4, 4),
        "math": (None, 0, 2),
    }
    assert {name: cell["failed"] for name, cell in found.items()} == {
        "turn_1": {"no_score": 1},
        "turn_2": {"not_judged": 1},
        "all": {"no_score": 1, "not_judged": 1},
        "writing": {},
        "math": {"no_score": 1, "not_judged": 1},
    }
    assert found["math"]["reason"] == "no turn is scored"
    assert result["questions"] == 3
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_two_turns_of_a_question_are_resampled_together():
    """With equal scores in both turns, twice the turns tell nothing new: the interval stays as wide."""
    scores = [1, 3, 9, 10, 4, 7]
    rows = [scored(i, turn, score) for i, score in enumerate(scores, 1) for turn in (1, 2)]
    result = mt_bench(bench_of(stem=6), rows)
    assert result["all"]["n"] == 12
    assert [result["all"][end] for end in ("low", "high")] == [
        result["turn_1"][end] for end in ("low", "high")
    ]
    assert result["all"]["low"] < fmean(scores) < result["all"]["high"]


@given(
    st.lists(
        st.tuples(*[st.one_of(st.floats(1, 10), st.sampled_from(["no_score", "empty"]))] * 2), min_size=1
    )
)
def test_an_unscored_turn_weighs_nothing_and_every_turn_is_counted(pairs):
    rows = [scored(i, turn, score) for i, pair in enumerate(pairs, 1) for turn, score in enumerate(pair, 1)]
    result = mt_bench(bench_of(coding=len(pairs)), rows)["all"]
    sound = [row.score for row in rows if row.score is not None]
    assert result["value"] == (pytest.approx(fmean(sound)) if sound else None)
    assert result["n"] + sum(result["failed"].values()) == result["turns"] == 2 * len(pairs)
    assert (result["reason"] is None) == (result["low"] is not None)


def test_scores_that_do_not_belong_are_refused():
    with pytest.raises(ValueError, match="no question 2"):
        mt_bench(bench_of(stem=1), [scored(2, 1, 5)])
    with pytest.raises(ValueError, match="turn 1 of question 1 is scored twice"):
        mt_bench(bench_of(stem=1), [scored(1, 1, 5), scored(1, 1, 6)])
    with pytest.raises(ValueError, match="either a score or a reason"):
        TurnScore(question_id=1, turn=1, score=None, reason=None)


@needs_data
def test_the_published_files_are_read():
    bench = read_mt_bench(DATA)
    assert Counter(question.category for question in bench.questions) == dict.fromkeys(
        ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"], 10
    )
    assert list(bench.references) == list(range(101, 131))
    assert sum(TEMPERATURES.get(question.category, 0.0) > 0 for question in bench.questions) == 40


@needs_data
def test_the_wrong_reference_answers_are_known_until_they_are_corrected(tmp_path):
    wrong = [104, 105, 109, 111, 113, 114, 120, 122, 124, 125, 126, 128, 130]
    bench = read_mt_bench(DATA)
    assert wrong_references(bench) == wrong
    assert mt_bench(bench, [])["wrong_references"] == wrong
    rows = rows_of(DATA / REFERENCES)
    for row in rows:
        if row["question_id"] in (104, 107):
            row["choices"][0]["turns"][1] = "corrected"
    better = tmp_path / "better.jsonl"
    better.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert wrong_references(read_mt_bench(DATA, better)) == wrong[1:]


@needs_data
def test_the_published_judgments_give_the_published_scores_and_means():
    """The means of the judged model, as published with the judgments: 9.0437, 8.3063 and 8.6750."""
    rows = rows_of(DATA / "model_judgment" / "gpt-4_single.jsonl")
    scores = []
    for row in rows:
        found = parse_rating(row["judgment"])
        assert (found.score, found.reason) == (row["score"], None)
        scores.append(scored(row["question_id"], row["turn"], found.score))
    bench = read_mt_bench(DATA)
    result = mt_bench(bench, scores)
    assert [round(result[name]["value"], 4) for name in ("turn_1", "turn_2", "all")] == [
        9.0437,
        8.3063,
        8.675,
    ]
    assert [result[name]["n"] for name in ("turn_1", "turn_2", "all")] == [80, 80, 160]
    for name, cell in result["categories"].items():
        members = {question.question_id for question in bench.questions if question.category == name}
        own = [row["score"] for row in rows if row["question_id"] in members]
        assert (cell["value"], cell["n"]) == (pytest.approx(fmean(own)), 20)


@needs_data
def test_the_judge_is_asked_what_was_asked_for_the_published_judgments():
    bench = read_mt_bench(DATA)
    questions = {question.question_id: question for question in bench.questions}
    answers = {
        row["question_id"]: row["choices"][0]["turns"]
        for row in rows_of(DATA / "model_answer" / "claude-3-opus-20240229.jsonl")
    }
    systems = {row["name"]: row["system_prompt"] for row in rows_of(DATA / "judge_prompts.jsonl")}
    rows = rows_of(DATA / "model_judgment" / "gpt-4_single.jsonl")
    assert len(rows) == 160
    for row in rows:
        number = row["question_id"]
        system, user = judge_request(bench, questions[number], row["turn"], answers[number])
        assert (user.role, user.content) == ("user", row["user_prompt"])
        assert (system.role, system.content) == ("system", systems[row["judge"][1]])
