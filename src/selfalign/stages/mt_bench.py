"""MT-Bench: a model's answers to two-turn questions, and a judge's scores of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfalign.config import BenchmarkJudge, EvaluationRecipe, Sampling
from selfalign.engines import Engine, GenerationRequest
from selfalign.evaluation.mt_bench import TEMPERATURES, MTBench, Question, judge_request, read_mt_bench
from selfalign.evaluation.mt_bench_scores import TurnScore, mt_bench, parse_rating
from selfalign.evaluation.results import TaskResult
from selfalign.records import Completion, Message, Record, content_id
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_file, hash_json, read_rows, write_json
from selfalign.seeds import derive_seed
from selfalign.stages.answers import answer_cost, answer_settings
from selfalign.stages.benchmark_judge import judge_inputs, judge_name, judge_settings, open_benchmark_judge
from selfalign.stages.complete import Ask, complete

VERSION = 1
TURNS = (1, 2)
_FILES = ("question.jsonl", "judge_prompts.jsonl")
_REFERENCES = "reference_answer/gpt-4.jsonl"


class Grade(Record):
    """What the judge said of one turn."""

    grade_id: str
    turn_score: TurnScore
    text: str | None
    """The judge's whole reply."""


def mt_bench_problem(recipe: EvaluationRecipe) -> str | None:
    """Say what MT-Bench lacks here and how to get it; `None` if it can be run."""
    if recipe.judge is None:
        return "needs a judge: give --judge MODEL, or judge.endpoint in a recipe"
    if recipe.data_dir is None:
        return f"needs data_dir with mt_bench/{{{', '.join((*_FILES, _REFERENCES))}}} of FastChat"
    lacking = [file for file in _files(recipe) if not file.is_file()]
    return f"{lacking[0]} is missing; take it from FastChat's llm_judge data" if lacking else None


def answer_mt_bench(run: Run[EvaluationRecipe], name: str, model: Artifact) -> Artifact:
    """Have a model answer both turns of every question, each category at its published temperature.

    Reads:
        the questions
    Writes:
        <name>/mt_bench_turn_1.jsonl, mt_bench_turn_2.jsonl
    """
    recipe = run.recipe
    bench = _read(recipe)
    questions = bench.questions[: recipe.limit]
    sampling = Sampling(top_p=1.0, max_new_tokens=recipe.max_new_tokens)
    files = tuple(f"mt_bench_turn_{turn}.jsonl" for turn in TURNS)
    stage = Stage(
        name=f"{name}/mt_bench_answers",
        version=VERSION,
        outputs=files,
        settings=answer_settings(recipe),
        inputs={"model": model, "data": _data(recipe)},
        expected=answer_cost(recipe, len(TURNS) * len(questions)),
    )

    def body(work: Work) -> dict[str, Any]:
        said: dict[str, tuple[Message, ...]] = {}
        for turn, file in zip(TURNS, files, strict=True):
            asks = []
            for question in questions:
                key = str(question.question_id)
                asked = Message(role="user", content=question.turns[turn - 1])
                said[key] = (*said.get(key, ()), asked)
                seed = derive_seed(recipe.seed, work.stage, key, turn)
                asks.append(
                    Ask(
                        content_id(work.stage, key, str(turn)),
                        key,
                        said[key],
                        0,
                        seed,
                        TEMPERATURES.get(question.category, 0.0),
                    )
                )
            complete(run, work, model, asks, file, sampling)
            for answer in read_rows(work.output(file), Completion):
                reply = Message(role="assistant", content=answer.text or "")
                said[answer.prompt_id] = (*said[answer.prompt_id], reply)
        return {"rows": 2 * len(questions)}

    return run.do(stage, body)


def grade_mt_bench(run: Run[EvaluationRecipe], name: str, answers: Artifact) -> Artifact:
    """Have the judge score both turns of every answer, 1 to 10.

    Reads:
        <name>/mt_bench_turn_1.jsonl, mt_bench_turn_2.jsonl, the judge's prompts and reference answers
    Writes:
        <name>/mt_bench.json, mt_bench_grades.jsonl
    """
    recipe = run.recipe
    judge = recipe.judge
    assert judge is not None  # noqa: S101 -- `mt_bench_problem` was asked
    bench = _read(recipe)
    questions = bench.questions[: recipe.limit]
    stage = Stage(
        name=f"{name}/mt_bench",
        version=VERSION,
        outputs=("mt_bench.json", "mt_bench_grades.jsonl"),
        settings=judge_settings(run),
        inputs={**judge_inputs(run), "answers": answers, "data": _data(recipe)},
        expected={"rows": 2 * len(questions), "generations": 2 * len(questions)},
    )

    def body(work: Work) -> dict[str, Any]:
        replies: dict[int, list[str | None]] = {question.question_id: [] for question in questions}
        for turn in TURNS:
            for answer in read_rows(answers.path.with_name(f"mt_bench_turn_{turn}.jsonl"), Completion):
                replies[int(answer.prompt_id)].append(answer.text)
        grader = _Grader(run, work.stage, judge, bench, replies)
        work.map_rows(
            "mt_bench_grades.jsonl",
            [(question, turn) for question in questions for turn in TURNS],
            grader,
            key=lambda item: grader.key(*item),
            record=Grade,
            row_key=lambda grade: grade.grade_id,
        )
        asked = MTBench(questions, bench.references, bench.prompts)
        grades = read_rows(work.output("mt_bench_grades.jsonl"), Grade)
        found = mt_bench(asked, [grade.turn_score for grade in grades], seed=recipe.seed)
        result = _result(name, judge, found)
        write_json(work.output("mt_bench.json"), result.model_dump(mode="json"))
        return {"rows": 2 * len(questions), "score": result.headline["value"]}

    return run.do(stage, body)


class _Grader:
    """Asks the judge about shards of turns."""

    def __init__(
        self,
        run: Run[EvaluationRecipe],
        stage: str,
        judge: BenchmarkJudge,
        bench: MTBench,
        replies: dict[int, list[str | None]],
    ) -> None:
        self._run = run
        self._stage = stage
        self._sampling = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=judge.max_new_tokens)
        self._bench = bench
        self._replies = replies
        self._engine: Engine | None = None

    def key(self, question: Question, turn: int) -> str:
        """Return the name of a turn's grade."""
        return content_id(self._stage, str(question.question_id), str(turn))

    def __call__(self, shard: Sequence[tuple[Question, int]]) -> Iterator[Grade]:
        self._engine = self._engine or open_benchmark_judge(self._run)
        items = {self.key(question, turn): (question, turn) for question, turn in shard}
        requests = []
        for key, (question, turn) in items.items():
            answers = self._replies[question.question_id][:turn]
            given = [answer for answer in answers if answer is not None]
            if len(given) < turn:
                yield self._grade(key, question, turn, None, "no_answer", None)
                continue
            asked = judge_request(self._bench, question, 1 if turn == 1 else 2, given)
            requests.append(
                GenerationRequest(key, asked, derive_seed(self._run.recipe.seed, self._stage, key))
            )
        for reply in self._engine.generate(requests, self._sampling):
            question, turn = items[reply.key]
            if reply.text is None:
                yield self._grade(reply.key, question, turn, None, "prompt_too_long", None)
                continue
            rating = parse_rating(reply.text, truncated=reply.finish_reason == "length")
            yield self._grade(reply.key, question, turn, rating.score, rating.reason, reply.text)

    def _grade(
        self,
        key: str,
        question: Question,
        turn: int,
        score: float | None,
        reason: str | None,
        text: str | None,
    ) -> Grade:
        scored = TurnScore(
            question_id=question.question_id, turn=1 if turn == 1 else 2, score=score, reason=reason
        )
        return Grade(grade_id=key, turn_score=scored, text=text)


def _result(name: str, judge: BenchmarkJudge, found: dict[str, Any]) -> TaskResult:
    parts = {"all": found["all"], "turn 1": found["turn_1"], "turn 2": found["turn_2"], **found["categories"]}
    measures = {
        key: {field: part[field] for field in ("value", "low", "high", "n", "reason")}
        for key, part in parts.items()
    }
    notes = [f"graded by {judge_name(judge)}"]
    if wrong := len(found["wrong_references"]):
        notes.append(f"{wrong} of the reference answers are known to be wrong")
    return TaskResult(
        task="mt_bench",
        model=name,
        metric="all",
        unit="points",
        measures=measures,
        counts={"turns": found["all"]["turns"], "parsed": found["all"]["n"], **found["all"]["failed"]},
        notes=tuple(notes),
    )


def _files(recipe: EvaluationRecipe) -> list[Path]:
    """Return the files of the questions, of the judge's prompts and of the reference answers."""
    folder = Path(recipe.data_dir or "") / "mt_bench"
    references = folder / _REFERENCES if recipe.references is None else Path(recipe.references)
    return [*(folder / name for name in _FILES), references]


def _read(recipe: EvaluationRecipe) -> MTBench:
    questions, _, references = _files(recipe)
    return read_mt_bench(questions.parent, references)


def _data(recipe: EvaluationRecipe) -> Artifact:
    questions, *others = _files(recipe)
    return Artifact(questions, hash_json([hash_file(file) for file in (questions, *others)]))
