"""Reading and writing the files of a run: whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from selfalign.errors import DataError

R = TypeVar("R", bound=BaseModel)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is there at the end becomes `path` in one step.

    Works for a file and for a directory. On any exception the temporary is
    removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            _sync(file)
        if path.is_dir():
            remove(path)  # left by a stage that was killed before it counted as done
        temporary.replace(path)
        _sync(path.parent)
    except BaseException:
        remove(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused (`ValueError`)."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_rows(path: Path, records: Iterable[BaseModel]) -> int:
    """Write records as JSON lines atomically and return their number."""
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            count += 1
    return count


def read_json(path: Path) -> Any:
    """Read a JSON file of the run.

    Raises:
        DataError: It is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except ValueError as error:
        raise DataError(f"not valid JSON ({error})", path=path) from None


def read_rows(
    path: Path, record: type[R], damaged: Callable[[DataError], object] | None = None
) -> Iterator[R]:
    """Read the records of a JSON-lines file of the run, one at a time.

    Args:
        path: The file.
        record: Type of its rows.
        damaged: Told of a row that is no such record, which is then passed over.

    Raises:
        DataError: The file is missing; or a row is not such a record and `damaged` is not given; names the
            row.
    """
    if not path.is_file():
        raise DataError("no such file", path=path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = record.model_validate_json(line)
            except ValidationError as error:
                problem = error.errors()[0]
                field = ".".join(str(part) for part in problem["loc"])
                found = DataError(f"not a {record.__name__}: {field} {problem['msg']}", path=path, row=number)
                if damaged is None:
                    raise found from None
                damaged(found)
                continue
            yield row


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def remove(path: Path) -> None:
    """Remove a file or directory tree, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
