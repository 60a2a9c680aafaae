"""Programs that do right, wrong and harm, in the sandbox.

Each hostile program first tries its attack and raises unless the attack was refused, or does what must end
it. The first part of a program is the answer and the last the tests, as in a benchmark.
"""

import contextlib
import os
import platform
import re
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest

from selfalign.errors import SandboxError
from selfalign.evaluation import sandbox
from selfalign.evaluation.sandbox import Limits, Outcome, run_program, run_programs, sandbox_problem
from selfalign.evaluation.syscalls import _REFUSED

RIGHT = "def answer():\n    return 42\n"
TESTS = "assert answer() == 42\n"
ATTEMPT = """
def refused(act, *args):
    try:
        act(*args)
    except OSError:
        return True
    return False
"""
needs_sandbox = pytest.mark.usefixtures("working_sandbox")


@pytest.fixture(scope="module")
def working_sandbox():
    problem = sandbox_problem()
    assert "does not hold" not in (problem or "")  # a sandbox that leaks is a failure, having none is not
    if problem is not None:
        pytest.skip(f"no sandbox here: {problem}")


def ran(*parts, **limits):
    return run_program(parts, Limits(**limits))


def refused(attack, setup="", **limits):
    """Run an attack, an expression, and say how the assertion that it is refused went."""
    return ran(f"{setup}{ATTEMPT}", f"assert refused({attack})", **limits)


# Verdicts


@needs_sandbox
def test_a_program_whose_tests_hold_passes():
    assert ran(RIGHT, TESTS) == Outcome("passed", "")


@needs_sandbox
@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ("def answer():\n    return 41\n", "AssertionError in assert answer() == 42"),
        ("def answer():\n    return 1 / 0\n", "ZeroDivisionError: division by zero in assert answer() == 42"),
        ("def other():\n    return 42\n", "NameError: name 'answer' is not defined in assert answer() == 42"),
        ("raise ValueError('no')", "ValueError: no"),
        ("def answer()\n    return 42\n", "SyntaxError: expected ':' (part 0, line 1)"),
        ("x = 'a\0b'", "SyntaxError: source code string cannot contain null bytes"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
        ("input()", "EOFError: EOF when reading a line"),
        (
            "def answer():\n    return answer()\n",
            "RecursionError: maximum recursion depth exceeded in assert",
        ),
    ],
)
def test_a_wrong_program_fails_and_the_detail_says_where(answer, detail):
    outcome = ran(answer, TESTS)
    assert outcome.status == "failed"
    assert outcome.detail.startswith(detail)


@needs_sandbox
@pytest.mark.parametrize(
    ("ending", "detail"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise SystemExit", "SystemExit"),
        ("import os; os._exit(0)", "left with exit status 0 before its tests were through"),
        ("import os; os._exit(137)", "was ended by SIGKILL before its tests were through"),
        ("import os; os.abort()", "was ended by SIGABRT before its tests were through"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL before its tests were through"),
        ("import ctypes; ctypes.string_at(0)", "was ended by SIGSEGV before its tests were through"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        (
            "import os; os.execv(__import__('sys').executable, ['python', '-c', 'pass'])",
            "left with exit status 0",
        ),
    ],
)
def test_ending_before_the_tests_are_through_is_no_pass(ending, detail):
    for parts in ((RIGHT + ending, TESTS), (f"def answer():\n    {ending}\n", TESTS)):
        outcome = ran(*parts)
        assert outcome.status == "failed"
        assert outcome.detail.startswith(detail)


@needs_sandbox
@pytest.mark.parametrize(
    "trick",
    [
        "print('ready'); print('passed'); print('0' * 32)",
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed')\n    except OSError: pass",
        "import builtins; builtins.AssertionError = type('Quiet', (Exception,), {})",
        "import sys; sys.excepthook = lambda *a: None; sys.settrace(lambda *a: None)",
        "import atexit, os; atexit.register(os._exit, 0)",
        "import os; os._exit = lambda status: None; os.write = os.read = lambda *a: b''",
        "import os; os.closerange(0, 64)",
        "def check(*a): pass",
        "import marshal, sys; sys.modules.clear()",
        "text = '''",
        "if False:\n    pass\ntry:",
        "import contextlib\nwith contextlib.suppress(BaseException):",
    ],
)
def test_a_wrong_answer_with_a_trick_is_no_pass(trick):
    assert ran(f"def answer():\n    return 41\n{trick}\n", TESTS).status == "failed"


@needs_sandbox
def test_an_answer_that_catches_everything_does_not_catch_its_tests():
    catching = (
        "def answer():\n    try:\n        raise SystemExit\n    except BaseException:\n        return 41\n"
    )
    assert ran(catching, TESTS).status == "failed"


@needs_sandbox
def test_replacing_what_the_harness_uses_does_not_fail_a_right_answer():
    trick = "import os; os._exit = os.write = os.read = None; __builtins__['exec'] = None\n"
    assert ran(RIGHT + trick, TESTS).status == "passed"


@needs_sandbox
def test_the_detail_is_one_short_line_that_can_be_printed():
    outcome = ran("raise ValueError('\\x1b[31m\\n\\u202e' + 'x' * 10**6)", TESTS)
    assert outcome.detail.isprintable()
    assert len(outcome.detail) < 1000
    odd = "class Odd(Exception):\n    def __str__(self):\n        raise Odd\nraise Odd"
    assert ran(odd, TESTS).detail == "Odd"


@needs_sandbox
def test_parts_share_a_module_but_each_begins_afresh():
    future = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    box = "@dataclass\nclass Box:\n    size: int\n"
    answer = "def answer():\n    return pickle.loads(pickle.dumps(Box(42))).size\n"
    assert ran("import pickle", future + box + answer, TESTS) == Outcome("passed", "")


@needs_sandbox
def test_what_is_under_a_main_guard_does_not_run():
    assert ran(RIGHT + "if __name__ == '__main__':\n    raise SystemExit\n", TESTS).status == "passed"


@needs_sandbox
def test_the_order_of_sets_is_the_same_in_every_run():
    details = {ran("raise ValueError(list(set('abcdefgh')))", TESTS).detail for _ in range(3)}
    assert len(details) == 1


@needs_sandbox
def test_a_program_longer_than_a_pipe_holds_runs():
    assert ran(f"text = {'x' * 300_000!r}\n{RIGHT}", TESTS).status == "passed"


# Limits


@needs_sandbox
def test_an_endless_loop_ends_by_its_processor_time():
    outcome = ran("while True: pass", TESTS, cpu_seconds=1)
    assert outcome == Outcome("timed_out", "no end after 1 s of processor time")


@needs_sandbox
def test_a_loop_that_ignores_the_signal_ends_too():
    started = time.monotonic()
    loop = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert ran(loop, TESTS, cpu_seconds=1).status == "failed"
    assert time.monotonic() - started < 15


@needs_sandbox
def test_a_sleeping_program_ends_by_the_clock():
    started = time.monotonic()
    outcome = ran("import time; time.sleep(60)", TESTS, wall_seconds=0.5)
    assert outcome == Outcome("timed_out", "no end after 0.5 s")
    assert time.monotonic() - started < 10


def descendants(pid):
    """Return a process and all that it started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


@needs_sandbox
def test_time_in_which_all_is_suspended_does_not_count():
    """Two seconds are allowed, the program sleeps one, and for three everything is stopped."""
    run = "from selfalign.evaluation.sandbox import Limits, run_program\n"
    run += "run_program(['', ''])\nprint('begun', flush=True)\n"
    run += "print(run_program(['import time; time.sleep(1)', ''], Limits(wall_seconds=2)).status)"
    with subprocess.Popen([sys.executable, "-c", run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        deadline = time.monotonic() + 20
        while len(descendants(process.pid)) < 4 and time.monotonic() < deadline:  # bubblewrap twice, Python
            time.sleep(0.01)
        time.sleep(0.3)
        stopped = descendants(process.pid)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        assert process.stdout.read() == "passed\n"
    assert len(stopped) == 4


@needs_sandbox
@pytest.mark.parametrize(
    "greed",
    ["bytearray(10 * 2**30)", "parts = []\nwhile True: parts.append(bytearray(2**20))", "[0] * 10**10"],
)
def test_ten_gigabytes_of_memory_are_too_much(greed):
    assert ran(greed, TESTS, memory_mb=256) == Outcome("out_of_memory", "needs more than 256 MB")


@needs_sandbox
def test_memory_that_no_limit_counts_is_refused():
    shared = "import ctypes\nget = ctypes.CDLL(None, use_errno=True).shmget\n"
    tests = "assert get(0, ctypes.c_size_t(2**20), 0o1600) == -1 and ctypes.get_errno() == 1"
    assert ran(shared, tests).status == "passed"
    assert refused("os.memfd_create, 'x'", "import os").status == "passed"


@needs_sandbox
def test_ten_gigabytes_of_output_go_nowhere():
    write = "    os.write(1, block)\n    os.write(2, block)\n"
    flood = f"import os\nblock = b'x' * 2**20\nfor _ in range(5 * 2**10):\n{write}"
    assert ran(flood + RIGHT, TESTS) == Outcome("passed", "")


@needs_sandbox
def test_flooding_every_descriptor_is_stopped_at_once():
    write = "    for fd in range(64):\n        try: os.write(fd, b'x' * 4096)\n        except OSError: pass"
    outcome = ran(f"import os\nwhile True:\n{write}", TESTS)
    assert outcome == Outcome("failed", "it wrote into the report of the sandbox")


# What lies outside


@needs_sandbox
def test_no_file_of_this_machine_can_be_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    files = [str(secret), "/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/1/root/etc/passwd"]
    files += ["/sys/kernel/notes", "/dev/mem", "/dev/urandom", __file__, sandbox.__file__]
    for file in files:
        assert refused(f"os.stat, {file!r}", "import os") == Outcome("passed", ""), file


@needs_sandbox
def test_there_are_only_the_interpreter_and_its_libraries():
    walk = "import os\nseen = [os.path.join(d, f) for d, _, files in os.walk('/') for f in files]\n"
    library, executable = os.path.realpath(sysconfig.get_path("stdlib")), os.path.realpath(sys.executable)
    tests = f"""
others = [f for f in seen if not f.startswith({library!r} + "/") and ".so" not in f]
assert sorted(others) == sorted(["/dev/null", {executable!r}]), others
assert not [f for f in seen if "/site-packages/" in f]
assert len(seen) > 500
"""
    assert ran(walk, tests) == Outcome("passed", "")


@needs_sandbox
def test_no_variable_of_this_process_can_be_read(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "secret")
    check = "assert 'SECRET_KEY' not in os.environ and 'PATH' not in os.environ, dict(os.environ)"
    assert ran("import os", check) == Outcome("passed", "")


@needs_sandbox
def test_no_open_file_of_this_process_is_passed_on(tmp_path):
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        descriptors = "[fd for fd in range(64) if not refused(os.fstat, fd)]"
        assert ran(f"import os{ATTEMPT}", f"assert {descriptors} == [0, 1, 2, 3, 4]") == Outcome("passed", "")


@needs_sandbox
def test_nothing_can_be_written_anywhere(tmp_path):
    written = tmp_path / "written"
    library = sysconfig.get_path("stdlib")
    for place in ("/", "/dev", "/tmp", "/dev/shm", library, f"{library}/site-packages", tmp_path):  # noqa: S108
        assert refused(f"open, '{place}/written', 'w'").status == "passed", place
    assert not written.exists()
    assert refused("open, os.__file__, 'a'", "import os").status == "passed"
    assert refused("os.chmod, '/', 0o777", "import os").status == "passed"
    assert refused("tempfile.TemporaryFile", "import tempfile").status == "passed"


@needs_sandbox
def test_a_listener_here_is_not_reached():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        assert refused(f"socket.create_connection, {address}, 2", "import socket").status == "passed"
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
    for kind in ("AF_UNIX", "AF_VSOCK", "AF_NETLINK", "AF_PACKET"):
        assert refused(f"socket.socket, socket.{kind}", "import socket").status == "passed"


@needs_sandbox
def test_an_event_loop_still_works():
    answer = (
        "import asyncio\nasync def main():\n    return 42\ndef answer():\n    return asyncio.run(main())\n"
    )
    assert ran(answer, TESTS).status == "passed"


# Processes


@needs_sandbox
def test_a_fork_bomb_does_not_go_off():
    outcome = ran("import os\nwhile True: os.fork()", TESTS)
    assert (outcome.status, outcome.detail) == (
        "failed",
        "PermissionError: [Errno 1] Operation not permitted",
    )


@needs_sandbox
@pytest.mark.parametrize(
    "attack",
    [
        "subprocess.run, ['/bin/sh', '-c', 'true']",
        "subprocess.run, [sys.executable, '-c', 'pass']",
        "os.posix_spawn, sys.executable, ['python'], {}",
        "multiprocessing.Process(target=print).start",
        "os.forkpty",
    ],
)
def test_no_other_process_can_be_started(attack):
    assert refused(attack, "import multiprocessing, os, subprocess, sys\n").status == "passed"


@needs_sandbox
def test_no_thread_can_be_started():
    outcome = ran("import threading\nthreading.Thread(target=print).start()", TESTS)
    assert outcome.detail == "RuntimeError: can't start new thread"


@needs_sandbox
def test_killing_everything_in_sight_harms_nothing():
    kill = "import os, signal\nfor pid in (os.getppid(), 1):\n    os.kill(pid, signal.SIGKILL)\n"
    assert ran(kill + RIGHT, TESTS) == Outcome("passed", "")
    for pid in (os.getpid(), os.getppid(), -1):
        assert refused(f"os.kill, {pid}, 9", "import os").status == "passed"


@needs_sandbox
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.parametrize("name", sorted(_REFUSED))
def test_each_call_is_refused(name):
    number = _REFUSED[name][0]
    library = "import ctypes\nlibrary = ctypes.CDLL(None, use_errno=True)"
    tests = f"assert (library.syscall({number}, 0, 0, 0, 0, 0, 0), ctypes.get_errno()) == (-1, 1)"
    assert ran(library, tests) == Outcome("passed", "")


@needs_sandbox
def test_nothing_of_a_stopped_program_lives_on():
    """The program takes a name that no other process has, and is seen from outside while it runs."""
    name = f"gone{os.getpid()}"
    program = f"import ctypes, time\nctypes.CDLL(None).prctl(15, b'{name}')\ntime.sleep(60)"

    def alive():
        return [path for path in Path("/proc").glob("[0-9]*/comm") if name in read(path)]

    def read(path):
        try:
            return path.read_text()
        except OSError:
            return ""

    seen, over = [], threading.Event()

    def watch():
        while not seen and not over.wait(0.05):
            seen.extend(alive())

    watching = threading.Thread(target=watch)
    watching.start()
    assert ran(program, TESTS, wall_seconds=2).status == "timed_out"
    over.set()
    watching.join()
    assert len(seen) == 1
    deadline = time.monotonic() + 5
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive() == []


# Many programs


@needs_sandbox
def test_outcomes_are_kept_by_key_whatever_order_they_come_in():
    programs = {("right", i): (RIGHT, TESTS) for i in range(4)}
    programs |= {("slow", 0): (f"import time; time.sleep(0.5)\n{RIGHT}", TESTS), ("wrong", 0): ("", TESTS)}
    slow_first = dict(sorted(programs.items(), reverse=True))
    found = list(run_programs(slow_first, workers=2))
    assert {key: outcome.status for key, outcome in found} == {
        key: "failed" if key[0] == "wrong" else "passed" for key in programs
    }
    assert len(found) == len(programs)


def test_no_more_programs_than_workers_run_at_a_time(monkeypatch):
    running, most, lock = 0, 0, threading.Lock()

    def run(parts, limits):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return Outcome("passed", "")

    monkeypatch.setattr(sandbox, "sandbox_problem", lambda: None)
    monkeypatch.setattr(sandbox, "run_program", run)
    assert len(dict(run_programs(dict.fromkeys(range(12), ()), workers=3))) == 12
    assert most == 3


# No sandbox


def bubblewrap_like(directory, script):
    """Put a `bwrap` first on the path that is a shell script."""
    file = directory / "bwrap"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def attempts(tmp_path):
    """Show that a program that would leave a file behind is refused and never runs."""
    left = tmp_path / "left"
    program = [f"open({str(left)!r}, 'w')", "pass"]
    with pytest.raises(SandboxError):
        run_program(program)
    with pytest.raises(SandboxError):
        list(run_programs({"key": program}))
    assert not left.exists()


def test_without_bubblewrap_nothing_runs_and_the_reason_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert re.fullmatch(r"bubblewrap \(bwrap\) is missing; install it, .*", sandbox_problem())
    attempts(tmp_path)


def test_where_namespaces_are_forbidden_nothing_runs_and_the_reason_says_what_to_allow(tmp_path, monkeypatch):
    words = "bwrap: No permissions to create a new namespace"
    monkeypatch.setenv("PATH", bubblewrap_like(tmp_path, f"echo '{words}' >&2; exit 1"))
    problem = sandbox_problem()
    assert f"it says: {words}." in problem
    assert "--security-opt seccomp=unconfined" in problem
    attempts(tmp_path)


def test_on_an_unknown_machine_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert sandbox_problem() == "there is no sandbox for riscv64; run it on x86_64 or aarch64"
    attempts(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="the harness runs on Linux")
def test_a_sandbox_that_does_not_hold_is_found_out(tmp_path, monkeypatch):
    """This bubblewrap runs its command without a sandbox; only the probe's own program does run in it."""
    script = 'while [ "$1" != "--" ]; do shift; done; shift; exec "$@"'
    monkeypatch.setenv("PATH", bubblewrap_like(tmp_path, script))
    problem = sandbox_problem()
    assert problem.startswith("the sandbox does not hold (AssertionError: it reads files of this machine")
    left = tmp_path / "left"
    with pytest.raises(SandboxError, match="does not hold"):
        list(run_programs({"key": [f"open({str(left)!r}, 'w')", "pass"]}))
    assert not left.exists()


@needs_sandbox
def test_a_sandbox_without_the_filter_of_calls_is_found_out(monkeypatch):
    allow_all = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    monkeypatch.setattr(sandbox, "syscall_filter", lambda: allow_all)
    assert sandbox_problem().startswith("the sandbox does not hold (AssertionError: it opens sockets")


@needs_sandbox
def test_where_the_kernel_really_forbids_namespaces_the_reason_is_its_own():
    forbid = ["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--"]
    probe = "from selfalign.evaluation.sandbox import sandbox_problem; print(sandbox_problem())"
    done = subprocess.run([*forbid, sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if "Unknown option" in done.stderr:
        pytest.skip("this bubblewrap can't forbid namespaces")
    assert done.stdout.startswith("bubblewrap can't make a sandbox here; it says: bwrap: "), done.stderr


@needs_sandbox
def test_a_sandbox_that_is_ended_from_outside_gives_no_verdict(tmp_path, monkeypatch):
    script = "cat <&0 > /dev/null; echo ready; kill -9 $$"
    monkeypatch.setenv("PATH", bubblewrap_like(tmp_path, script))
    with pytest.raises(SandboxError, match="ended from outside by SIGKILL"):
        run_program([RIGHT, TESTS])
