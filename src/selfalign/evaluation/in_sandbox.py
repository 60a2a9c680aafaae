"""What runs inside the sandbox: the parts of one program, one after the other, in one module.

`sandbox.run_program` starts this file's text in an interpreter that has the standard library and nothing
else. Standard input holds the marshalled parts and limits and, behind them, a token. On standard output goes
`READY`, and then the token if the last part reached its end, or what stopped the program. Parts are
compiled one by one before any of them runs, so no part can swallow a later one. The token stays unread until
the end: what the program prints, or how it exits, can't stand for it.
"""

import marshal
import os
import sys
from types import ModuleType
from typing import NoReturn

READY = b"ready\n"
_MOST_WORDS = 300


def main(size: int) -> NoReturn:
    """Run the program whose marshalled form is the first `size` bytes of standard input."""
    import resource  # not there on every system on which this file is imported

    parts, limits = marshal.loads(os.read(0, size))  # noqa: S302 -- made by the process that started this one
    source, report = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    for name, soft, hard in limits:
        resource.setrlimit(getattr(resource, name), (soft, hard))
    read, write, leave, run = os.read, os.write, os._exit, exec  # a program may replace those of the modules
    write(report, READY)
    # Not "__main__": what stands under `if __name__ == "__main__"` is no part of an answer.
    module = sys.modules["program"] = ModuleType("program")
    try:
        codes = [
            compile(part, f"part {number}", "exec", dont_inherit=True) for number, part in enumerate(parts)
        ]
        for code in codes:
            run(code, module.__dict__)
    except MemoryError:
        write(report, b"out_of_memory\n")
    except BaseException as error:  # noqa: BLE001 -- whatever it was, the program did not reach its end
        write(report, f"failed\n{_words(error, parts)}".encode(errors="replace"))
    else:
        write(report, read(source, 64))
    leave(0)


def _words(error: BaseException, parts: tuple[str, ...]) -> str:
    """Say what stopped the program, with the line of its last part, the tests, that was being run."""
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 -- an exception class of the program's own
        message = ""
    words = f"{name}: {message}"[:_MOST_WORDS] if message else name
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == f"part {len(parts) - 1}":
            line = parts[-1].split("\n")[trace.tb_lineno - 1].strip()
        trace = trace.tb_next
    return f"{words} in {line[:_MOST_WORDS]}" if line else words


if __name__ == "__main__":
    main(int(sys.argv[1]))
