"""What of a run directory can't be read: told to the reader of the report, and passed over."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel

from selfalign.errors import DataError
from selfalign.report.text import plural
from selfalign.runs.files import read_json, read_rows

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")
P = ParamSpec("P")

# What reading a value of another shape than expected can raise.
_OTHER_SHAPE = (LookupError, TypeError, ValueError, AttributeError)


class Problems:
    """Reads what can be read, and remembers what can't.

    A report is wanted most when something went wrong, so a damaged file costs what it holds and no more.
    """

    def __init__(self, root: Path) -> None:
        """Begin without a problem of a run directory; files are named by their place in it."""
        self._prefix = f"{root}/"
        self._found: dict[str, str] = {}
        self._rows: dict[str, set[int | None]] = {}

    def __iter__(self) -> Iterator[str]:
        """Give the problems in the order in which they were met, those of the rows of one file together."""
        for key, found in self._found.items():
            message = found.replace(self._prefix, "")
            more = len(self._rows.get(key, ())) - 1
            yield f"{message}; so are {plural(more, 'more row')} of this file" if more > 0 else message

    def add(self, message: str) -> None:
        """Remember a problem; it is told once."""
        self._found.setdefault(message, message)

    def rows(self, path: Path, record: type[R]) -> Iterator[R]:
        """Yield the rows of a file that can be read, which are none where it is missing."""
        try:
            yield from read_rows(path, record, damaged=self._damaged)
        except DataError as error:
            self.add(str(error))

    def json(self, path: Path) -> Any:
        """Return a JSON value, `None` if it is missing or broken."""
        try:
            value = read_json(path)
        except DataError as error:
            self.add(str(error))
            return None
        if value is None:
            self.add(f"{path}: holds nothing (null)")
        return value

    def attempt(self, what: str, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return a part of the report; `None` where what it is made of has another shape than expected.

        Args:
            what: What is not shown then, in words.
            make: Reads and shapes the part.
            *args: Passed to `make`.
            **kwargs: Likewise.
        """
        try:
            return make(*args, **kwargs)
        except DataError as error:
            self.add(f"{what}: not shown ({error})")
        except _OTHER_SHAPE as error:
            said = next(iter(str(error).splitlines()), "")  # that of a model of many fields has many lines
            self.add(
                f"{what}: not shown, what the run holds of it has another shape than this version reads "
                f"({type(error).__name__}: {said})"
            )
        return None

    def _damaged(self, error: DataError) -> None:
        key = str(error.path)
        self._found.setdefault(key, f"{error}; the row is left out")
        self._rows.setdefault(key, set()).add(error.row)  # a file may be read twice
