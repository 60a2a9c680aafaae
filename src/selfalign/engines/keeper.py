"""Runs a command that must not outlive its owner: `python -I keeper.py COMMAND...`.

Standard input is a pipe that the owner holds open: when it closes, whatever ended the owner ends the
command too, with all that it began. Run as a file that needs nothing else of ours, it is there at once.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

_GRACE_SECONDS = 10
_LOOK_SECONDS = 0.1


def main(command: Sequence[str]) -> int:
    """Run the command until it ends or standard input closes; return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kept = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 -- the owner's own command
    try:
        while kept.poll() is None and not _is_closed():
            pass
    finally:
        _end(kept)
    return kept.returncode


def _is_closed() -> bool:
    """Look at standard input for a moment."""
    readable, _, _ = select.select([0], [], [], _LOOK_SECONDS)
    return bool(readable) and not os.read(0, 1)


def _end(kept: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(kept.pid, signal.SIGTERM)
        kept.wait(_GRACE_SECONDS)
    with suppress(ProcessLookupError):
        # What it began may have outlived it.
        os.killpg(kept.pid, signal.SIGKILL)
    kept.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
