"""Charts, samples, tables, warnings and texts of the report, each alone."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.records import Completion, FinishReason, Judgment, Message, PreferencePair, content_id
from selfalign.report.charts import (
    RIGHT,
    Bin,
    Chart,
    Interval,
    Series,
    histogram,
    interval_chart,
    line_chart,
    ticks,
)
from selfalign.report.concerns import concerns
from selfalign.report.figures import length_panel, score_panel
from selfalign.report.problems import Problems
from selfalign.report.read import MEASURES, ModelRow, finished_stages, iterations
from selfalign.report.sample import (
    MARGIN_BINS,
    SHOWN,
    DrawnPairs,
    ShownPair,
    draw_pairs,
    read_judgments,
    shown_pairs,
    token_counts,
)
from selfalign.report.tables import iteration_counts, judge_table
from selfalign.report.text import LIMIT, duration, readable, share, signed
from selfalign.runs.files import write_json, write_rows


def chart_of(chart: Chart | None) -> Chart:
    assert chart is not None
    return chart


# Charts


def test_bars_stand_on_the_axis_and_are_as_high_as_their_shares() -> None:
    bins = [Bin(0, 1, 30, "low"), Bin(1, 2, 0, "empty"), Bin(2, 3, 10, "high", "missing")]
    chart = histogram("t", bins, span=(0, 3), marks=[(0, "0")], top=1.0)
    tall, short = chart.bars
    assert tall.height == pytest.approx(3 * short.height, abs=0.3)
    assert {round(bar.y + bar.height, 1) for bar in chart.bars} == {chart.axis}
    assert (tall.kind, short.kind) == ("main", "missing")
    assert chart.description == "low: 30 (75.0\N{NO-BREAK SPACE}%); high: 10 (25.0\N{NO-BREAK SPACE}%)"


def test_charts_with_the_same_axes_put_the_same_share_at_the_same_place() -> None:
    lengths = {"one": Counter({3: 5, 8: 5}), "two": Counter({3: 50, 8: 25, 80: 25})}
    first, second = (figure.chart for figure in length_panel("t", lengths).figures)
    assert first.bars[0] == pytest.approx(
        second.bars[0].__class__(**vars(second.bars[0]) | {"tip": first.bars[0].tip})
    )
    assert first.labels == second.labels
    assert max(bar.x + bar.width for bar in second.bars) <= RIGHT


def test_a_length_beyond_all_round_numbers_still_has_a_bar() -> None:
    for longest in (1, 20, 96, 100, 512, 100_000):
        (figure,) = length_panel("t", {"all": Counter({longest: 1})}).figures
        (bar,) = figure.chart.bars
        assert bar.x + bar.width <= RIGHT
        low, high = (int(part) for part in bar.tip.split(" tokens")[0].split(" to "))
        assert low <= longest <= high


def test_unscored_judgments_have_a_bar_of_their_own_away_from_zero() -> None:
    figures = {"scores": {"0": 1, "5": 1}, "unscored": {"truncated": 2}, "judgments": 4, "parse_rate": 0.5}
    (figure,) = score_panel("t", {"one": {"figures": figures}}).figures
    unscored, zero, _ = figure.chart.bars
    assert unscored.kind == "missing"
    assert unscored.tip == "unscored: 2 (50.0\N{NO-BREAK SPACE}%)"
    assert unscored.x + unscored.width < zero.x


def test_scores_of_any_scale_lie_inside_their_chart() -> None:
    """A judge from elsewhere may score from -3 to 10."""
    figures = {"scores": {"-3": 1, "10": 2}, "unscored": {"no_score": 1}, "judgments": 4, "parse_rate": 0.75}
    (figure,) = score_panel("t", {"one": {"figures": figures}}).figures
    unscored, low, high = figure.chart.bars
    assert figure.chart.left <= unscored.x < unscored.x + unscored.width < low.x < high.x
    assert high.x + high.width <= RIGHT


def test_nothing_to_count_gives_no_chart() -> None:
    assert length_panel("t", {"none": Counter()}).figures == ()
    empty = {"scores": {}, "unscored": {}, "judgments": 0, "parse_rate": None}
    assert score_panel("t", {"none": {"figures": empty}}).figures == ()
    assert line_chart("t", [Series("nan", ((1, math.nan), (2, math.inf)))]) is None
    assert line_chart("t", [Series("empty", ())]) is None


@pytest.mark.parametrize(
    "values", [[2.5], [0.0], [0.0, 0.0, 0.0], [-1e-9, 1e-9], [1e6, 3.0], [0.7, math.nan, 0.6]]
)
def test_every_curve_lies_inside_its_plot(values: list[float]) -> None:
    points = tuple((float(step), value) for step, value in enumerate(values, start=1))
    chart = chart_of(line_chart("t", [Series("loss", points)], reference=0.0))
    for line in chart.lines:
        for x, y in line.points:
            assert chart.left <= x <= RIGHT
            assert 0 < y <= chart.axis
    curve = chart.lines[-1]
    assert len(curve.points) == sum(map(math.isfinite, values))
    assert curve.dots


def test_a_long_curve_is_thinned_to_means_of_neighbours() -> None:
    points = tuple((float(step), float(step % 2)) for step in range(1, 10_001))
    chart = chart_of(line_chart("t", [Series("loss", points)], bounds=(0, 1)))
    (line,) = chart.lines
    assert 100 < len(line.points) < 300
    assert not line.dots
    middle = (chart.axis + 16) / 2
    assert all(y == pytest.approx(middle, abs=2) for _, y in line.points)
    assert "1 at step 1, 0 at step 10000" in chart.description


def test_an_undefined_interval_is_named_and_not_drawn_as_zero() -> None:
    rows = [Interval("a", 0.5, 0.25, 0.75), Interval("b", None, None, None), Interval("c", 0.5, None, None)]
    chart = interval_chart("t", rows)
    assert [len(line.points) for line in chart.lines] == [2, 1, 1]
    assert "undefined" in [label.text for label in chart.labels]
    assert chart.description == "a: 0.50 (0.25 to 0.75); b: undefined; c: 0.50, no interval"


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 20))
def test_ticks_are_few_and_enclose_what_they_are_for(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most)
    slack = max(1e-6 * max(abs(low), span), 1e-9)
    assert found[0] <= low + slack
    assert low + span <= found[-1] + slack
    assert 2 <= len(found) <= most + 3
    assert len({f"{tick:g}" for tick in found}) == len(found)
    assert list(found) == sorted(found)


# Samples


def pair_of(number: int, margin: float) -> PreferencePair:
    prompt = f"p{number}"
    return PreferencePair(
        pair_id=content_id(prompt), prompt_id=prompt, messages=(Message(role="user", content=prompt),),
        chosen_id=f"{prompt}/a", rejected_id=f"{prompt}/b", chosen=f"good {number}", rejected=f"bad {number}",
        reward_chosen=margin, reward_rejected=0, margin=margin, chosen_tokens=2, rejected_tokens=1,
    )  # fmt: skip


def judgment_of(completion_id: str, sample: int) -> Judgment:
    return Judgment(
        judgment_id=f"{completion_id}:{sample}", completion_id=completion_id, prompt_id="", sample=sample,
        score=1.0, reason=None, text=f"about {completion_id}", attempts=1,
    )  # fmt: skip


def sampled(
    tmp_path: Path,
    pairs: list[PreferencePair],
    judgments: list[Judgment] | None = None,
    most_bytes: int = 10**6,
) -> tuple[DrawnPairs, tuple[ShownPair, ...]]:
    write_rows(tmp_path / "pairs.jsonl", pairs)
    write_rows(tmp_path / "judgments.jsonl", judgments or [])
    problems = Problems(tmp_path)
    found = draw_pairs(tmp_path / "pairs.jsonl", problems)
    wanted = {key for pair in found.drawn for key in (pair.chosen_id, pair.rejected_id)}
    judged = read_judgments(tmp_path / "judgments.jsonl", wanted, problems)
    assert list(problems) == []
    return found, shown_pairs(found.drawn, judged, most_bytes=most_bytes)


def test_rare_margins_are_shown_beside_common_ones(tmp_path: Path) -> None:
    pairs = [pair_of(n, 0.25) for n in range(500)] + [pair_of(500 + n, 4.75) for n in range(7)]
    found, shown = sampled(tmp_path, pairs)
    assert found.margins == (500, *[0] * (MARGIN_BINS - 2), 7)
    margins = Counter(row.pair.margin for row in shown)
    assert margins == {0.25: SHOWN - 7, 4.75: 7}
    assert [row.pair.margin for row in shown] == [4.75] * 7 + [0.25] * (SHOWN - 7)
    assert found.mean_margin == pytest.approx((500 * 0.25 + 7 * 4.75) / 507)


def test_the_draw_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    pairs = [pair_of(n, 0.5 + n % 9 / 2) for n in range(300)]
    assert sampled(tmp_path, pairs)[1] == sampled(tmp_path, pairs[::-1])[1]


def test_each_side_has_its_own_judgments_in_the_order_of_samples(tmp_path: Path) -> None:
    pairs = [pair_of(n, 1.0 + n % 4) for n in range(12)]
    judgments = [judgment_of(f"p{n}/{side}", k) for k in (2, 0, 1) for n in range(12) for side in "abc"]
    for row in sampled(tmp_path, pairs, judgments)[1]:
        assert [(j.completion_id, j.sample) for j in row.chosen] == [
            (row.pair.chosen_id, k) for k in range(3)
        ]
        assert {j.completion_id for j in row.rejected} == {row.pair.rejected_id}


def test_a_margin_just_below_a_bound_by_rounding_counts_as_the_bound(tmp_path: Path) -> None:
    just_below = (4 + 4 + 5) / 3 - (3 + 3 + 4) / 3 - 4e-16
    assert just_below < 1
    found, _ = sampled(tmp_path, [pair_of(0, just_below), pair_of(1, 5.0), pair_of(2, 0.1)])
    assert found.margins == (
        1, 0, 1, *[0] * (MARGIN_BINS - 4), 1,
    )  # fmt: skip


def test_pairs_without_a_margin_are_shown_and_in_no_bin(tmp_path: Path) -> None:
    unscored = pair_of(0, 1.0).model_copy(update={"margin": None, "reward_chosen": None})
    found, shown = sampled(tmp_path, [unscored, pair_of(1, 2.0)])
    assert (sum(found.margins), found.mean_margin, found.pairs) == (1, 2.0, 2)
    assert [row.pair.prompt_id for row in shown] == ["p1", "p0"]
    assert sampled(tmp_path, [unscored])[0].mean_margin is None


def test_a_pair_too_big_for_the_page_is_passed_over(tmp_path: Path) -> None:
    big = pair_of(0, 1.0).model_copy(update={"chosen": "&" * 5000})
    found, shown = sampled(tmp_path, [big, pair_of(1, 2.0)], most_bytes=1000)
    assert [row.pair.prompt_id for row in shown] == ["p1"]
    assert sum(found.margins) == 2


def test_candidates_without_a_text_have_no_length(tmp_path: Path) -> None:
    reasons: tuple[FinishReason, ...] = ("stop", "prompt_too_long")
    rows = [
        Completion(
            completion_id=f"{reason}{n}", prompt_id="p", sample=n, text="x" if reason == "stop" else None,
            finish_reason=reason, num_tokens=7 * (reason == "stop"),
        )
        for reason in reasons
        for n in range(2)
    ]  # fmt: skip
    assert token_counts(rows) == {7: 2}


# Tables


def model(name: str, value: float | None, low: float | None, high: float | None, **rest: Any) -> ModelRow:
    reason = "no pair" if value is None else "one prompt" if low is None else None
    measure = {"value": value, "low": low, "high": high, "n": 0 if value is None else 1234, "reason": reason}
    quality = {
        "parse_rate": None if name == "length alone" else 0.875,
        **{key: measure for key, _ in MEASURES},
    }
    return ModelRow(name, "" if name == "length alone" else "somewhere", quality | rest)


def test_judges_are_compared_with_the_model_before_and_length_with_none() -> None:
    models = [
        model("M1", 0.5, 0.4, 0.6),
        model("M2", 0.4, None, None),
        model("length alone", -0.6, -0.7, -0.5),
    ]
    table = judge_table(models, {})
    first, second, length = (cells[0] for _, cells in table.rows)
    assert (first.value, first.change, first.interval, first.n, first.note) == (
        "0.50",
        None,
        "0.40 to 0.60",
        1234,
        None,
    )
    assert (second.value, second.change, second.interval) == ("0.40", "−0.10", None)
    assert (length.value, length.change, length.interval) == ("−0.60", None, "−0.70 to −0.50")
    assert table.notes[(second.note or 0) - 1] == "one prompt"


def test_an_undefined_measure_has_a_note_and_no_change_before_or_after() -> None:
    table = judge_table(
        [model("M1", 0.5, 0.4, 0.6), model("M2", None, None, None), model("M3", 0.5, 0.4, 0.6)], {}
    )
    assert [cells[0].value for _, cells in table.rows] == ["0.50", None, "0.50"]
    assert [cells[0].change for _, cells in table.rows] == [None, None, None]
    assert table.notes == ("no pair",)
    assert table.rows[1][1][0].note == 1


def test_a_reason_not_met_is_zero_and_an_unfinished_stage_is_unknown() -> None:
    def stage(dropped: dict[str, int]) -> dict[str, Any]:
        return {"parts": {"prompts.per_iteration": 9}, "figures": {"rows": 5, "dropped": dropped}}

    stages = {"iteration-1/prompts": stage({"keyword": 2}), "iteration-2/prompts": stage({"too_short": 3})}
    prompts, candidates, *_ = iteration_counts(stages, [1, 2, 3])
    cells = {row.label: row.cells for row in prompts.rows}
    assert cells == {
        "wanted": ("9", "9", None),
        "accepted": ("5", "5", None),
        "dropped: too short": ("0", "3", None),
        "dropped: keyword": ("2", "0", None),
    }
    assert {row.cells for row in candidates.rows} == {(None, None, None)}


def test_stages_come_in_the_order_of_the_method_and_iterations_by_number(tmp_path: Path) -> None:
    stages = [
        "iteration-10/prompts",
        "iteration-2/train",
        "eft/examples",
        "eft/judgments",
        "sft/train",
        "data/read",
    ]
    manifest = {"figures": {}, "warnings": [], "seconds": 0.0, "finished": ""}
    for stage in [*stages, "later/thing"]:
        write_json(tmp_path / stage.replace("/", "/manifests/").__add__(".json"), manifest | {"stage": stage})
    (tmp_path / "iteration-2 (copy)").mkdir()
    assert list(finished_stages(tmp_path, Problems(tmp_path))) == [
        *stages[::-1][:2],
        "eft/judgments",
        "eft/examples",
        *stages[1::-1],
        "later/thing",
    ]
    assert iterations(tmp_path) == [2, 10]


# Warnings


def said(stages: dict[str, Any]) -> list[tuple[str, str]]:
    filled = {name: {"warnings": [], **stage} for name, stage in stages.items()}
    return [(concern.where, concern.message) for concern in concerns(filled, [1, 2])]


@pytest.mark.parametrize(("tokens", "warned"), [(125.0, False), (126.0, True)])
def test_growing_candidates_are_a_warning(tokens: float, warned: bool) -> None:
    stages = {
        "iteration-1/candidates": {"figures": {"mean_tokens": 100.0}},
        "iteration-2/candidates": {"figures": {"mean_tokens": tokens}},
    }
    assert [where for where, _ in said(stages)] == ["iteration-2"] * warned


@pytest.mark.parametrize(("longer", "warned"), [(None, False), (0.75, False), (0.76, True)])
def test_longer_chosen_texts_are_a_warning(longer: float | None, warned: bool) -> None:
    assert bool(said({"iteration-1/pairs": {"figures": {"chosen_longer": longer}}})) == warned


def test_what_the_stages_warned_of_comes_first() -> None:
    stages = {
        "sft/evaluate": {"warnings": ["one", "two"], "figures": {}},
        "iteration-1/pairs": {"warnings": ["three"], "figures": {"chosen_longer": 1.0}},
    }
    assert [where for where, _ in said(stages)] == [
        "sft/evaluate",
        "sft/evaluate",
        "iteration-1/pairs",
        "iteration-1",
    ]


# Texts


@given(st.text(st.characters(exclude_categories=[]), max_size=200))
def test_readable_text_hides_nothing_and_can_be_written(text: str) -> None:
    shown = readable(text)
    shown.encode()
    assert not set(shown) & set("\x00\x1b\x7f\x85\r\u200b\u200e\u200f\u202e\u2028\u2066\ufeff\U000e0041")
    assert readable(shown) == shown


def test_readable_text_keeps_what_people_write() -> None:
    for text in (
        "a\tb\nc",
        "ἄνθρωπος 漢字\u3000１",
        "می\u200cخواهم",
        "👩\u200d💻",
        "10\u00a0%",
        "שלום <b> & \"'",
    ):
        assert readable(text) == text
    assert readable("a\r\nb\rc\x07\u202e") == "a\nb␍c␇⟨U+202E⟩"


def test_long_text_is_cut_and_says_by_how_much() -> None:
    assert readable("x" * LIMIT) == "x" * LIMIT
    assert readable("x" * (LIMIT + 1234)) == "x" * LIMIT + " […] (1,234 more characters)"


def test_numbers_are_written_for_people() -> None:
    assert [signed(change) for change in (0.126, -0.126, 0.0, -0.001)] == ["+0.13", "−0.13", "±0.00", "±0.00"]
    assert [duration(seconds) for seconds in (0.04, 59.9, 60, 3599.6, 7500)] == [
        "0.0 s", "59.9 s", "1 min 00 s", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
    assert share(2 / 3) == "66.7\N{NO-BREAK SPACE}%"
