"""Every error a user can cause or meet, in one tree.

The error model: whatever a user can put right raises a `SelfAlignError`. Its message names the file
and row (or the recipe key), says what was wrong, and ends with the way out; the command line prints
it and exits with 2. Each error is also the standard exception a caller would expect to catch.
Anything else that escapes is a defect of ours and shows its traceback. Nothing is ever swallowed: a
row that can't be used is kept with a reason or counted as dropped.
"""

from pathlib import Path


class SelfAlignError(Exception):
    """Base of all errors that a user can put right."""


class RecipeError(SelfAlignError, ValueError):
    """A recipe key is unknown, has a wrong value, or contradicts another one."""


class DataError(SelfAlignError, ValueError):
    """A data file is missing, empty, unreadable, or has a row without the needed fields."""

    def __init__(self, message: str, *, path: Path | str | None = None, row: int | None = None) -> None:
        """Prefix the message with where it happened.

        Args:
            message: What was wrong and the way out.
            path: The file.
            row: Number of the line, or of the element in a JSON array, counted from 1.
        """
        where = f"{path}" if path is not None else ""
        if row is not None:
            where += f", row {row}"
        super().__init__(f"{where}: {message}" if where else message)
        self.path = path
        self.row = row


class ModelError(SelfAlignError, ValueError):
    """A model or tokenizer can't be loaded, or is of a kind that we refuse."""


class ServerError(SelfAlignError, OSError):
    """A server of models does not start, refuses a request, or keeps failing."""


class HubError(SelfAlignError, OSError):
    """The hub refuses what it is sent, or can't be reached."""


class RunError(SelfAlignError, RuntimeError):
    """A run directory can't be used as asked: held by another process, stale, or damaged."""


class NothingToTrainError(SelfAlignError, RuntimeError):
    """A stage ended with no example or pair left, so that the run can't go on."""


class TrainingError(SelfAlignError, ArithmeticError):
    """Training met a loss or gradient that is not finite; no model was saved."""


class SandboxError(SelfAlignError, RuntimeError):
    """Programs that a model wrote can't be run safely here, so they are not run."""


class EvaluationError(SelfAlignError, RuntimeError):
    """A benchmark can't be run as asked; no score is given."""


class UnscorableError(EvaluationError):
    """A model can't be asked a benchmark, or its answers mean nothing; asking again would change nothing."""
