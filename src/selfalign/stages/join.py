"""Files of a run read side by side, joined by key, a few rows in memory.

Each file stands in the order of the one that it was made from. So the rows that belong to a row are the next
ones; that they do belong to it is checked.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from selfalign.errors import DataError
from selfalign.records import Judgment, Prompt
from selfalign.runs.files import read_rows
from selfalign.runs.keys import KeySet

_WAY_OUT = "remove the file and run again with --update, so that it is made again"


class Text(Protocol):
    """A text that was or will be judged."""

    @property
    def completion_id(self) -> str:
        """Return its id."""

    @property
    def prompt_id(self) -> str:
        """Return the id of its prompt."""


P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T", bound=Text)


def distinct_prompts(path: Path) -> Iterator[Prompt]:
    """Read prompts, one at a time.

    Raises:
        DataError: One occurs twice; names the row.
    """
    known = KeySet()
    for number, prompt in enumerate(read_rows(path, Prompt), start=1):
        if not known.add(prompt.prompt_id):
            raise DataError(f"prompt {prompt.prompt_id} occurs twice; {_WAY_OUT}", path=path, row=number)
        yield prompt


def by_prompt(
    prompts: Path, rows: Iterable[R], prompt_id: Callable[[R], str], path: Path
) -> Iterator[tuple[Prompt, list[R]]]:
    """Read prompts and yield each with its rows; see `joined`.

    Raises:
        DataError: A prompt occurs twice, or a row does not follow its prompt; names the row.
    """
    return joined(
        distinct_prompts(prompts),
        rows,
        key=lambda prompt: f"prompt {prompt.prompt_id}",
        of=lambda row: f"prompt {prompt_id(row)}",
        path=path,
    )


def with_judgments(texts: Iterable[T], judgments: Path) -> Iterator[tuple[T, list[Judgment]]]:
    """Yield each text with its judgments, which are read.

    Raises:
        DataError: A judgment does not follow its text; names the row.
    """
    return joined(
        texts,
        read_rows(judgments, Judgment),
        key=lambda text: f"completion {text.completion_id} of prompt {text.prompt_id}",
        of=lambda judgment: f"completion {judgment.completion_id} of prompt {judgment.prompt_id}",
        path=judgments,
    )


def joined(
    parents: Iterable[P],
    rows: Iterable[R],
    *,
    key: Callable[[P], str],
    of: Callable[[R], str],
    path: Path,
) -> Iterator[tuple[P, list[R]]]:
    """Yield each parent with its rows, which may be none.

    Args:
        parents: What the rows belong to; keys differ.
        rows: Those of a parent together, and in the order of the parents.
        key: Key of a parent, in words.
        of: Key of the parent that a row belongs to.
        path: File of the rows, one a line, for the error.

    Raises:
        DataError: After the last parent: a row belongs to none, or to one whose rows were over; names it.
    """
    numbered = enumerate(rows, start=1)
    following = next(numbered, None)
    for parent in parents:
        name = key(parent)
        found: list[R] = []
        while following is not None and of(following[1]) == name:
            found.append(following[1])
            following = next(numbered, None)
        yield parent, found
    if following is not None:
        number, row = following
        raise DataError(
            f"belongs to {of(row)}, which is not there or came earlier; {_WAY_OUT}", path=path, row=number
        )


def together(rows: Iterable[R], key: Callable[[R], str]) -> Iterator[list[R]]:
    """Yield the rows of each key as a list.

    Raises:
        ValueError: A key comes again after another one.
    """
    known = KeySet()
    group: list[R] = []
    for row in rows:
        if group and key(row) != key(group[0]):
            yield group
            group = []
        if not group and not known.add(key(row)):
            raise ValueError(f"the rows of {key(row)} do not stand together")
        group.append(row)
    if group:
        yield group
