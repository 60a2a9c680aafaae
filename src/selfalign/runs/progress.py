"""How fast a run goes and how long its stage will still take, from its events."""

from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_WINDOW_SECONDS = 60.0
MOST_WARNINGS = 5


@dataclass(frozen=True)
class Pace:
    """How far the stage that is being done is."""

    stage: str
    done: int
    total: int
    unit: str
    at: str
    """ISO time of the word."""
    per_second: float | None
    """Over the last minute; `None` until there are two words to compare, or nothing was done between them."""

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes at this pace."""
        return None if self.per_second is None else (self.total - self.done) / self.per_second


class Following:
    """What the events of a run say so far, taken one after the other."""

    def __init__(self) -> None:
        """Begin before the first event."""
        self.stage: str | None = None
        """The stage that was begun last and is not finished."""
        self.warnings: deque[str] = deque(maxlen=MOST_WARNINGS)
        """The last ones, each with its stage."""
        self.stopped: str | None = None
        """Why the run stopped; `None` while it goes on, and where it was killed without a word."""
        self._words: deque[tuple[float, dict[str, Any]]] = deque()

    def take(self, event: dict[str, Any]) -> None:
        """Take in the next event."""
        match event["event"]:
            case "run_started":
                self.stage, self.stopped = None, None
                self._words.clear()
            case "stage_started":
                self.stage = event["stage"]
                self._words.clear()
            case "stage_finished":
                self.stage = None
                self._words.clear()
            case "warning":
                self.warnings.append(f"{event['stage']}: {event['message']}")
            case "run_stopped":
                self.stopped = f"{event['reason']}: {event['message']}"
            case "progress":
                self._word(event)

    def pace(self) -> Pace | None:
        """Return how far the stage is; `None` between stages and before its first word."""
        if not self._words:
            return None
        (begun, first), (now, last) = self._words[0], self._words[-1]
        done = last["done"] - first["done"]
        rate = done / (now - begun) if done > 0 and now > begun else None
        return Pace(last["stage"], last["done"], last["total"], last["unit"], last["time"], rate)

    def _word(self, event: dict[str, Any]) -> None:
        at = datetime.fromisoformat(event["time"]).timestamp()
        if self._words and self._words[-1][1]["unit"] != event["unit"]:
            self._words.clear()  # the stage has gone on to count something else
        self._words.append((at, event))
        while len(self._words) > 2 and at - self._words[1][0] > _WINDOW_SECONDS:
            self._words.popleft()
