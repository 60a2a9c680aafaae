"""One process at a time in a run directory."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from selfalign.errors import DataError, RunError
from selfalign.runs.files import read_json, write_json


@contextlib.contextmanager
def hold(root: Path) -> Iterator[None]:
    """Hold the run directory; the system lets go of it when the process ends, however it ends.

    Raises:
        RunError: Another process holds it; names its pid and host. Or there is a file in its place.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"{root}: not a directory; give another --run-dir") from None
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = holder_of(root) or "another process"
        raise RunError(f"{root}: held by {holder}; wait for it or end it, then run again") from None
    try:
        write_json(_note(root), {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        _note(root).unlink(missing_ok=True)
        lock.release()


def holder_of(root: Path) -> str | None:
    """Return who holds the run directory, as `pid N on HOST`; `None` if nobody does."""
    if not (root / ".lock").exists():
        return None
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            note = read_json(_note(root))
        except DataError:  # not written yet, or just removed
            return "a process that is just starting or ending"
        return f"pid {note['pid']} on {note['host']}"
    lock.release()
    return None


def noted_holder(root: Path) -> str | None:
    """Return who holds the run directory by the note that it left, as `pid N on HOST`; `None` if nobody does.

    The lock itself isn't touched, so that looking often never keeps a run from starting. A process of this
    machine that left a note and is gone holds nothing.
    """
    try:
        note = read_json(_note(root))
        pid, host = int(note["pid"]), str(note["host"])
    except (DataError, KeyError, TypeError, ValueError):  # none there, or half written
        return None
    if host == socket.gethostname():
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return None
        except PermissionError:
            pass  # another user's process, and it is there
    return f"pid {pid} on {host}"


def _note(root: Path) -> Path:
    return root / ".holder.json"
