"""Doing a training: in this process, or by several that share the weights out among them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch

from selfalign import errors
from selfalign.config import Policy
from selfalign.errors import SelfAlignError, TrainingError
from selfalign.models.load import pick_device
from selfalign.runs import Work
from selfalign.runs.files import remove, write_text
from selfalign.training.group import Group
from selfalign.training.job import TrainingJob, do
from selfalign.training.worker import Assignment

_GRACE_SECONDS = 300
"""Time to finish a step and save it."""
Message = dict[str, Any]


def train_job(job: TrainingJob, work: Work) -> Message:
    """Do a job with as many processes as the policy asks for, and return its figures.

    Raises:
        TrainingError: A loss or gradient is not finite, memory runs out, there are fewer GPUs than
            processes, or one of them died.
        SelfAlignError: As the job raises it.
    """
    size = _processes(job.policy)
    return do(job, work, Group()) if size == 1 else _together(job, work, size)


def _processes(policy: Policy) -> int:
    on_gpu = pick_device(policy).type == "cuda"
    gpus = torch.cuda.device_count() if on_gpu else 0
    if policy.num_processes == "auto":
        return max(1, gpus)
    if on_gpu and policy.num_processes > gpus:
        raise TrainingError(f"policy.num_processes is {policy.num_processes}, but there are {gpus} GPUs here")
    return policy.num_processes


def _together(job: TrainingJob, work: Work, size: int) -> Message:
    folder = work.scratch("processes")
    remove(folder)
    folder.mkdir(parents=True)
    told = Assignment(
        job=job,
        stage=work.stage,
        directory=work.directory,
        partial_prefix=work.partial_prefix,
        meeting=folder / "meeting",
    )
    write_text(folder / "job.json", told.model_dump_json())
    messages: Queue[tuple[int, Message]] = Queue()
    processes = [_start(folder, rank, size) for rank in range(size)]
    for rank, process in enumerate(processes):
        Thread(target=_listen, args=(rank, process, messages), daemon=True).start()
    try:
        return _follow(messages, work, size, folder)
    finally:
        _end(processes)


def _start(folder: Path, rank: int, size: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "selfalign.training.worker",
        str(folder / "job.json"),
        str(rank),
        str(size),
    ]
    with (folder / f"process-{rank + 1}.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(  # noqa: S603 -- our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C reaches this process, which tells the others in its own time
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )


def _listen(rank: int, process: subprocess.Popen[str], messages: "Queue[tuple[int, Message]]") -> None:
    assert process.stdout is not None  # noqa: S101 -- a pipe
    for line in process.stdout:
        messages.put((rank, json.loads(line)))
    messages.put((rank, {"event": "ended", "code": process.wait()}))


def _follow(messages: "Queue[tuple[int, Message]]", work: Work, size: int, folder: Path) -> Message:
    """Pass on what the processes say until all have ended."""
    figures: Message = {}
    running = size
    while running:
        rank, message = messages.get()
        match message["event"]:
            case "progress":
                work.progress(message["done"], message["total"], message["unit"])
            case "warning":
                work.warn(message["message"])
            case "done":
                figures = message["figures"]
            case "error":
                kind: type[SelfAlignError] = getattr(errors, message["type"])
                raise kind(message["message"])
            case "ended" if message["code"] == 0:
                running -= 1
            case "ended":
                log = (folder / f"process-{rank + 1}.log").read_text(encoding="utf-8", errors="replace")
                raise TrainingError(
                    f"process {rank + 1} of {size} ended with {message['code']}. Its last words:\n"
                    f"{log[-2000:]}"
                )
    return figures


def _end(processes: list["subprocess.Popen[str]"]) -> None:
    """Let the processes finish their step and save it; whoever does not is killed."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
