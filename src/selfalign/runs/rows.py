"""Rows that survive a kill: appended as they finish, put in order at the end."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Generic, Self, TypeVar

from pydantic import BaseModel, ValidationError

from selfalign.errors import DataError
from selfalign.runs.files import replacing

R = TypeVar("R", bound=BaseModel)


class PartialRows(Generic[R]):
    """Finished rows of an unfinished stage, keyed, in the order in which they finished.

    A row counts once its line break is written; a torn last line is cut off on opening.
    """

    def __init__(self, path: Path, record: type[R], row_key: Callable[[R], str]) -> None:
        """Take the file, the type of its rows and what a row's key is."""
        self._path = path
        self._record = record
        self._row_key = row_key
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._file: BinaryIO

    def __enter__(self) -> Self:
        """Open the file, find the finished rows and cut off a torn one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                key = self._row_key(self._record.model_validate_json(line))
            except ValidationError as error:
                raise DataError(
                    f"damaged row ({error.error_count()} problems); remove the row and run again",
                    path=self._path,
                    row=number,
                ) from None
            self._places[key] = (self._end, len(line))
            self._end += len(line)
        self._file.truncate(self._end)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; what is in it stays."""
        self._file.close()

    def __contains__(self, key: str) -> bool:
        """Say whether the row of this key is finished."""
        return key in self._places

    def __len__(self) -> int:
        """Return the number of finished rows."""
        return len(self._places)

    def append(self, row: R) -> None:
        """Add a finished row.

        Raises:
            ValueError: There is a row of the same key.
        """
        key = self._row_key(row)
        if key in self._places:
            raise ValueError(f"row {key!r} was made twice")
        line = row.model_dump_json().encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._places[key] = (self._end, len(line))
        self._end += len(line)

    def sync(self) -> None:
        """Force what was appended to the disk."""
        os.fsync(self._file.fileno())

    def read(self, key: str) -> R:
        """Return a finished row."""
        return self._record.model_validate_json(self._line(key))

    def write_ordered(self, path: Path, keys: Iterable[str]) -> None:
        """Write the rows of these keys, byte for byte, in this order, atomically."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            self.copy_ordered(file, keys)

    def copy_ordered(self, file: BinaryIO, keys: Iterable[str]) -> None:
        """Write the rows of these keys, byte for byte and in this order, to an open file."""
        for key in keys:
            file.write(self._line(key))

    def _line(self, key: str) -> bytes:
        offset, length = self._places[key]
        self._file.seek(offset)
        return self._file.read(length)
