"""Effects, samples, tables, charts and warnings of an RLCD run's report, each alone."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_report_rlcd import STAGES, FakeRun, page_of

from selfalign.cli.tables import effect_table
from selfalign.evaluation.bootstrap import mean_interval
from selfalign.records import Completion, Message, Prompt
from selfalign.report.charts import RIGHT
from selfalign.report.effects import effects, summary
from selfalign.report.problems import Problems
from selfalign.report.rlcd import length_table, outcome_table, strength_figure
from selfalign.report.rlcd_concerns import rlcd_concerns
from selfalign.report.rlcd_sample import MOST_OUTPUTS, Lengths, sample_answers, sample_contrasts
from selfalign.report.sample import SHOWN
from selfalign.runs.files import write_json, write_rows
from selfalign.stages.preference import PairScore, preference_measures

SPACE = "\N{NO-BREAK SPACE}"


# Effects


def test_effects_come_with_intervals_and_the_benchmarks_as_not_measured(tmp_path: Path) -> None:
    accuracy, prefers, tokens, changed = effects(
        FakeRun(tmp_path / "run").until(STAGES[-1]).root, Problems(tmp_path)
    )
    assert (accuracy.before, accuracy.change, accuracy.over) == ("", "", "10 pairs")
    assert accuracy.after is not None
    assert re.fullmatch(rf"\d+\.\d{SPACE}% \(\d+\.\d to 100\.0\)", accuracy.after)
    assert (prefers.before or "").startswith(f"50.0{SPACE}% (")
    assert (prefers.change or "").startswith(f"+40.0{SPACE}points (")
    assert (tokens.before, tokens.change) == ("15.0 (10.0 to 20.0)", "+2.0 (+2.0 to +2.0)")
    assert (changed.before, changed.after, changed.change) == ("", "", f"50.0{SPACE}% (0.0 to 100.0)")
    table = effect_table([accuracy, prefers, tokens, changed], "not measured")
    assert table.row_count == 5
    assert "not measured" in list(table.columns[2].cells)


def test_without_held_out_pairs_nothing_is_claimed(tmp_path: Path) -> None:
    root = FakeRun(tmp_path / "run").until("rlcd/preference").root
    write_json(root / "rlcd/preference.json", preference_measures([], seed=0))
    assert [row.after for row in effects(root, Problems(root))] == [None, None]
    assert (
        summary(root, Problems(root))
        == "What training did is not measured: no pair of held-out prompts is left."
    )
    assert "not measured: no pair" in page_of(root).text


def test_a_single_pair_has_no_interval(tmp_path: Path) -> None:
    root = FakeRun(tmp_path / "run").until("rlcd/preference").root
    one = PairScore(
        pair_id="a",
        prompt_id="a",
        chosen_tokens=1,
        rejected_tokens=1,
        base_chosen=-1,
        base_rejected=-2,
        policy_chosen=-1,
        policy_rejected=-1,
    )
    write_json(root / "rlcd/preference.json", preference_measures([one], seed=0))
    accuracy, prefers = effects(root, Problems(root))
    assert accuracy.after == f"0.0{SPACE}%"
    assert (prefers.after, prefers.change) == (f"50.0{SPACE}%", f"−50.0{SPACE}points")
    assert (summary(root, Problems(root)) or "").endswith("in 50 % of pairs, 100 % before.")


def test_another_method_has_no_effects(tmp_path: Path) -> None:
    assert effects(tmp_path, Problems(tmp_path)) == []
    assert summary(tmp_path, Problems(tmp_path)) is None


# Samples, tables and charts


def test_a_rare_group_is_shown_beside_a_common_one_with_its_own_principles(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, prompts=300)
    run._contrasts()
    rare = {run.contrasts[n].contrast_id for n in (50, 51, 52)}
    run.contrasts = [
        row.model_copy(update={"group": "rare" if row.contrast_id in rare else "common"})
        for row in run.contrasts
    ]
    write_rows(tmp_path / "contrast/contrasts.jsonl", run.contrasts)
    run._completions()
    run._pairs()
    where = tmp_path / "contrast"
    sample = sample_contrasts(
        where / "pairs.jsonl", where / "contrasts.jsonl", Problems(where), most_bytes=10**7
    )
    assert Counter(row.contrast.group for row in sample.shown) == {"common": SHOWN - 3, "rare": 3}
    assert all(row.pair.contrast_id == row.contrast.contrast_id for row in sample.shown)
    assert all(row.pair.prompt_id == row.contrast.prompt_id for row in sample.shown)
    assert sample.lengths["en/rare"] == Lengths(pairs=3, chosen=60, rejected=45, longer=3)


def test_changed_answers_come_first_each_by_prompt_id(tmp_path: Path) -> None:
    run = FakeRun(tmp_path).until(STAGES[-1])
    files = (tmp_path / f"rlcd/{name}_outputs.jsonl" for name in ("base", "policy"))
    rows = sample_answers(tmp_path / "data/held_out.jsonl", *files, Problems(tmp_path), most_bytes=10**6)
    assert [row.changed for row in rows] == [True, True, False, False]
    for part in (rows[:2], rows[2:]):
        keys = [row.before.prompt_id for row in part]
        assert keys == sorted(keys)
    prompts = {prompt.prompt_id: prompt.messages for prompt in run.prompts}
    assert all(row.messages == prompts[row.before.prompt_id] == prompts[row.after.prompt_id] for row in rows)


def test_prompts_without_an_answer_and_unchanged_ones_beyond_the_limit_are_left_out(tmp_path: Path) -> None:
    prompts = [Prompt.of([Message(role="user", content=str(n))], source="") for n in range(30)]
    write_rows(tmp_path / "prompts", prompts)
    for side in ("before", "after"):
        rows = [
            Completion(
                completion_id=f"{side}{n}", prompt_id=prompt.prompt_id, sample=0,
                text=None if n == 3 else side if n == 5 else "same",
                finish_reason="prompt_too_long" if n == 3 else "stop", num_tokens=1,
            )
            for n, prompt in enumerate(prompts)
        ]  # fmt: skip
        write_rows(tmp_path / side, rows)
    files = (tmp_path / name for name in ("prompts", "before", "after"))
    rows_shown = sample_answers(*files, Problems(tmp_path), most_bytes=10**6)
    assert len(rows_shown) == MOST_OUTPUTS
    assert rows_shown[0].before.prompt_id == prompts[5].prompt_id
    assert prompts[3].prompt_id not in {row.before.prompt_id for row in rows_shown}


def test_outcomes_add_up_by_group_and_in_total() -> None:
    by_group = {
        "zh/helpful": {"identical": 3},
        "en/helpful": {"kept": 1, "identical": 2, "judge_inverted": 1},
    }
    table = outcome_table({"figures": {"outcomes_by_group": by_group}})
    assert table is not None
    headings, rows = table
    assert headings == ["kept", "identical", "judge inverted", "all", "share kept"]
    assert {row.label: row.cells for row in rows} == {
        "en/helpful": ("1", "2", "1", "4", f"25.0{SPACE}%"),
        "zh/helpful": ("0", "3", "0", "3", f"0.0{SPACE}%"),
        "all groups": ("1", "5", "1", "7", f"14.3{SPACE}%"),
    }


def test_the_mean_length_over_all_groups_weighs_every_pair_the_same() -> None:
    lengths = {"a": Lengths(1, 10, 20, 0), "b": Lengths(3, 90, 60, 3)}
    _, rows = length_table(lengths)
    assert [row.cells for row in rows] == [
        ("1", "10.0", "20.0", f"0.0{SPACE}%"),
        ("3", "30.0", "20.0", f"100.0{SPACE}%"),
        ("4", "25.0", "20.0", f"75.0{SPACE}%"),
    ]


@pytest.mark.parametrize("values", [[0.2, 0.3], [-3.0, -2.0], [0.0, 0.0], [1e-5, -40.0]])
def test_the_strength_chart_marks_zero_and_holds_every_interval(values: list[float]) -> None:
    measure = mean_interval(values, seed=0)
    figures = {"rows": 2, "contrast": measure, "contrast_by_group": {"en/x": measure}, "neutral_gap": measure}
    figure = strength_figure({"figures": figures})
    assert figure is not None
    chart = figure.chart
    zero = next(label for label in chart.labels if label.text == "0")
    assert {x for x, _ in chart.lines[0].points} == {zero.x}
    assert all(chart.left <= x <= RIGHT for line in chart.lines for x, _ in line.points)


# Warnings


def said(
    stages: dict[str, Any] | None = None,
    accuracy: dict[str, Any] | None = None,
    tokens: tuple[float | None, float | None] = (None, None),
    lengths: dict[str, Lengths] | None = None,
) -> str:
    preference = {"implicit_reward_accuracy": accuracy} if accuracy else None
    outputs = {"tokens_before": {"value": tokens[0]}, "tokens_after": {"value": tokens[1]}}
    filled = {name: {"warnings": [], **stage} for name, stage in (stages or {}).items()}
    return "; ".join(concern.message for concern in rlcd_concerns(filled, preference, outputs, lengths or {}))


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.7, 0.6, 0.8, ""),
        (0.6, 0.5, 0.7, "no effect is shown"),
        (0.9, None, None, "no effect is shown"),
        (0.4, 0.3, 0.49, "the wrong way"),
        (None, None, None, ""),
    ],
)
def test_an_accuracy_has_to_be_above_one_half(
    value: float | None, low: float | None, high: float | None, words: str
) -> None:
    message = said(accuracy={"value": value, "low": low, "high": high})
    assert words in message
    assert bool(message) == bool(words)


@pytest.mark.parametrize(("same", "warned"), [(5, False), (6, True)])
def test_system_messages_that_do_little_are_a_warning(same: int, warned: bool) -> None:
    outcomes = {"kept": 10 - same, "identical": same - 1, "near_identical": 1}
    stages = {"contrast/pairs": {"figures": {"outcomes": outcomes}}}
    assert ("system messages do little" in said(stages)) == warned


@pytest.mark.parametrize(("completions", "warned"), [(20, False), (22, True)])
def test_contrasts_that_do_not_add_up_are_a_warning(completions: int, warned: bool) -> None:
    figures = {"rows": 6, "held_out_pairs": {"rows": 2}, "outcomes": {"kept": 8, "empty": 2}}
    stages = {
        "contrast/completions": {"figures": {"rows": completions}},
        "contrast/pairs": {"figures": figures},
    }
    assert ("do not add up" in said(stages)) == warned


@pytest.mark.parametrize(("longer", "warned"), [(3, False), (4, True)])
def test_longer_chosen_texts_are_a_warning(longer: int, warned: bool) -> None:
    assert ("teaches length" in said(lengths={"a": Lengths(4, 9, 9, longer)})) == warned


@pytest.mark.parametrize(("after", "warned"), [(125.0, False), (126.0, True), (None, False)])
def test_growing_answers_are_a_warning(after: float | None, warned: bool) -> None:
    assert ("answers grew" in said(tokens=(100.0, after))) == warned
