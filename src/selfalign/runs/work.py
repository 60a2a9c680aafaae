"""What a stage's body may do in the run directory while it runs."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from pydantic import BaseModel

from selfalign.runs.files import replacing
from selfalign.runs.keys import KeySet
from selfalign.runs.rows import PartialRows

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)
SHARD_SIZE = 1024
_PROGRESS_SHARE = 1000
_PROGRESS_SECONDS = 0.5


class Events(Protocol):
    """Where a stage says how far it is: the log of the run, or a pipe to the process that has it."""

    def emit(self, event: str, **fields: Any) -> object:
        """Take an event."""


@dataclass(frozen=True)
class Repeatable(Generic[T]):
    """Items that are made anew whenever they are gone through, so that they are never all in memory."""

    make: Callable[[], Iterator[T]]

    def __iter__(self) -> Iterator[T]:
        """Make the items, from the first one."""
        return self.make()


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

    def counting(self, total: int, unit: str) -> Callable[[int], None]:
        """Return what takes the number that is done and says it when it is time to: not with each of many."""
        return _Progress(self, total, unit).say

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
        items: Iterable[T],
        apply: Callable[[Sequence[T]], Iterator[R]],
        *,
        key: Callable[[T], str],
        record: type[R],
        row_key: Callable[[R], str],
    ) -> None:
        """Make one row for each item, keep each as it finishes, and write them in the items' order.

        Items are taken in shards of `SHARD_SIZE`, each with a file of finished rows of its own. Only one
        shard is in memory at a time, and eight bytes of every key.

        Args:
            output: File name of the rows.
            items: What to make rows of, a list or `Repeatable`: they are gone through twice. Keys must
                differ.
            apply: Makes the rows of a shard of items, in any order, each as soon as it is finished. It
                may run anywhere: nothing but the items and the rows passes.
            key: Key of an item.
            record: Type of a row.
            row_key: Key of a row, equal to that of its item.

        Raises:
            TypeError: The items can be gone through only once.
            ValueError: Two items have one key, or `apply` left an item out or made a row of none.
        """
        if isinstance(items, Iterator):
            raise TypeError(f"{self.stage}: items are gone through twice; give a list or `Repeatable`")
        progress = _Progress(self, self._count(items, key), "rows")
        shards = _Shards(self.stage, self.scratch(f"{output}.shards"), apply, key, record, row_key)
        rest = iter(items)
        done = 0
        with replacing(self.output(output)) as temporary, temporary.open("wb") as file:
            for number in count():
                finished = shards.finish(number, list(islice(rest, SHARD_SIZE)), progress.after(done), file)
                if not finished:
                    break
                done += finished
        progress.say(done)

    def _count(self, items: Iterable[T], key: Callable[[T], str]) -> int:
        """Return the number of items.

        Raises:
            ValueError: Two have one key.
        """
        known = KeySet()
        for name in map(key, items):
            if not known.add(name):
                raise ValueError(f"{self.stage}: two items share a key: {name!r}")
        return len(known)


@dataclass(frozen=True)
class _Shards(Generic[T, R]):
    """Finishes shards of items, in any order and wherever their directory can be written."""

    stage: str
    directory: Path
    apply: Callable[[Sequence[T]], Iterator[R]]
    key: Callable[[T], str]
    record: type[R]
    row_key: Callable[[R], str]

    def finish(self, number: int, items: Sequence[T], say: Callable[[int], None], file: BinaryIO) -> int:
        """Make the rows of a shard that are missing, add all of them to the file, and return their number."""
        if not items:
            return 0
        keys = [self.key(item) for item in items]
        known = set(keys)
        with PartialRows(self.directory / f"{number:06}.jsonl", self.record, self.row_key) as rows:
            missing = [item for item, name in zip(items, keys, strict=True) if name not in rows]
            before = len(items) - len(missing)
            say(before)
            for made, row in enumerate(self.apply(missing) if missing else (), start=1):
                if self.row_key(row) not in known:
                    raise ValueError(f"{self.stage}: a row {self.row_key(row)!r} was made of no item")
                rows.append(row)
                say(before + made)
            if missing:
                rows.sync()
            left_out = next((name for name in keys if name not in rows), None)
            if left_out is not None:
                raise ValueError(f"{self.stage}: no row was made for {left_out!r}")
            rows.copy_ordered(file, keys)
        return len(keys)


class _Progress:
    """Says how far a count is: after every thousandth of it, twice a second, and at its end."""

    def __init__(self, work: Work, total: int, unit: str) -> None:
        self._work = work
        self._total = total
        self._unit = unit
        self._said = -1
        self._at = 0.0

    def after(self, earlier: int) -> Callable[[int], None]:
        """Return what takes the rows of a shard that are done, after so many of earlier shards."""
        return lambda done: self.say(earlier + done)

    def say(self, done: int) -> None:
        """Say how many are done, if it is time to."""
        now = time.monotonic()
        more = done - self._said
        due = (
            done == self._total or more * _PROGRESS_SHARE >= self._total or now - self._at > _PROGRESS_SECONDS
        )
        if more and due:
            self._said, self._at = done, now
            self._work.progress(done, self._total, self._unit)
