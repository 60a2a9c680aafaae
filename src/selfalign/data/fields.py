"""Fields of a row, checked: each function returns a plain value or says what is wrong with the field.

None of them strips, normalises or converts text. They don't know where the row came from; `located` adds
the file and the row number to what they raise.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from selfalign.errors import DataError

Row = Mapping[str, Any]


@contextmanager
def located(path: str, row: int) -> Iterator[None]:
    """Add the file and the row number to a `DataError` raised within."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error), path=path, row=row) from None


def kind(value: object) -> str:
    """Return what a JSON value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


def has(row: Row, *names: str) -> bool:
    """Say whether all these fields are there and not null."""
    return all(row.get(name) is not None for name in names)


def text(row: Row, *names: str) -> str:
    """Return the first of the named fields that is there, unchanged.

    Raises:
        DataError: None of them is there, it is not text, or it holds half of a surrogate pair, which no
            UTF-8 file can hold.
    """
    name = next((name for name in names if has(row, name)), None)
    if name is None:
        raise DataError(f"the field {_either(names)} is missing or null; the row has {_keys(row)}")
    value = row[name]
    if not isinstance(value, str):
        raise DataError(f'"{name}" is {kind(value)}; it must be text')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f'"{name}" holds half of a character (a lone surrogate); repair the text') from None
    return value


def objects(row: Row, name: str) -> list[Row]:
    """Return a list of objects; a single object counts as a list of one.

    Raises:
        DataError: The field is missing or is something else.
    """
    if not has(row, name):
        raise DataError(f'the field "{name}" is missing or null; the row has {_keys(row)}')
    value = row[name]
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f'"{name}" must be a list of objects')
    return items


def quality(row: Row, name: str) -> float | None:
    """Return a quality label in [0, 1], or `None` where there is none.

    Raises:
        DataError: It is no finite number in that range.
    """
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f'"{name}" is {kind(value)}; it must be a number from 0 to 1')
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise DataError(f'"{name}" is {value}; it must lie in 0 to 1, so map your scale to that range')
    return float(value)


def number(row: Row, name: str) -> float | None:
    """Return a finite number, or `None` where there is none.

    Raises:
        DataError: It is something else.
    """
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f'"{name}" is {value!r}; it must be a finite number, or null where there is none')
    return float(value)


def whole(row: Row, name: str) -> int | None:
    """Return a whole number, which may be written as 2.0, or `None` where there is none.

    Raises:
        DataError: It is something else.
    """
    value = row.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise DataError(f'"{name}" is {value!r}; it must be a whole number')


def identifier(row: Row, name: str) -> str | None:
    """Return an id as text, or `None` where there is none.

    Raises:
        DataError: It is neither text nor a whole number.
    """
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None if value is None else text(row, name)


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _keys(row: Row) -> str:
    return ", ".join(row) or "no fields"
