"""Asking DuckDB about a run: its JSON lines as tables, each row with the place that it comes from."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from selfalign.errors import DataError
from selfalign.ui.sources import Source

if TYPE_CHECKING:
    import duckdb

MOST_MEMORY = "2GB"
"""Beyond it, DuckDB goes on in temporary files."""

_COLUMNS = {
    "prompts": {"prompt_id": "VARCHAR", "messages": "STRUCT(role VARCHAR, content VARCHAR)[]"},
    "candidates": {
        "completion_id": "VARCHAR", "prompt_id": "VARCHAR", "sample": "INTEGER", "text": "VARCHAR",
        "finish_reason": "VARCHAR", "num_tokens": "INTEGER",
    },
    "replies": {"prompt_id": "VARCHAR", "replies": "STRUCT(reply_id VARCHAR, text VARCHAR, rank INTEGER)[]"},
    "judgments": {
        "judgment_id": "VARCHAR", "completion_id": "VARCHAR", "prompt_id": "VARCHAR", "sample": "INTEGER",
        "score": "DOUBLE", "reason": "VARCHAR", "text": "VARCHAR",
    },
    "pairs": {
        "pair_id": "VARCHAR", "prompt_id": "VARCHAR", "chosen": "VARCHAR", "rejected": "VARCHAR",
        "reward_chosen": "DOUBLE", "reward_rejected": "DOUBLE", "margin": "DOUBLE",
    },
}  # fmt: skip
# What DuckDB finds in every readable row; where it is missing, the file is read row by row to name the row.
_READABLE = {
    "prompts": "prompt_id is not null and len(messages) > 0",
    "candidates": "completion_id is not null and prompt_id is not null and finish_reason is not null",
    "replies": "prompt_id is not null and len(replies) > 0",
    "judgments": "judgment_id is not null and completion_id is not null "
    "and (score is null) <> (reason is null)",
    "pairs": "pair_id is not null and chosen is not null and rejected is not null",
}
KINDS = ("prompts", "candidates", "judgments", "pairs")


class Tables:
    """The beginning of a query that names a table for each kind of rows, and the values that go with it.

    The tables are `prompts`, `candidates`, `judgments` and `pairs`, with `place` and, of a prompt, the `text`
    of its last message; and `rewards`, the mean of the scored judgments of each completion.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        """Take the sources that are read; a table is only read where the query uses it."""
        self.values: dict[str, Any] = {}
        parts = [f"{kind} as ({self._union(kind, [s for s in sources if s.kind == kind])})" for kind in KINDS]
        parts.append(
            "rewards as (select completion_id, place, avg(score) as reward, count(score) as scored, "
            "count(*) as judged from judgments group by all)"
        )
        self.sql = f"with {', '.join(parts)}"

    def _union(self, kind: str, sources: Sequence[Source]) -> str:
        text = ", messages[-1].content as text" if kind == "prompts" else ""
        if not sources:
            nothing = ", ".join(f"null::{type_} as {name}" for name, type_ in _COLUMNS[kind].items())
            return f"select *{text}, '' as place from (select {nothing}) where false"
        return " union all ".join(
            f"select *{text}, ${self._value(source.place)} as place from ({self._rows(source)})"
            for source in sources
        )

    def _rows(self, source: Source) -> str:
        layout = _layout(source)
        rows = f"from {_read_json(self._value(_names(source)), layout)} where {_READABLE[layout]}"
        if layout != "replies":
            return f"select * {rows}"
        return (
            "select reply.reply_id as completion_id, prompt_id, reply.rank as sample, reply.text as text, "
            "'human' as finish_reason, null::INTEGER as num_tokens "
            f"from (select prompt_id, unnest(replies) as reply {rows})"
        )

    def _value(self, value: object) -> str:
        name = f"v{len(self.values)}"
        self.values[name] = value
        return name


def count_unreadable(source: Source) -> int:
    """Return the number of rows that DuckDB can't read as what they should be.

    Raises:
        DataError: A file can't be read at all.
    """
    layout = _layout(source)
    [counted] = ask(
        f"select count(*) as rows from {_read_json('files', layout)} where ({_READABLE[layout]}) is not true",
        {"files": _names(source)},
    )
    return int(counted["rows"])


def ask(sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what DuckDB answers, a dictionary a row; every thread may ask.

    Raises:
        DataError: A file is gone, or has a row that is too long.
    """
    import duckdb

    try:
        with _database().cursor() as cursor:
            cursor.execute(sql, values)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    except duckdb.Error as error:
        raise DataError(
            f"the rows can't be read: {error}; if a stage has just finished, load again"
        ) from None


@cache
def _spill() -> "tempfile.TemporaryDirectory[str]":
    """Return a directory for what does not fit into memory; it goes with this process."""
    return tempfile.TemporaryDirectory(prefix="selfalign-ui-")


@cache
def _database() -> "duckdb.DuckDBPyConnection":
    import duckdb

    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MOST_MEMORY,
        "temp_directory": _spill().name,
        "autoinstall_known_extensions": False,
    }
    return duckdb.connect(":memory:", config=settings)


def _layout(source: Source) -> str:
    """Return which columns the rows have: the candidates of EFT are people's replies in a ranked prompt."""
    return "replies" if source.kind == "candidates" and source.place == "eft" else source.kind


def _read_json(name: str, layout: str) -> str:
    columns = ", ".join(f"{column}: '{type_}'" for column, type_ in _COLUMNS[layout].items())
    return f"read_json(${name}, format = 'newline_delimited', columns = {{{columns}}}, ignore_errors = true)"


def _names(source: Source) -> list[str]:
    """Return the files as DuckDB takes them for themselves, not for patterns."""
    return ["".join(f"[{c}]" if c in "*?[" else c for c in str(file)) for file in source.files]
