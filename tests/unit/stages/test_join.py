from collections.abc import Iterable
from pathlib import Path

import pytest

from selfalign.errors import DataError
from selfalign.records import Completion, Judgment, Message, Prompt
from selfalign.runs.files import read_rows, write_rows
from selfalign.stages.join import by_prompt, distinct_prompts, joined, together, with_judgments

LETTERS = ["a", "b", "c"]


def joined_of(rows: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Join words to the letters that they begin with."""
    return list(joined(LETTERS, rows, key=str, of=lambda word: word[0], path=Path("words")))


def test_each_row_goes_to_the_one_that_it_belongs_to_and_some_have_none():
    assert joined_of(["a1", "a2", "c1"]) == [("a", ["a1", "a2"]), ("b", []), ("c", ["c1"])]
    assert joined_of([]) == [(letter, []) for letter in LETTERS]


@pytest.mark.parametrize(
    ("rows", "name", "number"),
    [
        (["a1", "x1", "b1"], "x", 2),  # of nothing
        (["b1", "a1", "c1"], "a", 2),  # out of order
        (["a1", "b1", "c1", "a2"], "a", 4),  # what it belongs to was over
    ],
)
def test_a_row_that_does_not_fit_is_named_with_its_file(rows: list[str], name: str, number: int):
    with pytest.raises(DataError, match=rf"words, row {number}: belongs to {name}, .* --update") as caught:
        joined_of(rows)
    assert (caught.value.path, caught.value.row) == (Path("words"), number)


def test_what_is_joined_is_read_no_further_than_needed():
    read = []

    def words() -> Iterable[str]:
        for word in ("a1", "a2", "b1", "c1"):
            read.append(word)
            yield word

    first = next(iter(joined(LETTERS, words(), key=str, of=lambda word: word[0], path=Path("words"))))
    assert first == ("a", ["a1", "a2"])
    assert read == ["a1", "a2", "b1"]


def test_rows_of_a_key_come_together_and_may_not_come_back():
    assert list(together(["a1", "a2", "c1", "b1"], lambda word: word[0])) == [["a1", "a2"], ["c1"], ["b1"]]
    assert list(together([], str)) == []
    with pytest.raises(ValueError, match="the rows of a do not stand together"):
        list(together(["a1", "b1", "a2"], lambda word: word[0]))


def prompt_of(name: str) -> Prompt:
    return Prompt(prompt_id=name, messages=(Message(role="user", content=name),), source="here")


def completion_of(prompt: str, sample: int) -> Completion:
    return Completion(
        completion_id=f"{prompt}{sample}",
        prompt_id=prompt,
        sample=sample,
        text="text",
        finish_reason="stop",
        num_tokens=1,
    )


def judgment_of(completion: str, prompt: str) -> Judgment:
    return Judgment(
        judgment_id=f"{completion} judged",
        completion_id=completion,
        prompt_id=prompt,
        sample=0,
        score=1.0,
        reason=None,
        text=None,
        attempts=1,
    )


def test_a_prompt_that_occurs_twice_is_named_with_its_row(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    write_rows(path, [prompt_of(name) for name in ("p", "q", "p")])
    with pytest.raises(DataError, match="prompt p occurs twice") as caught:
        list(distinct_prompts(path))
    assert (caught.value.path, caught.value.row) == (path, 3)


def test_prompts_completions_and_judgments_meet(tmp_path: Path):
    write_rows(tmp_path / "prompts.jsonl", [prompt_of(name) for name in "pqr"])
    completions = [completion_of(prompt, sample) for prompt in "pr" for sample in range(2)]
    write_rows(tmp_path / "candidates.jsonl", completions)
    write_rows(tmp_path / "judgments.jsonl", [judgment_of("p1", "p"), judgment_of("r0", "r")])
    texts = with_judgments(read_rows(tmp_path / "candidates.jsonl", Completion), tmp_path / "judgments.jsonl")
    met = by_prompt(
        tmp_path / "prompts.jsonl", texts, lambda text: text[0].prompt_id, tmp_path / "candidates.jsonl"
    )
    assert [(p.prompt_id, [(c.completion_id, len(found)) for c, found in texts]) for p, texts in met] == [
        ("p", [("p0", 0), ("p1", 1)]),
        ("q", []),
        ("r", [("r0", 1), ("r1", 0)]),
    ]


def test_a_judgment_must_name_the_prompt_of_its_completion_too(tmp_path: Path):
    path = tmp_path / "judgments.jsonl"
    write_rows(path, [judgment_of("p0", "q")])
    with pytest.raises(DataError, match=r"row 1: belongs to completion p0 of prompt q, which is not there"):
        list(with_judgments([completion_of("p", 0)], path))
