"""Prompts, candidates, judgments and pairs made elsewhere, as rows of the run.

Rows find each other by what they say: a prompt by its messages, a completion by its id or by prompt and text.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.data import Answer, read_answers
from selfalign.data import read_prompts as read_prompt_file
from selfalign.errors import DataError
from selfalign.records import Completion, Judgment, Prompt, content_id
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows, write_rows
from selfalign.stages.base import base_model
from selfalign.stages.candidates import candidate_figures
from selfalign.stages.common import about_tokens
from selfalign.stages.data import DataSets, said
from selfalign.stages.elsewhere import content_or_absent, foreseen, not_held_out, token_counter
from selfalign.stages.judge import candidate_texts, judgment_figures

VERSION = 1


def import_prompts(run: Run[SelfRewardingRecipe], iteration: int, location: str, data: DataSets) -> Artifact:
    """Read the prompts of an iteration, without those held out to measure judges.

    Where the iteration's candidates are read, too, the location is theirs.

    Reads:
        data/held_out.jsonl
    Writes:
        iteration-<t>/prompts.jsonl

    Raises:
        DataError: The file is missing or malformed, or no prompt is left.
    """
    answered = run.recipe.imports.of("candidates", iteration) is not None

    def found(dropped: Counter[str]) -> Iterator[Prompt]:
        return _prompts_of_answers(location) if answered else _prompts(location, dropped)

    stage = Stage(
        name=f"iteration-{iteration}/prompts",
        version=VERSION,
        outputs=("prompts.jsonl",),
        settings={"from": content_or_absent(location)},
        inputs={"held_out": data.held_out},
    )
    stage = foreseen(run, stage, lambda: (prompt.messages[-1].content for prompt in found(Counter())))

    def body(work: Work) -> dict[str, Any]:
        dropped: Counter[str] = Counter()
        usable = not_held_out(data.held_out, dropped)
        prompts = [prompt for prompt in found(dropped) if usable(prompt.messages)]
        if not prompts:
            raise DataError(f"no prompt can be used ({said(dropped)}); give other ones", path=location)
        write_rows(work.output("prompts.jsonl"), prompts)
        tokens = about_tokens(prompt.messages[-1].content for prompt in prompts)
        return {"rows": len(prompts), "tokens": tokens, "dropped": dict(dropped), "from": location}

    return run.do(stage, body)


def import_candidates(
    run: Run[SelfRewardingRecipe], iteration: int, location: str, prompts: Artifact
) -> Artifact:
    """Read the candidates of an iteration; tokens are counted by the tokenizer of M0 where a row doesn't say.

    Reads:
        iteration-<t>/prompts.jsonl
    Writes:
        iteration-<t>/candidates.jsonl

    Raises:
        DataError: The file is missing or malformed, or no candidate is left.
    """
    base = base_model(run)
    stage = Stage(
        name=f"iteration-{iteration}/candidates",
        version=VERSION,
        outputs=("candidates.jsonl",),
        settings={"from": content_or_absent(location)},
        inputs={"prompts": prompts, "tokenizer": base},
    )
    stage = foreseen(run, stage, lambda: (answer.text or "" for answer in _answers(location, Counter())))

    def body(work: Work) -> dict[str, Any]:
        count, dropped = token_counter(run.recipe.policy, base), Counter[str]()
        by_prompt: dict[str, list[Completion]] = {p.prompt_id: [] for p in read_rows(prompts.path, Prompt)}
        known: set[str] = set()
        for answer in _answers(location, dropped):
            name = answer.completion_id or _key(answer)
            completions = by_prompt.get(str(answer.prompt_id))
            if completions is None:
                dropped["held_out"] += 1
            elif name in known:
                dropped["duplicate_completion"] += 1
            else:
                known.add(name)
                completions.append(_completion(answer, name, len(completions), count))
        rows = (completion for of_one in by_prompt.values() for completion in of_one)
        if not write_rows(work.output("candidates.jsonl"), rows):
            raise DataError(f"no candidate can be used ({said(dropped)}); give other ones", path=location)
        return {**candidate_figures(work), "dropped": dict(dropped), "from": location}

    return run.do(stage, body)


def import_judgments(
    run: Run[SelfRewardingRecipe], iteration: int, location: str, prompts: Artifact, candidates: Artifact
) -> Artifact:
    """Read the scores of an iteration's candidates; several of one candidate are its judgments in turn.

    Reads:
        iteration-<t>/prompts.jsonl, iteration-<t>/candidates.jsonl
    Writes:
        iteration-<t>/judgments.jsonl

    Raises:
        DataError: The file is missing or malformed, or no row belongs to a candidate.
    """
    stage = Stage(
        name=f"iteration-{iteration}/judgments",
        version=VERSION,
        outputs=("judgments.jsonl",),
        settings={"from": content_or_absent(location)},
        inputs={"prompts": prompts, "candidates": candidates},
    )
    if run.recipe.imports.of("candidates", iteration) or Path(location).is_file():  # else it may come later
        stage = foreseen(run, stage, lambda: (a.critique or "" for a in read_answers(location, Counter())))

    def body(work: Work) -> dict[str, Any]:
        if not (location.startswith("hub:") or Path(location).is_file()):
            raise DataError(
                "there is no such file yet; `selfalign export RUN --what candidates` writes what to score, "
                "then run again",
                path=location,
            )
        unmatched: Counter[str] = Counter()
        given = _answers_by_candidate(location, candidates.path, unmatched)
        rows = (
            _judgment(row, sample, answer)
            for row in read_rows(candidates.path, Completion)
            for sample, answer in enumerate(given.get(row.completion_id, ()))
        )
        if not write_rows(work.output("judgments.jsonl"), rows):
            raise DataError(
                "no row belongs to a candidate of this iteration; a row needs the candidate's completion_id, "
                "or its prompt and completion letter by letter",
                path=location,
            )
        if unscored := candidates.rows - len(given):
            work.warn(f"{unscored} of {candidates.rows} candidates have no score in {location}")
        items = candidate_texts(prompts.path, candidates.path)
        figures = judgment_figures(items, work.output("judgments.jsonl"))
        return {**figures, "unmatched": dict(unmatched), "from": location}

    return run.do(stage, body)


def _prompts(location: str, dropped: Counter[str]) -> Iterator[Prompt]:
    prompts, lost = read_prompt_file(location)
    dropped.update(lost)
    yield from prompts


def _prompts_of_answers(location: str) -> Iterator[Prompt]:
    """Yield each prompt that has a completion, once; what is dropped is counted with the completions."""
    known: set[str] = set()
    for answer in _answers(location, Counter()):
        prompt = Prompt.of(answer.messages or (), f"{Path(location).name}:{answer.row}")
        if prompt.prompt_id not in known:
            known.add(prompt.prompt_id)
            yield prompt


def _answers(location: str, dropped: Counter[str]) -> Iterator[Answer]:
    """Yield completions with their prompts.

    Raises:
        DataError: As `read_answers`, or a row has no prompt or no text; names it.
    """
    for answer in read_answers(location, dropped):
        if answer.messages is None or answer.text is None:
            message = 'the completion or its prompt is missing; give "prompt" and "completion"'
            raise DataError(message, path=location, row=answer.row)
        yield answer


def _key(answer: Answer) -> str:
    """Return what a completion that has no id of its own is known by: what it says, and to what."""
    return content_id(str(answer.prompt_id), str(answer.text))


def _completion(answer: Answer, name: str, sample: int, count: Callable[[str], int]) -> Completion:
    return Completion(
        completion_id=name,
        prompt_id=str(answer.prompt_id),
        sample=sample,
        text=answer.text,
        finish_reason="length" if answer.truncated else "stop",
        num_tokens=count(str(answer.text)) if answer.tokens is None else answer.tokens,
    )


def _answers_by_candidate(
    location: str, candidates: Path, unmatched: Counter[str]
) -> dict[str, list[Answer]]:
    """Return what the file says of each candidate, in the order of its rows.

    Candidates of one prompt with the same text are all meant by a row that has no known id.
    """
    by_id: set[str] = set()
    by_text: dict[str, list[str]] = {}
    for row in read_rows(candidates, Completion):
        by_id.add(row.completion_id)
        by_text.setdefault(content_id(row.prompt_id, str(row.text)), []).append(row.completion_id)
    given: dict[str, list[Answer]] = {}
    for answer in read_answers(location, unmatched):
        named = [answer.completion_id] if answer.completion_id in by_id else by_text.get(_key(answer), [])
        for completion_id in named:
            given.setdefault(str(completion_id), []).append(answer)
        if not named:
            unmatched["no_such_candidate"] += 1
    return given


def _judgment(row: Completion, sample: int, answer: Answer) -> Judgment:
    return Judgment(
        judgment_id=content_id("judgment", row.completion_id, str(sample)),
        completion_id=row.completion_id,
        prompt_id=row.prompt_id,
        sample=sample,
        score=answer.score,
        reason="no_score" if answer.score is None else None,
        text=answer.critique,
        attempts=1,
    )
