"""One of several processes that train together: `python -m selfalign.training.worker JOB RANK SIZE`.

Standard input is a pipe that the process which began the training holds open: when it closes, whatever
ended that process ends this one too. Messages go to standard output as JSON lines; what libraries print
goes to standard error.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from selfalign.errors import SelfAlignError
from selfalign.models.load import pick_device
from selfalign.records import Record
from selfalign.runs import Work
from selfalign.training.group import Group
from selfalign.training.job import TrainingJob, do


class Assignment(Record):
    """A job, and the stage whose directory it is done in."""

    job: TrainingJob
    stage: str
    directory: Path
    partial_prefix: str
    meeting: Path
    """File through which the processes find each other."""


class _Pipe:
    """Passes the events of the stage on; only the first process speaks."""

    def __init__(self, rank: int) -> None:
        self._messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._speaks = rank == 0

    def emit(self, event: str, **fields: Any) -> None:
        if self._speaks or event == "error":
            self._messages.write(json.dumps({"event": event, **fields}) + "\n")
            self._messages.flush()


def main(assignment: Path, rank: int, size: int) -> None:
    """Do this process's part of a job; exit with 1 on an error that a user can put right."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe = _Pipe(rank)
    told = Assignment.model_validate_json(assignment.read_text(encoding="utf-8"))
    device_type = pick_device(told.job.policy).type
    if device_type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    try:
        group = Group.join(told.meeting, rank, size, device_type)
        work = Work(told.stage, told.directory, told.partial_prefix, pipe)
        pipe.emit("done", figures=do(told.job, work, group))
    except SelfAlignError as error:
        pipe.emit("error", type=type(error).__name__, message=str(error))
        sys.exit(1)


def _end_with_parent() -> None:
    while os.read(0, 1):  # unbuffered, since a thread in a buffered read hinders the end of Python
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
