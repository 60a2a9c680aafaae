"""What happens in a run, as it happens: a line of `events.jsonl` each, and a word to whoever listens."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Listener = Callable[[dict[str, Any]], None]
PROGRESS_EVERY_SECONDS = 5.0


class EventLog:
    """Appends events to a file and passes each to a listener."""

    def __init__(self, path: Path, listener: Listener | None = None) -> None:
        """Take the file to append to and an optional listener."""
        self._path = path
        self._listener = listener
        self._last_progress = 0.0

    def emit(self, event: str, **fields: Any) -> None:
        """Record an event; progress is passed on at once but written every few seconds only."""
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        if self._listener is not None:
            self._listener(entry)
        if event == "progress":
            now = time.monotonic()
            if now - self._last_progress < PROGRESS_EVERY_SECONDS:
                return
            self._last_progress = now
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events written so far; a last line torn by a kill is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # events only tell a story; no result depends on one
            if isinstance(entry, dict) and "event" in entry:
                yield entry
