"""HumanEval and MBPP: programs that a model writes, run in a sandbox against their tests."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from selfalign.config import EvaluationRecipe
from selfalign.evaluation.code_replies import extract_code, program
from selfalign.evaluation.code_tasks import CodeBenchmark, CodeProblem, read_problems
from selfalign.evaluation.means import mean_measure
from selfalign.evaluation.results import TaskResult
from selfalign.evaluation.sandbox import run_programs, sandbox_problem
from selfalign.records import Completion, FinishReason, Record
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_file, read_rows, write_json
from selfalign.stages.answers import answer_prompts

VERSION = 1
FILES = {
    "humaneval": ("humaneval/HumanEval.jsonl.gz", "humaneval/HumanEval.jsonl"),
    "mbpp": ("mbpp/mbpp.jsonl",),
    "humaneval_cn": ("humaneval_cn/HumanEval.jsonl", "humaneval_xl/python/Chinese.jsonl"),
    "mbpp_cn": ("mbpp_cn/mbpp.jsonl",),
}
"""Where a benchmark's original file is looked for in the data directory, the first one found is taken."""


class Verdict(Record):
    """What became of one program."""

    problem: str
    completion_id: str
    status: Literal["passed", "failed", "timed_out", "out_of_memory", "no_text"]
    finish_reason: FinishReason
    code: str
    """What was taken from the reply as its answer."""
    detail: str


def code_problem(recipe: EvaluationRecipe, task: str) -> str | None:
    """Say what a code benchmark lacks here and how to get it; `None` if it can be run."""
    if recipe.data_dir is None:
        return "needs data_dir: its hub data come with a script, which is not run"
    if _file(recipe.data_dir, task) is None:
        return f"{Path(recipe.data_dir) / FILES[task][0]} is missing; put the original file there"
    return sandbox_problem()


def measure_code(run: Run[EvaluationRecipe], name: str, model: Artifact, task: str) -> Artifact:
    """Have a model solve the problems once, greedily, and run what it wrote.

    Reads:
        the benchmark's file
    Writes:
        <name>/<task>_answers.jsonl, <task>.json, <task>_verdicts.jsonl
    """
    recipe = run.recipe
    file = None if recipe.data_dir is None else _file(recipe.data_dir, task)
    assert file is not None  # noqa: S101 -- `code_problem` was asked
    data = Artifact(file, hash_file(file))
    problems = {p.key: p for p in read_problems(str(file), cast(CodeBenchmark, task))[: recipe.limit]}
    prompts = {key: problem.messages for key, problem in problems.items()}
    answers = answer_prompts(run, name, model, task, prompts, data)
    verdicts = f"{task}_verdicts.jsonl"
    stage = Stage(
        name=f"{name}/{task}",
        version=VERSION,
        outputs=(f"{task}.json", verdicts),
        inputs={"answers": answers, "data": data},
        expected={"rows": len(problems)},
    )

    def body(work: Work) -> dict[str, Any]:
        work.map_rows(
            verdicts,
            list(read_rows(answers.path, Completion)),
            lambda shard: _run(shard, problems),
            key=lambda completion: completion.completion_id,
            record=Verdict,
            row_key=lambda verdict: verdict.completion_id,
        )
        result = _result(name, task, list(read_rows(work.output(verdicts), Verdict)), recipe.seed)
        write_json(work.output(f"{task}.json"), result.model_dump(mode="json"))
        return {"rows": len(problems), "score": result.headline["value"]}

    return run.do(stage, body)


def _file(data_dir: str, task: str) -> Path | None:
    """Return the file of a benchmark's problems, `None` where there is none."""
    return next((path for name in FILES[task] if (path := Path(data_dir) / name).is_file()), None)


def _run(answers: Sequence[Completion], problems: Mapping[str, CodeProblem]) -> Iterator[Verdict]:
    """Run the programs of answers side by side."""
    given = {answer.completion_id: answer for answer in answers}
    codes: dict[str, str] = {}
    for key, answer in given.items():
        if answer.text is None:
            yield _verdict(answer, "no_text", "", "the prompt left no room for an answer")
        else:
            codes[key] = extract_code(answer.text, problems[answer.prompt_id])
    programs = {key: program(code, problems[given[key].prompt_id]) for key, code in codes.items()}
    for key, outcome in run_programs(programs):
        yield _verdict(given[key], outcome.status, codes[key], outcome.detail)


def _verdict(
    answer: Completion,
    status: Literal["passed", "failed", "timed_out", "out_of_memory", "no_text"],
    code: str,
    detail: str,
) -> Verdict:
    return Verdict(
        problem=answer.prompt_id,
        completion_id=answer.completion_id,
        status=status,
        finish_reason=answer.finish_reason,
        code=code,
        detail=detail,
    )


def _result(name: str, task: str, verdicts: Sequence[Verdict], seed: int) -> TaskResult:
    passed = [float(verdict.status == "passed") for verdict in verdicts]
    counts = Counter(verdict.status for verdict in verdicts)
    truncated = sum(verdict.finish_reason == "length" for verdict in verdicts)
    return TaskResult(
        task=task,
        model=name,
        metric="pass@1",
        measures={"pass@1": mean_measure(passed, undefined="no problem was asked", seed=seed)},
        counts={**counts, "truncated": truncated},
        settings={"samples": 1, "temperature": 0.0},
    )
