"""Files of exported rows: JSON lines, a JSON array, or Parquet, written as the rows come."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from selfalign.errors import RunError
from selfalign.export.formats import Row

_BATCH = 1000
_LISTS = {"prompt", "chosen", "rejected", "completion", "messages"}
_WHOLE = {"chosen_tokens", "rejected_tokens", "num_tokens", "sample", "attempts", "iteration"}
_REAL = {"score", "score_chosen", "score_rejected", "weight"}


def write_file(path: Path, rows: Iterable[Row]) -> int:
    """Write rows in the way that the ending of a file asks for, and return their number.

    Raises:
        RunError: Parquet is asked for, and its library is not installed.
    """
    match path.suffix:
        case ".jsonl":
            return _write_lines(path, rows)
        case ".json":
            return _write_array(path, rows)
        case _:
            return _write_parquet(path, rows)


def _write_lines(path: Path, rows: Iterable[Row]) -> int:
    with path.open("w", encoding="utf-8") as file:
        return sum(1 for row in rows if file.write(_json(row) + "\n"))


def _write_array(path: Path, rows: Iterable[Row]) -> int:
    number = 0
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows, start=1):
            file.write(("[\n" if number == 1 else ",\n") + _json(row))
        file.write("\n]\n" if number else "[]\n")
    return number


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise RunError("writing Parquet needs pyarrow; run `pip install 'selfalign[hub]'`") from None
    batches = _batches(iter(rows))
    batch = next(batches, [])
    schema = pyarrow.schema([(name, _type(name)) for name in (batch[0] if batch else ())])
    number = 0
    with parquet.ParquetWriter(path, schema) as writer:
        while batch:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))
            number += len(batch)
            batch = next(batches, [])
    return number


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _type(name: str) -> Any:
    """Return the Arrow type of a column; a column may be null throughout, so it is never guessed."""
    import pyarrow

    if name in _LISTS:
        return pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    if name in _WHOLE:
        return pyarrow.int64()
    return pyarrow.float64() if name in _REAL else pyarrow.string()


def _json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)
