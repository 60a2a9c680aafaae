import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from selfalign.errors import RunError
from selfalign.runs.lock import hold, holder_of, noted_holder

HOLD = """
import sys
from pathlib import Path
from selfalign.runs.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding_process(root):
    """A process of its own that holds the directory until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_pid_host_and_way_out_until_the_first_ends(tmp_path):
    root = tmp_path / "run"
    with holding_process(root) as process:
        holder = f"pid {process.pid} on {socket.gethostname()}"
        assert holder_of(root) == holder
        with pytest.raises(RunError, match=f"run: held by {holder}; wait for it or end it"), hold(root):
            pass
        assert holder_of(root) == holder  # the refused one took nothing away
        process.communicate(timeout=20)
        assert process.returncode == 0
    assert holder_of(root) is None


def test_the_system_lets_go_when_the_holder_is_killed(tmp_path):
    with holding_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        assert holder_of(tmp_path) is None  # though its note is still there
        with hold(tmp_path):
            assert holder_of(tmp_path) == f"pid {os.getpid()} on {socket.gethostname()}"


def test_the_lock_is_let_go_after_an_exception_and_leaves_no_note(tmp_path):
    with pytest.raises(ValueError, match="stage failed"), hold(tmp_path):
        raise ValueError("stage failed")
    assert holder_of(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_asking_who_holds_a_directory_writes_nothing_there(tmp_path):
    assert holder_of(tmp_path) is None
    assert holder_of(tmp_path / "absent") is None
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_has_not_signed_yet_or_no_longer_is_held_all_the_same(tmp_path):
    with hold(tmp_path):
        (tmp_path / ".holder.json").unlink()
        assert holder_of(tmp_path) == "a process that is just starting or ending"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_place_of_the_directory_is_an_error_with_a_way_out(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"{name}: not a directory; give another"), hold(tmp_path / name):
        pass


def test_the_note_tells_the_holder_and_touches_no_lock(tmp_path):
    assert noted_holder(tmp_path) is None
    with holding_process(tmp_path) as process:
        before = (tmp_path / ".lock").stat()
        assert noted_holder(tmp_path) == f"pid {process.pid} on {socket.gethostname()}"
        assert (tmp_path / ".lock").stat() == before
    assert (tmp_path / ".holder.json").exists()
    assert noted_holder(tmp_path) is None


@pytest.mark.parametrize(
    "note", ["", "{", "[]", "{}", '{"pid": "x", "host": "y"}', '{"pid": null, "host": 1}']
)
def test_a_note_that_is_none_tells_nobody(tmp_path, note):
    (tmp_path / ".holder.json").write_text(note)
    assert noted_holder(tmp_path) is None


def test_a_holder_on_another_machine_is_believed(tmp_path):
    (tmp_path / ".holder.json").write_text('{"pid": 1, "host": "elsewhere"}')
    assert noted_holder(tmp_path) == "pid 1 on elsewhere"
