"""A sandbox for Python programs that a model wrote: nothing of them ever runs outside of it.

A program runs under bubblewrap in namespaces of its own, in a file system that holds the interpreter, its
standard library and their shared libraries, and in which nothing can be written. It has no network and no
privileges, and it stays one process with one thread, because the system calls for more are refused (see
`syscalls`). What it prints is thrown away.

A program passes only if its last part, the tests, ran to the end; see `in_sandbox`. It shares an interpreter
with its tests, so a program written against these very files could forge its own pass, or return objects that
equal everything. Neither reaches out of the sandbox.
"""

import marshal
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from selfalign.errors import SandboxError
from selfalign.evaluation import in_sandbox
from selfalign.evaluation.syscalls import syscall_filter

Key = TypeVar("Key", bound=Hashable)
Status = Literal["passed", "failed", "timed_out", "out_of_memory"]

_START_SECONDS = 60.0
_SLICE_SECONDS = 0.5
_MOST_REPORTED = 8192
# What the probe tries, told the name of a file of this process; each assert says what must not succeed.
_ESCAPE = """
import os, socket
def refused(act, *args):
    try:
        act(*args)
    except OSError:
        return True
"""
_ESCAPE_TESTS = """
assert refused(open, SECRET), "it reads files of this machine"
assert refused(open, "/etc/passwd"), "it reads files of the system"
assert refused(open, "/file", "w") and refused(open, "/dev/file", "w"), "it writes files"
assert set(os.environ) <= {"LANG", "LC_CTYPE", "LD_LIBRARY_PATH", "PWD", "PYTHONHASHSEED"}, "it has variables"
assert refused(socket.socket), "it opens sockets"
assert refused(os.fork), "it starts processes"
assert os.getpid() < 10, "it is among other processes"
try:
    bytearray(1 << 40)
except MemoryError:
    pass
else:
    assert False, "its memory is not limited"
"""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Source: our choice. The code published with HumanEval gives a program 3 s by the clock, but the reference
        answer of MBPP 123 needs longer. Processor time comes first, so that a busy machine changes no
        verdict; time by the clock ends programs that sleep.
    """

    cpu_seconds: int = 8
    """Processor time, the start of the interpreter included."""
    wall_seconds: float = 20.0
    """Time by the clock from the program's start."""
    memory_mb: int = 1024
    """Address space, that of the interpreter included."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: Status
    detail: str
    """What stopped it, in one line of printable characters, some the program's own; "" if it passed."""


def sandbox_problem() -> str | None:
    """Say why programs can't be run safely here and what would help; `None` if they can.

    It really runs a program that tries to get out.
    """
    try:
        with tempfile.NamedTemporaryFile() as file:
            outcome = run_program([f"SECRET = {file.name!r}\n{_ESCAPE}", _ESCAPE_TESTS])
    except SandboxError as error:
        return str(error)
    if outcome.status == "passed":
        return None
    return f"the sandbox does not hold ({outcome.detail}); bring the kernel and bubblewrap up to date"


def run_programs(
    programs: Mapping[Key, Sequence[str]], limits: Limits | None = None, *, workers: int | None = None
) -> Iterator[tuple[Key, Outcome]]:
    """Run programs side by side, after a probe of the sandbox.

    Args:
        programs: Parts of each program by its key.
        limits: For each of them.
        workers: Most programs at a time; one for each processor if `None`.

    Yields:
        Key and outcome of every program, each as soon as it has ended.

    Raises:
        SandboxError: There is no sandbox here, or it broke on the way.
    """
    problem = sandbox_problem()
    if problem is not None:
        raise SandboxError(problem)
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        futures = {pool.submit(run_program, parts, limits): key for key, parts in programs.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def run_program(parts: Sequence[str], limits: Limits | None = None) -> Outcome:
    """Run one program in the sandbox, and nowhere else.

    Args:
        parts: Source texts that run one after the other in one module, the tests last.
        limits: What it may use.

    Raises:
        SandboxError: The sandbox did not start, or was ended from outside: there is no verdict.
    """
    limits = limits or Limits()
    syscalls, launcher = syscall_filter(), _launcher()
    program = marshal.dumps((tuple(parts), _resource_limits(limits)))
    token = secrets.token_hex(16).encode()
    stdin, (seccomp, filling) = os.memfd_create("program"), os.pipe()
    try:
        with os.fdopen(filling, "wb") as pipe:
            pipe.write(syscalls)
        with os.fdopen(os.dup(stdin), "wb") as file:
            file.write(program + token)
        os.lseek(stdin, 0, os.SEEK_SET)
        with subprocess.Popen(  # noqa: S603 -- the program is data for the interpreter in the sandbox
            [*launcher, "--seccomp", str(seccomp), "--", *_interpreter(), str(len(program))],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},  # the order of a set must not change a verdict
            pass_fds=[seccomp],
        ) as process:
            try:
                report, stopped = _read(process, limits)
            finally:
                process.kill()  # and with it all that runs inside
    finally:
        os.close(stdin)
        os.close(seccomp)
    if not report.startswith(in_sandbox.READY):
        raise SandboxError(_no_sandbox(report))
    report = report.removeprefix(in_sandbox.READY)
    return stopped or _outcome(report, token, process.returncode, limits)


def _read(process: "subprocess.Popen[bytes]", limits: Limits) -> tuple[bytes, Outcome | None]:
    """Read what the sandbox reports until it ends; or until it must be stopped, with the outcome."""
    assert process.stdout is not None  # noqa: S101 -- it is a pipe
    pipe = process.stdout.fileno()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    report, left, started = b"", _START_SECONDS, False
    while left > 0:
        began = time.monotonic()
        ready = poll.poll(min(left, _SLICE_SECONDS) * 1000)
        # A slice counts for no more than its length, so that being suspended in it costs the program nothing.
        left -= min(time.monotonic() - began, _SLICE_SECONDS)
        if not ready:
            continue
        chunk = os.read(pipe, _MOST_REPORTED)
        report += chunk
        if not chunk:
            process.wait()
            return report, None
        if len(report) > _MOST_REPORTED:
            return report, Outcome("failed", "it wrote into the report of the sandbox")
        if not started and report.startswith(in_sandbox.READY):
            left, started = limits.wall_seconds, True
    return report, Outcome("timed_out", f"no end after {limits.wall_seconds:g} s")


def _outcome(report: bytes, token: bytes, status: int, limits: Limits) -> Outcome:
    """Return the outcome of a program that ended, from its report and the exit status of the sandbox."""
    if report == token:
        return Outcome("passed", "")
    if status < 0:
        raise SandboxError(f"the sandbox was ended from outside by {_signal(-status)}; run it again")
    kind, _, words = report.decode(errors="replace").partition("\n")
    if kind == "out_of_memory":
        return Outcome("out_of_memory", f"needs more than {limits.memory_mb} MB")
    if kind == "failed":
        return Outcome("failed", "".join(c if c.isprintable() else " " for c in words))
    if status == 128 + signal.SIGXCPU:
        return Outcome("timed_out", f"no end after {limits.cpu_seconds} s of processor time")
    ended = f"was ended by {_signal(status - 128)}" if status > 128 else f"left with exit status {status}"
    return Outcome("failed", f"{ended} before its tests were through")


def _signal(number: int) -> str:
    """Return the name of a signal."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _no_sandbox(report: bytes) -> str:
    """Say why bubblewrap made no sandbox, and what helps."""
    words = " ".join(report.decode(errors="replace").split()) or "nothing within the time given"
    return (
        f"bubblewrap can't make a sandbox here; it says: {words[-500:]}. "
        "Allow it user namespaces and mounts, in Docker by --security-opt seccomp=unconfined --security-opt "
        "apparmor=unconfined, on Ubuntu by sysctl kernel.apparmor_restrict_unprivileged_userns=0, "
        "or use another machine"
    )


def _launcher() -> list[str]:
    """Return how bubblewrap is called, but for the filter of system calls and the command.

    Raises:
        SandboxError: bubblewrap or ldd is missing.
    """
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise SandboxError("bubblewrap (bwrap) is missing; install it, on Debian by apt install bubblewrap")
    standard_library, *files = _interpreter_files()
    mounts = [word for path in (standard_library, *files) for word in ("--ro-bind", path, path)]
    installed = Path(standard_library, "site-packages")
    if installed.is_dir():
        mounts += ["--tmpfs", str(installed), "--remount-ro", str(installed)]
    mounts += ["--dev-bind", "/dev/null", "/dev/null", "--remount-ro", "/", "--chdir", "/"]
    libraries = ":".join(sorted({str(Path(file).parent) for file in files}))
    return [
        *[bubblewrap, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"],
        *["--hostname", "sandbox", "--cap-drop", "ALL", "--new-session", "--die-with-parent"],
        *[*mounts, "--setenv", "LD_LIBRARY_PATH", libraries],
    ]


@cache
def _interpreter() -> tuple[str, ...]:
    """Return the command inside, but for its argument: only the standard library, and nothing written."""
    _, executable, *_ = _interpreter_files()
    harness = Path(in_sandbox.__file__).read_text(encoding="utf-8")
    return executable, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", harness


@cache
def _interpreter_files() -> tuple[str, ...]:
    """Return the directory of the standard library, the interpreter, and the shared libraries of both.

    Raises:
        SandboxError: The tool that lists shared libraries is missing.
    """
    ldd = shutil.which("ldd")
    if ldd is None:
        raise SandboxError("ldd is missing, which lists the interpreter's libraries; install the libc tools")
    # A virtual environment has a link to its interpreter, or a copy; what is wanted is the one behind it.
    base = getattr(sys, "_base_executable", sys.executable)
    executable, standard_library = map(os.path.realpath, (base, sysconfig.get_path("stdlib")))
    modules = [str(file) for file in Path(standard_library).glob("lib-dynload/*.so")]
    told = subprocess.run(  # noqa: S603 -- files of the interpreter that runs this
        [ldd, executable, *(file for file in modules if "_tkinter" not in file)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    libraries = map(os.path.normpath, re.findall(r"^\s+(?:.* => )?(/.+) \(0x", told, re.MULTILINE))
    return standard_library, *dict.fromkeys([executable, *libraries])


def _resource_limits(limits: Limits) -> list[tuple[str, int, int]]:
    """Return name, soft and hard value of each limit that the interpreter sets inside."""
    memory = limits.memory_mb << 20
    # The soft limit on time sends a signal of its own; the hard one is for programs that ignore it.
    return [
        ("RLIMIT_CPU", limits.cpu_seconds, limits.cpu_seconds + 1),
        ("RLIMIT_AS", memory, memory),
        ("RLIMIT_FSIZE", 0, 0),
        ("RLIMIT_NPROC", 1, 1),
        ("RLIMIT_NOFILE", 64, 64),
        ("RLIMIT_CORE", 0, 0),
    ]
