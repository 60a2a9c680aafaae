"""The page of an RLCD run, on run directories made with the same pure functions as the stages use."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_run import HARMLESS, HOSTILE, Page

from selfalign.config import RLCDRecipe
from selfalign.evaluation.bootstrap import mean_interval
from selfalign.records import Completion, Contrast, Message, Prompt, content_id
from selfalign.report import write_report
from selfalign.report.problems import Problems
from selfalign.report.sample import SHOWN
from selfalign.rlcd import SIDES, completion_id, contrast_pair, drop_reason
from selfalign.runs.files import write_json, write_rows
from selfalign.stages.preference import PairScore, preference_measures

STAGES = (
    "data/read",
    *(f"contrast/{stage}" for stage in ("contrasts", "completions", "pairs", "strength")),
    *(f"rlcd/{stage}" for stage in ("reference", "train", "preference", "outputs")),
)
GROUPS = ("harmless", "helpful")
HELD_OUT = 4


def calm(kind: str, key: str) -> str:
    return f"{kind} {key}"


class FakeRun:
    """Writes what the stages of an RLCD run leave, up to one of them."""

    def __init__(self, root: Path, say: Callable[[str, str], str] = calm, prompts: int = 12) -> None:
        self.root, self.say = root, say
        self.prompts = [
            Prompt.of([Message(role="user", content=say("prompt", str(n)))], source=str(n))
            for n in range(prompts)
        ]
        recipe = RLCDRecipe.model_validate({"method": "rlcd"}).model_dump(mode="json")
        recipe["policy"] |= {"model": say("recipe", "model")}
        write_json(root / "recipe.resolved.json", recipe)
        write_json(
            root / "manifest.json",
            {
                "method": "rlcd",
                "seed": 0,
                "model": {"name": say("model", "name"), "fingerprint": "f1"},
                "chat_template": None,
                "data": {"paths": [say("data", "d1"), "d2"], "format": None, "limit": None, "seed": 0},
                "invocations": [{"started": "2031-02-03T04:05:06+00:00", "selfalign": "9.8.7"}],
            },
        )

    def until(self, last: str) -> "FakeRun":
        for stage in STAGES[: STAGES.index(last) + 1]:
            directory, _, name = stage.partition("/")
            manifest = {
                "stage": stage,
                "parts": {},
                "figures": getattr(self, f"_{name}")(),
                "warnings": [self.say("warning", stage)] if name == "strength" else [],
                "seconds": 1.5,
                "finished": "2031-02-03T04:06:07+00:00",
            }
            write_json(self.root / directory / "manifests" / f"{name}.json", manifest)
        return self

    def _read(self) -> dict[str, Any]:
        write_rows(self.root / "data/held_out.jsonl", self.prompts[:HELD_OUT])
        rows = len(self.prompts) - HELD_OUT
        return {"rows": rows, "held_out": {"rows": HELD_OUT}, "dropped": {"duplicate_prompt": 1234}}

    def _contrasts(self) -> dict[str, Any]:
        self.contrasts = [
            Contrast(
                contrast_id=content_id(prompt.prompt_id), prompt_id=prompt.prompt_id,
                messages=prompt.messages, language="en", group=GROUPS[n % 2],
                positive=self.say("positive", str(n)), negative=self.say("negative", str(n)),
            )
            for n, prompt in enumerate(self.prompts)
        ]  # fmt: skip
        write_rows(self.root / "contrast/contrasts.jsonl", self.contrasts)
        return {"rows": len(self.contrasts), "groups": {}, "dropped": {"no_principles": 3}}

    def _completions(self) -> dict[str, Any]:
        self.completions = [
            self.completion(
                completion_id(contrast, side, 0),
                contrast.prompt_id,
                "good" if side == "positive" or n == 5 else "bad",
                20 - 5 * place,
            )
            for n, contrast in enumerate(self.contrasts)
            for place, side in enumerate(SIDES)
        ]
        write_rows(self.root / "contrast/completions.jsonl", self.completions)
        return {"rows": 2 * len(self.contrasts), "finish_reasons": {"stop": 2 * len(self.contrasts)}}

    def _pairs(self) -> dict[str, Any]:
        outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        held_out = {prompt.prompt_id for prompt in self.prompts[:HELD_OUT]}
        made: dict[bool, list[Any]] = {False: [], True: []}
        for n, contrast in enumerate(self.contrasts):
            positive, negative = self.completions[2 * n : 2 * n + 2]
            reason = drop_reason(positive, negative, similarity=1, keep_truncated=False, refusals=False)
            outcomes[f"en/{contrast.group}"][reason or "kept"] += 1
            if reason is None:
                pair = contrast_pair(contrast, contrast.messages, positive, negative)
                made[contrast.prompt_id in held_out].append(pair)
        write_rows(self.root / "contrast/pairs.jsonl", made[False])
        write_rows(self.root / "contrast/held_out_pairs.jsonl", made[True])
        return {
            "rows": len(made[False]),
            "held_out_pairs": {"rows": len(made[True])},
            "outcomes": dict(sum(outcomes.values(), Counter[str]())),
            "outcomes_by_group": {group: dict(counts) for group, counts in outcomes.items()},
        }

    def completion(self, key: str, prompt_id: str, kind: str, tokens: int) -> Completion:
        return Completion(
            completion_id=key, prompt_id=prompt_id, sample=0, text=self.say(kind, prompt_id),
            finish_reason="stop", num_tokens=tokens,
        )  # fmt: skip

    def _strength(self) -> dict[str, Any]:
        by_group = {
            "en/harmless": mean_interval([0.5, 0.25], seed=0),
            "en/helpful": mean_interval([-1], seed=0),
        }
        both = mean_interval([0.5, 0.25, -1], seed=0)
        return {"rows": 3, "contrast": both, "contrast_by_group": by_group, "neutral_gap": both}

    def _reference(self) -> dict[str, Any]:
        return {"rows": 3, "too_long": 0}

    def _train(self) -> dict[str, Any]:
        rows = [
            {"step": n, "loss": 1 / n, "rewards/margins": 0.1 * n, "rewards/accuracies": 0.75}
            for n in range(1, 6)
        ]
        (self.root / "rlcd/training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"steps": 5, "loss_first": 1.0, "loss_last": 0.2}

    def _preference(self) -> dict[str, Any]:
        scores = [
            PairScore(
                pair_id=str(n), prompt_id=str(n), chosen_tokens=1, rejected_tokens=1,
                base_chosen=-2.0, base_rejected=-2.0 + 0.1 * (n % 2 or -1),
                policy_chosen=-1.0, policy_rejected=-1.5 + (n == 0),
            )
            for n in range(10)
        ]  # fmt: skip
        write_json(self.root / "rlcd/preference.json", preference_measures(scores, seed=0))
        return {"rows": 10, "implicit_reward_accuracy": 0.9}

    def _outputs(self) -> dict[str, Any]:
        for file, after in (("base_outputs", False), ("policy_outputs", True)):
            rows = [
                self.completion(f"{file}{n}", prompt.prompt_id, "after" if after and n % 2 else "before", 9)
                for n, prompt in enumerate(self.prompts[:HELD_OUT])
            ]
            write_rows(self.root / f"rlcd/{file}.jsonl", rows)
        before, after_, change = [10.0, 20.0], [12.0, 22.0], [2.0, 2.0]
        named = {
            "tokens_before": before,
            "tokens_after": after_,
            "tokens_change": change,
            "changed": [0.0, 1.0],
        }
        measures = {name: mean_interval(values, seed=0) for name, values in named.items()}
        write_json(self.root / "rlcd/outputs.json", measures)
        return {"rows": HELD_OUT, "too_long": 7, "changed": 0.5}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return FakeRun(tmp_path / "my run").until(STAGES[-1]).root


def page_of(root: Path) -> Page:
    """Return the page of a run in which everything can be read."""
    problems = Problems(root)
    path = write_report(root, problems)
    assert list(problems) == []
    return Page(path.read_text(encoding="utf-8"))


def test_a_finished_run_tells_everything_in_order(finished: Path) -> None:
    page = page_of(finished)
    expected = (
        "my run", "rlcd from model name", "Finished: 9 stages took 13.5 s",
        "prefers the positive answer in 90 % of pairs (70 to 100), 50 % before.",
        "Warnings", "warning contrast/strength", "What training did", "Gain and tax belong together",
        "implicit-reward accuracy (50 % is no effect)", "10 pairs", "answer tokens", "answers changed",
        "benchmarks before and after", "not measured; selfalign eval RUN --suite rlcd does",
        "Contrast strength", "all pairs", "en/harmless", "en/helpful",
        "Where prompts and pairs went", "to learn from", "held out", "dropped: duplicate prompt", "1,234",
        "prompts dropped: no principles", "Lengths by group", "Outcomes by group",
        "12 contrasts = 11 kept + 1 dropped", "identical", "all groups", "Training", "rewards/margins",
        "Pairs to browse", "7 of 7 shown", "Chosen", "positive", "good", "Rejected", "negative", "bad",
        "Answers before and after", "7 prompts too long to answer",
        "changed", "Before", "before", "After", "after", "unchanged",
        "What was dropped", "Contrasts without a pair", "1", "identical", "prompt 5", "positive", "good",
        "negative", "good", "The run", "Stages", "rlcd/outputs", "Versions", "prompt data", "d1", "d2",
        "Recipe", "per_prompt: 1",
    )  # fmt: skip
    place = 0
    for words in expected:
        assert words in page.text[place:], words
        place = page.text.index(words, place)


def test_the_page_is_well_formed(finished: Path) -> None:
    page = page_of(finished)
    headings = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {str(value)[1:] for _, name, value in page.attributes if name == "href"} <= set(ids)
    assert page.tags.count("svg") == page.tags.count("desc") == 1 + 3
    assert {"script", "link", "img"}.isdisjoint(page.tags)


def test_hostile_text_stays_text_wherever_it_stands(tmp_path: Path) -> None:
    benign = page_of(FakeRun(tmp_path / "benign").until(STAGES[-1]).root)
    root = FakeRun(tmp_path / "hostile", lambda kind, key: f"{HOSTILE} {kind} {key}").until(STAGES[-1]).root
    html = write_report(root).read_text(encoding="utf-8")
    hostile = Page(html)
    assert hostile.tags == benign.tags
    assert [name for _, name, _ in hostile.attributes] == [name for _, name, _ in benign.attributes]
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", html)
    kinds = ("prompt", "positive", "negative", "good", "bad", "before", "after", "model", "data", "warning")
    for kind in kinds:
        assert f"{HARMLESS} {kind}" in hostile.text, kind


@pytest.mark.parametrize("last", STAGES)
def test_an_unfinished_run_shows_what_it_has(tmp_path: Path, last: str) -> None:
    page = page_of(FakeRun(tmp_path / "run").until(last).root)
    assert ("Finished: " in page.text) == (last == STAGES[-1])
    table = page.text.partition("time taken")[2].partition("Versions")[0]
    assert [stage for stage in STAGES if stage in table] == list(STAGES[: STAGES.index(last) + 1])


def test_a_run_before_its_first_stage_says_so(tmp_path: Path) -> None:
    text = page_of(FakeRun(tmp_path / "run").root).text
    for words in (
        "No stage is finished",
        "Nothing has been measured after training",
        "No pairs",
        "No answers",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("contrast/pairs", "contrast/pairs.jsonl"),
        ("rlcd/train", "rlcd/training.jsonl"),
        ("rlcd/preference", "rlcd/preference.json"),
        ("rlcd/outputs", "rlcd/outputs.json"),
        ("rlcd/outputs", "rlcd/policy_outputs.jsonl"),
    ],
)
def test_files_of_an_unfinished_stage_are_not_read(tmp_path: Path, stage: str, file: str) -> None:
    root = FakeRun(tmp_path / "run").until(STAGES[STAGES.index(stage) - 1]).root
    before = page_of(root).text
    (root / file).write_text('{"half a row')
    assert page_of(root).text == before


def test_the_page_does_not_depend_on_the_order_of_rows(finished: Path) -> None:
    before = write_report(finished).read_bytes()
    for path in finished.rglob("*.jsonl"):
        if path.name != "training.jsonl":
            path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert write_report(finished).read_bytes() == before


def test_many_long_texts_stay_below_five_megabytes(tmp_path: Path) -> None:
    def say(kind: str, key: str) -> str:
        return f"{kind} {key} " + '"' * 5_000

    path = write_report(FakeRun(tmp_path / "run", say, prompts=90).until(STAGES[-1]).root)
    assert path.stat().st_size < 5_000_000
    (shown,) = re.findall(r"(\d+) of 85 shown", path.read_text(encoding="utf-8"))
    assert 5 <= int(shown) < SHOWN


def test_a_judge_is_told_of_only_where_one_was_asked(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run").until("contrast/pairs")
    assert not {"Judgments", "reward "} & set(re.findall("Judgments|reward ", page_of(run.root).text))
    figures = {
        "rows": 48,
        "judgments": 48,
        "parse_rate": 0.75,
        "score_entropy": 1.5,
        "tie_rate": None,
        "agreement": 0.5,
        "length_correlation": 0.25,
        "mean_mass": None,
        "unscored": {"no_score": 12},
        "scores": {"4": 36},
    }
    path = run.root / "contrast/manifests/pairs.json"
    warned = ["all scores are 4: such a judge hardly tells replies apart"]
    manifest = json.loads(path.read_text()) | {"stage": "contrast/judgments", "figures": figures}
    manifest |= {"warnings": warned}
    write_json(path.with_name("judgments.json"), manifest)
    pairs = run.root / "contrast/pairs.jsonl"
    pairs.write_text(pairs.read_text().replace('"reward_chosen":null', '"reward_chosen":4.5'))
    text = page_of(run.root).text
    for words in ("Judgments", "unscored: no score", "reward 4.50, 20 tokens", "hardly tells replies apart"):
        assert words in text
    table = text.partition("time taken")[2]
    assert (
        table.index("contrast/completions")
        < table.index("contrast/judgments")
        < table.index("contrast/pairs")
    )
