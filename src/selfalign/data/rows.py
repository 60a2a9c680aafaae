"""Rows of a file or of a data set on the Hugging Face Hub.

A file holds JSON lines or one JSON array, either of them gzipped or not, or Parquet. What it is shows in its
first bytes; its name says nothing, because data files are renamed more often than converted.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from selfalign.data.fields import kind
from selfalign.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_HUB = re.compile(r"hub:([^:]+)(?::(.+))?")


def read_rows(location: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file or Hub data set with their numbers, in file order.

    JSON lines are read one by one, a JSON array as a whole. Blank lines are skipped and a byte order mark is
    ignored. The first `next` opens the file, so that is when a missing one is noticed.

    Args:
        location: A path, or `hub:owner/name[:split]`; the split is "train" if not given.

    Yields:
        Number and row, counted from 1: the line for JSON lines (blank ones counted), the element for an
        array, the place in the table for Parquet and in the split for the Hub.

    Raises:
        DataError: The file is missing, a directory, without rows, damaged gzip or Parquet, not UTF-8 or
            broken JSON; a row is no object; or the Hub data set can't be loaded.
    """
    found = False
    for number, row in _source(location):
        if not isinstance(row, dict):
            raise DataError(f"the row is {kind(row)}; it must be an object", path=location, row=number)
        found = True
        yield number, row
    if not found:
        raise DataError("there are no rows; give a file with at least one", path=location)


def _source(location: str) -> Iterator[tuple[int, Any]]:
    if location.startswith("hub:"):
        return _hub_rows(location)
    path = Path(location)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
                return _parquet_rows(location)
    return _file_rows(location)


def _parquet_rows(location: str) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        message = "reading Parquet needs pyarrow; pip install 'selfalign[hub]'"
        raise DataError(message, path=location) from None
    try:
        batches = parquet.ParquetFile(location).iter_batches()
        yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), start=1)
    except ArrowException as error:
        raise DataError(f"the Parquet file is damaged ({error}); fetch it again", path=location) from error


def _file_rows(location: str) -> Iterator[tuple[int, Any]]:
    lines = _lines(location)
    for number, line in lines:
        if line.lstrip().startswith(b"["):
            # Blank lines before the array stay, so that an error names the right line.
            whole = b"\n" * (number - 1) + line + b"".join(rest for _, rest in lines)
            yield from enumerate(_parse(whole, location, None), start=1)
            return
        if line.strip():
            yield number, _parse(line.rstrip(), location, number)
            break
    for number, line in lines:
        if line.strip():
            yield number, _parse(line.rstrip(), location, number)


def _lines(location: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with Path(location).open("rb") as raw:
            packed = raw.peek(2).startswith(_GZIP_MAGIC)
            stream: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if packed else raw
            for number, line in enumerate(stream, start=1):
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except FileNotFoundError:
        raise DataError("there is no such file; check the path", path=location) from None
    except IsADirectoryError:
        raise DataError("this is a directory; name a file in it", path=location) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"the gzip file is damaged or cut off ({error}); fetch it again"
        raise DataError(message, path=location, row=number + 1) from error
    except OSError as error:
        raise DataError(f"the file can't be read: {error.strerror}", path=location) from error


def _parse(content: bytes, location: str, row: int | None) -> Any:
    """Parse one line, or a whole array if `row` is `None`."""
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        line = row or content.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{content[error.start]:02x} on line {line} is not UTF-8; save the file as UTF-8"
        raise DataError(message, path=location, row=row) from None
    except json.JSONDecodeError as error:
        # A JSON line is a text of one line, so within it the line is always 1.
        where = f"line {row or error.lineno}, column {error.colno}"
        message = f"broken JSON at {where}: {error.msg}; write one object a line, or one array of objects"
        raise DataError(message, path=location, row=row) from None
    except (ValueError, RecursionError) as error:
        message = f"the JSON has a number too long or nesting too deep to read ({error}); simplify it"
        raise DataError(message, path=location, row=row) from None


def _hub_rows(location: str) -> Iterator[tuple[int, Any]]:
    match = _HUB.fullmatch(location)
    if match is None:
        raise DataError("write it as hub:owner/name or hub:owner/name:split", path=location)
    try:
        from datasets import load_dataset
    except ImportError:
        message = "reading from the Hub needs the `datasets` library; pip install 'selfalign[hub]'"
        raise DataError(message, path=location) from None
    try:
        rows = load_dataset(match[1], split=match[2] or "train")
    except (OSError, ValueError) as error:
        message = f"can't load it from the Hub: {error}; check its name, the split and the network"
        raise DataError(message, path=location) from error
    yield from enumerate(rows, start=1)
