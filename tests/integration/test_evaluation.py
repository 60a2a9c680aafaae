"""Evaluations of a model and of a run: what they measure, leave out, keep, and refuse."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfalign.evaluation.results import TaskResult
from selfalign.evaluation.sandbox import sandbox_problem
from selfalign.runs.files import read_json

SCRIPT = """\
vocabulary = "one two three four five six seven"
[[rules]]
match = 'Rate the answer'
reply = "It is {{ words(3) }}. Rating: [[{{ number(1, 10) }}]]"
[[rules]]
match = 'Score:'
reply = "It is {{ words(3) }}.\\nScore: {{ number(0, 5) }}"
[[rules]]
match = 'def double'
reply = "Here it is:\\n```python\\ndef double(x):\\n    return 2 * x\\n```"
[[rules]]
match = 'def triple'
reply = "```python\\ndef triple(x):\\n    return 2 * x\\n```"
[[rules]]
match = ''
reply = "{{ words(number(3, 9)) }}."
"""
BAD_SHOWN = "what is <script>alert(1)</script>?"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data directory with two problems of HumanEval and two questions of MT-Bench."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "script.toml").write_text(SCRIPT, encoding="utf-8")
    problems = [
        {
            "task_id": f"Test/{place}",
            "prompt": f'def {name}(x):\n    """Return {factor} times x."""\n',
            "entry_point": name,
            "canonical_solution": f"    return {factor} * x\n",
            "test": f"def check(f):\n    assert f(2) == {2 * factor}\n",
        }
        for place, (name, factor) in enumerate([("double", 2), ("triple", 3)])
    ]
    jsonl(folder / "humaneval" / "HumanEval.jsonl", problems)
    questions = [
        {"question_id": 81, "category": "writing", "turns": [BAD_SHOWN, "and shorter?"]},
        {"question_id": 111, "category": "math", "turns": ["one and one?", "and one more?"]},
    ]
    jsonl(folder / "mt_bench" / "question.jsonl", questions)
    references = [{"question_id": 111, "choices": [{"index": 0, "turns": ["2", "3"]}]}]
    jsonl(folder / "mt_bench" / "reference_answer" / "gpt-4.jsonl", references)
    shown = {
        "single-v1": "{question} {answer}",
        "single-math-v1": "{question} {ref_answer_1} {answer}",
        "single-v1-multi-turn": "{question_1} {answer_1} {question_2} {answer_2}",
        "single-math-v1-multi-turn": "{question_1} {ref_answer_1} {question_2} {ref_answer_2} {answer_1} "
        "{answer_2}",
    }
    prompts = [
        {"name": name, "system_prompt": "You grade.", "prompt_template": f"Rate the answer: {template}"}
        for name, template in shown.items()
    ]
    jsonl(folder / "mt_bench" / "judge_prompts.jsonl", prompts)
    return folder


@pytest.fixture(scope="module")
def words(data_dir: Path, tiny_recipe: Path) -> list[str]:
    """Return the words that make an evaluation one of the scripted engine."""
    return [
        "--data-dir", str(data_dir), "--judge", str(tiny_recipe.parent / "model"),
        "engine.kind=scripted", f"engine.script={data_dir / 'script.toml'}",
    ]  # fmt: skip


def result(root: Path, model: str, task: str) -> TaskResult:
    return TaskResult.model_validate(read_json(root / model / f"{task}.json"))


needs_sandbox = pytest.mark.skipif(sandbox_problem() is not None, reason=f"no sandbox: {sandbox_problem()}")


@needs_sandbox
def test_code_that_a_model_writes_is_run_and_counted(call, words, tiny_recipe, tmp_path) -> None:
    model = tiny_recipe.parent / "model"
    assert call("eval", model, "--tasks", "humaneval", *words, "--run-dir", tmp_path / "e") == 0
    found = result(tmp_path / "e", "model", "humaneval")
    assert (found.headline["value"], found.headline["n"]) == (0.5, 2)
    assert found.counts == {"passed": 1, "failed": 1, "truncated": 0}


def test_mt_bench_scores_both_turns_of_every_question(call, words, tiny_recipe, tmp_path) -> None:
    model = tiny_recipe.parent / "model"
    assert call("eval", model, "--tasks", "mt_bench", *words, "--run-dir", tmp_path / "e") == 0
    found = result(tmp_path / "e", "model", "mt_bench")
    rows = (tmp_path / "e" / "model" / "mt_bench_grades.jsonl").read_text().splitlines()
    scores = [json.loads(row)["turn_score"]["score"] for row in rows]
    assert found.counts == {"turns": 4, "parsed": 4}
    assert found.headline["value"] == pytest.approx(sum(scores) / 4)
    assert set(found.measures) == {"all", "turn 1", "turn 2", "writing", "math"}


def write_sums(folder: Path) -> list[dict[str, Any]]:
    """Write both files of GSM8K and return their rows."""
    sums = [{"question": f"{n} and {n}?", "answer": f"#### {2 * n}"} for n in range(8)]
    for part in ("train", "test"):
        jsonl(folder / "gsm8k" / f"{part}.jsonl", sums)
    return sums


def test_a_benchmark_that_is_interrupted_keeps_its_answers_and_tells_how_far_it_is(
    call, tiny_recipe, tmp_path, monkeypatch
) -> None:
    from selfalign.engines.local import LocalEngine

    write_sums(tmp_path / "data")
    model, decode, drawn = tiny_recipe.parent / "model", LocalEngine._decode_all, []

    def mortal(self: LocalEngine, rows: list[Any], sampling: Any) -> Any:
        for generation in decode(self, rows, sampling):
            if len(drawn) == 5:
                raise KeyboardInterrupt
            drawn.append(generation)
            yield generation

    asked = ["eval", model, "--tasks", "gsm8k", "--data-dir", tmp_path / "data", "policy.precision=float32"]
    assert call(*asked, "--run-dir", tmp_path / "whole") == 0
    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "_decode_all", mortal)
        assert call(*asked, "--run-dir", tmp_path / "e") == 130
        drawn.clear()
        assert call(*asked, "--run-dir", tmp_path / "e") == 0
    assert len(drawn) == 3
    events = [json.loads(line) for line in (tmp_path / "e" / "events.jsonl").read_text().splitlines()]
    told = [event for event in events if event["event"] == "progress"]
    assert {(event["total"], event["unit"]) for event in told} == {(8, "answers")}
    for name in ("gsm8k.json", "gsm8k_samples.jsonl"):
        found, whole = ((tmp_path / place / "model" / name).read_bytes() for place in ("e", "whole"))
        assert found == whole
    assert not list((tmp_path / "e").rglob("*answers*"))


def test_a_model_that_says_nothing_gets_no_score_and_the_table_goes_on(
    call, tiny_recipe, tmp_path, capsys
) -> None:
    from safetensors.torch import load_file, save_file

    mute = tmp_path / "mute"
    shutil.copytree(tiny_recipe.parent / "model", mute)
    weights = {name: 0 * tensor for name, tensor in load_file(mute / "model.safetensors").items()}
    save_file(weights, mute / "model.safetensors", metadata={"format": "pt"})
    sums = write_sums(tmp_path / "data")
    problems = [
        {"problem": s["question"], "solution": f"$\\boxed{{{s['answer'][5:]}}}$", "level": "Level 1"}
        for s in sums
    ]
    jsonl(tmp_path / "data" / "math" / "test.jsonl", [{**p, "type": "Algebra"} for p in problems])
    asked = ["--tasks", "gsm8k,math", "--data-dir", tmp_path / "data", "--run-dir", tmp_path / "e"]
    assert call("eval", mute, *asked, "--limit", "3") == 0, capsys.readouterr().err
    for task in ("gsm8k", "math"):
        found = result(tmp_path / "e", "model", task)
        assert found.headline["value"] is None
        assert found.headline["reason"] == found.notes[0].removeprefix("no score: ")
    table = (tmp_path / "e" / "table.md").read_text(encoding="utf-8")
    assert "| GSM8K | – | 0 | no score: the model says" in table


def test_what_can_not_be_run_is_left_out_with_the_reason(call, words, tiny_recipe, tmp_path, capsys) -> None:
    model = tiny_recipe.parent / "model"
    asked = ["--tasks", "mt_bench,mbpp,head_to_head", *words, "--run-dir", tmp_path / "e"]
    assert call("eval", model, *asked) == 0
    shown = capsys.readouterr().out
    assert "mbpp.jsonl is missing" in shown
    assert "compares the models of a run" in shown
    assert set(read_json(tmp_path / "e" / "plan.json")["not_run"]) == {"mbpp", "head_to_head"}
    assert not (tmp_path / "e" / "model" / "mbpp.json").exists()
    assert "| MBPP | not run |" in (tmp_path / "e" / "table.md").read_text(encoding="utf-8")


def test_the_doctor_says_what_is_missing_and_runs_nothing(call, capsys) -> None:
    assert call("eval", "doctor", "--tasks", "mt_bench,humaneval", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "needs a judge" in found["mt_bench"]
    assert "data_dir" in found["humaneval"]


def test_every_model_of_a_run_is_measured_and_compared_with_those_before(
    call, words, finished_run, tmp_path, capsys
) -> None:
    asked = ["--tasks", "mt_bench,head_to_head", "--limit", "5", *words, "--run-dir", tmp_path / "e"]
    assert call("eval", finished_run, *asked) == 0
    assert "M0" in capsys.readouterr().out
    models = read_json(tmp_path / "e" / "plan.json")["models"]
    assert models == ["M0", "SFT", "M1", "M2", "M3"]
    assert not (tmp_path / "e" / "M0" / "head_to_head.json").exists()
    found = result(tmp_path / "e", "M3", "head_to_head")
    assert found.metric == "win rate against M2"
    for other in models[:-1]:
        decided = [found.counts[f"{kind} against {other}"] for kind in ("wins", "ties", "losses")]
        assert sum(decided) == found.measures[f"win rate against {other}"]["n"] == 5
    page = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert "MT-Bench" in page
    assert "<script" not in page


def test_a_model_is_measured_as_a_judge_beside_length_and_likelihood(call, tiny_recipe, tmp_path) -> None:
    """One prompt prefers the longer reply, one has a tie, and one a reply that is too long."""
    from selfalign.config import Policy
    from selfalign.records import Message
    from selfalign.training.scoring import Scorer

    model = tiny_recipe.parent / "model"
    (tmp_path / "rubric.jinja").write_text("{{ prompt }} {{ completion }} Rate it.", encoding="utf-8")
    rows = [
        {"messages": [{"role": "user", "content": content}], "replies": replies}
        for content, replies in [
            ("why?", [{"text": "so it is", "quality": 0.9}, {"text": "so", "quality": 0.1}]),
            ("how?", [{"text": "thus and so", "quality": 0.5}, {"text": "thus", "quality": 0.5}]),
            ("who?", [{"text": "I", "quality": 0.9}, {"text": "you" * 20000, "quality": 0.1}]),
        ]
    ]
    jsonl(tmp_path / "ranked.jsonl", rows)
    asked = [
        "--tasks", "judge_quality", f"ranked.paths=[{tmp_path / 'ranked.jsonl'}]",
        f"judging.rubric={tmp_path / 'rubric.jinja'}", "policy.precision=float32",
    ]  # fmt: skip
    assert call("eval", model, *asked, "--run-dir", tmp_path / "e") == 0
    found = result(tmp_path / "e", "model", "judge_quality")
    assert found.counts == {"prompts": 2, "prompts_tied": 1, "pairs": 2, "pairs_unscored": 1}
    assert found.measures["length"]["value"] == 0.5
    assert found.headline["n"] == found.measures["likelihood"]["n"] == 1
    assert found.measures["above_length"]["value"] == found.headline["value"] - 1.0
    assert found.measures["parse_rate"]["value"] == pytest.approx(5 / 6)

    likely = (tmp_path / "e" / "model" / "judge_quality_likelihoods.jsonl").read_text().splitlines()
    means = [json.loads(row)["mean_logp"] for row in likely]
    asked_why = (Message(role="user", content="why?"),)
    scorer = Scorer(model, Policy(precision="float32"), 512)
    direct = scorer.score([(asked_why, "so it is"), (asked_why, "so")])
    assert means[:2] == pytest.approx([score.mean for score in direct], rel=1e-4)
    assert means.count(None) == 1
    page = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert "pairwise of length alone" in page


def test_a_judge_that_always_takes_the_first_answer_gives_no_score(
    call, words, finished_run, tmp_path, monkeypatch, capsys
) -> None:
    from selfalign.engines.protocol import Choice
    from selfalign.engines.scripted import ScriptedEngine

    def first(_: ScriptedEngine, requests: Any) -> Any:
        return (Choice(request.key, (0.8, 0.1)) for request in requests)

    monkeypatch.setattr(ScriptedEngine, "choose", first)
    asked = ["--tasks", "head_to_head", "--limit", "5", *words, "--run-dir", tmp_path / "e"]
    assert call("eval", finished_run, *asked) == 0
    found = result(tmp_path / "e", "M3", "head_to_head")
    assert found.headline["value"] is None
    assert "takes the same place in both orders of every" in str(found.headline["reason"])
    assert "no score: the judge" in capsys.readouterr().out


def test_a_judge_that_answers_nothing_gives_no_score_and_says_why(
    call, words, finished_run, tmp_path, monkeypatch, capsys
) -> None:
    from selfalign.engines.protocol import Choice
    from selfalign.engines.scripted import ScriptedEngine

    def silent(_: ScriptedEngine, requests: Any) -> Any:
        return (Choice(request.key, None) for request in requests)

    monkeypatch.setattr(ScriptedEngine, "choose", silent)
    asked = ["--tasks", "head_to_head", "--limit", "5", *words, "--run-dir", tmp_path / "e"]
    assert call("eval", finished_run, *asked) == 0
    found = result(tmp_path / "e", "M3", "head_to_head")
    assert found.headline["value"] is None
    assert f"no score: {found.headline['reason']}" in capsys.readouterr().out


def test_judges_of_a_run_are_measured_on_what_it_held_out(call, words, finished_run, tmp_path) -> None:
    asked = ["--tasks", "judge_quality", *words, "--run-dir", tmp_path / "e"]
    assert call("eval", finished_run, *asked) == 0
    own = read_json(finished_run / "iteration-2" / "judge_quality.json")
    found = result(tmp_path / "e", "M3", "judge_quality")
    assert found.measures["length"]["value"] == own["length"]["pairwise_accuracy"]["value"]
    assert found.headline["n"] > 0
    assert found.counts["pairs"] == own["judge"]["pairs"]
    assert "likelihood" not in found.measures


def test_a_second_call_measures_nothing_again(call, words, tiny_recipe, tmp_path) -> None:
    asked = [tiny_recipe.parent / "model", "--tasks", "mt_bench", *words, "--run-dir", tmp_path / "e"]
    assert call("eval", *asked) == 0
    grades = tmp_path / "e" / "model" / "mt_bench_grades.jsonl"
    before = grades.stat().st_mtime_ns
    assert call("eval", *asked) == 0
    assert grades.stat().st_mtime_ns == before


def test_a_changed_model_never_meets_the_answers_of_the_one_before(
    call, words, tiny_recipe, tmp_path, capsys
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_recipe.parent / "model", model)
    asked = [model, "--tasks", "mt_bench", *words, "--run-dir", tmp_path / "e"]
    assert call("eval", *asked) == 0
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert call("eval", *asked) == 2
    assert "input model changed" in capsys.readouterr().err
    assert call("eval", *asked, "--update") == 0


def test_a_killed_evaluation_goes_on_with_its_finished_rows(words, tiny_recipe, tmp_path) -> None:
    command = [
        sys.executable, "-c", "from selfalign.cli.main import main; main()", "eval",
        str(tiny_recipe.parent / "model"), "--tasks", "mt_bench", *words,
    ]  # fmt: skip
    subprocess.run([*command, "--run-dir", str(tmp_path / "whole")], check=True, capture_output=True)
    draw = random.Random(0)  # noqa: S311 -- when to kill, no secret
    for _ in range(3):
        killed = subprocess.Popen([*command, "--run-dir", str(tmp_path / "e")], stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.5, 3.0))
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    subprocess.run([*command, "--run-dir", str(tmp_path / "e")], check=True, capture_output=True)
    for name in ("mt_bench.json", "mt_bench_grades.jsonl", "mt_bench_turn_2.jsonl"):
        assert (tmp_path / "e" / "model" / name).read_bytes() == (
            tmp_path / "whole" / "model" / name
        ).read_bytes()


def test_a_recipe_of_an_evaluation_runs_like_any_other(call, data_dir, tiny_recipe, tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    model = tiny_recipe.parent / "model"
    recipe.write_text(
        f"method: evaluation\npolicy: {{ model: {model} }}\ntasks: [mt_bench]\ndata_dir: {data_dir}\n"
        f"judge: {{ model: {model} }}\nengine: {{ kind: scripted, script: {data_dir / 'script.toml'} }}\n",
        encoding="utf-8",
    )
    assert call("run", recipe, "--run-dir", tmp_path / "e") == 0
    assert result(tmp_path / "e", "model", "mt_bench").counts["turns"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "mmul"], "tasks.0"),
        (["--tasks", "mmlu,mmlu"], "named twice"),
        (["--suite", "paper"], "not one of"),
        (["judge.model=x", "judge.endpoint.url=http://x", "judge.endpoint.model=y"], "give one of them"),
    ],
)
def test_a_wrong_word_is_refused_with_the_way_out(call, capsys, words, said) -> None:
    assert call("eval", "doctor", *words) == 2
    assert said in capsys.readouterr().err
