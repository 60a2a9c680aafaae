"""What a stage's body may do in the run directory while it runs."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from selfalign.runs.rows import PartialRows

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)
SHARD_SIZE = 1024


class Events(Protocol):
    """Where a stage says how far it is: the log of the run, or a pipe to the process that has it."""

    def emit(self, event: str, **fields: Any) -> object:
        """Take an event."""


class Work:
    """The workplace of one stage that is being done."""

    def __init__(self, stage: str, directory: Path, partial_prefix: str, events: Events) -> None:
        """Take the stage's name, its directory, the prefix of its unfinished files, and the log."""
        self.stage = stage
        self.directory = directory
        self.warnings: list[str] = []
        self.partial_prefix = partial_prefix
        self._events = events

    def output(self, name: str) -> Path:
        """Return where an output of the stage goes."""
        return self.directory / name

    def scratch(self, name: str) -> Path:
        """Return a path for unfinished work; it outlives a kill and goes when the stage is done."""
        return self.directory / "partial" / f"{self.partial_prefix}.{name}"

    def progress(self, done: int, total: int, unit: str) -> None:
        """Say how far the stage is."""
        self._events.emit("progress", stage=self.stage, done=done, total=total, unit=unit)

    def warn(self, message: str) -> None:
        """Say something the user should know; it goes into the log, the manifest and the report."""
        self.warnings.append(message)
        self._events.emit("warning", stage=self.stage, message=message)

    def partial(self, name: str, record: type[R], row_key: Callable[[R], str]) -> PartialRows[R]:
        """Open the finished rows of an output that is not whole yet."""
        return PartialRows(self.scratch(name), record, row_key)

    def map_rows(
        self,
        output: str,
        items: Sequence[T],
        apply: Callable[[Sequence[T]], Iterator[R]],
        *,
        key: Callable[[T], str],
        record: type[R],
        row_key: Callable[[R], str],
    ) -> None:
        """Make one row for each item, keep each as it finishes, and write them in the items' order.

        Args:
            output: File name of the rows.
            items: What to make rows of; keys must differ.
            apply: Makes the rows of a shard of items, in any order, each as soon as it is finished. It
                may run anywhere: nothing but the items and the rows passes.
            key: Key of an item.
            record: Type of a row.
            row_key: Key of a row, equal to that of its item.

        Raises:
            ValueError: Two items have one key, or `apply` left an item out.
        """
        keys = [key(item) for item in items]
        if len(set(keys)) != len(keys):
            raise ValueError(f"{self.stage}: two items share a key")
        with self.partial(output, record, row_key) as rows:
            remaining = [item for item, name in zip(items, keys, strict=True) if name not in rows]
            self.progress(len(rows), len(items), "rows")
            for start in range(0, len(remaining), SHARD_SIZE):
                for row in apply(remaining[start : start + SHARD_SIZE]):
                    rows.append(row)
                    self.progress(len(rows), len(items), "rows")
                rows.sync()
            missing = [name for name in keys if name not in rows]
            if missing:
                raise ValueError(f"{self.stage}: no row was made for {missing[0]!r}")
            rows.write_ordered(self.output(output), keys)
