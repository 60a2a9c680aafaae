"""The code in a model's reply to a coding problem, and the program that tests it.

Code is compiled here to see how far it is Python; it never runs here.
"""

import re
import textwrap
import warnings

from selfalign.evaluation.code_tasks import CodeProblem

# A line that begins or ends a block, with its language.
_FENCE = re.compile(r"[ \t]*`{3,}[ \t]*\{?\.?([\w+-]*)")
_PYTHON = {"", "python", "python3", "py", "py3"}
# How a line may begin code that follows prose.
_OPENING = re.compile(r"(?:import|from|def|async|class)\s|@|\w+\s*(?::[^=]*)?=(?!=)")
_MOST_TRIES = 100


def extract_code(reply: str, problem: CodeProblem) -> str:
    """Return the code that a reply gives as its answer, as a program without the tests.

    The answer is the first of these that there is:

    1. The body of the function, if the reply goes on where `prefix` ends; up to the first line that is no
       longer part of it. The code is then the prefix and the body.
    2. Code that defines the entry point: before the first fence or in a block, cut off or not, whichever
       comes first. Prose around it is left out, and so is what breaks off after the definition.
    3. A block that means to define the entry point, though it is no Python.
    4. A body in a block, or in a reply without one, even if it lost its indentation.
    5. The first block, or the whole reply.

    Args:
        reply: Raw text, with any line breaks.
        problem: The problem it answers.

    Source: our choice; what a block holds is kept as it is, its examples included.
    """
    reply = reply.replace("\r\n", "\n").replace("\r", "\n")
    head, blocks = _split(reply)
    name, prefix = problem.entry_point, problem.prefix
    if prefix and _indented(head) and not _indented_program(head, name):
        continued = _continued(head, prefix)
        if continued is not None:
            return continued
    for text in (head, *blocks):
        whole = _whole(text, name)
        if whole is not None:
            return whole
    for text in blocks:
        if _defines(text, name):
            return text
    for text in (blocks or [head]) if prefix else []:
        for body in (text, "    " + text.lstrip(), textwrap.indent(text, "    ")):
            continued = _continued(body, prefix)
            if continued is not None:
                return continued
    return blocks[0] if blocks else head


def program(code: str, problem: CodeProblem) -> tuple[str, str, str]:
    """Return the parts of the program that tests an answer, to be run in order.

    They are what precedes the entry point in the prompt, the answer, and the tests. A reply with the whole
    function may leave out the imports and helpers of the prompt, though function and tests use them; one that
    has them overrides them.

    Args:
        code: What `extract_code` gave.
        problem: The problem it answers.
    """
    signature = re.search(rf"^(?:async\s+)?def\s+{problem.entry_point}\b", problem.prefix, re.MULTILINE)
    return problem.prefix[: signature.start()] if signature else "", code, problem.tests


def _split(reply: str) -> tuple[str, list[str]]:
    """Return what precedes the first fence, and the contents of the blocks.

    Blocks in Python or without a language, or all of them if there are none such. A fence with a language
    always begins a block; the last block may be cut off.
    """
    head: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    target = head
    for line in reply.split("\n"):
        fence = _FENCE.match(line)
        if fence is None:
            target.append(line)
        elif fence[1] or target is head or target is not blocks[-1][1]:
            target = []
            blocks.append((fence[1].lower(), target))
        else:
            target = []
    texts = [(language, "\n".join(lines)) for language, lines in blocks]
    return "\n".join(head), [text for language, text in texts if language in _PYTHON] or [t for _, t in texts]


def _indented(text: str) -> bool:
    """Say whether the first line with anything in it begins with white space."""
    return text.strip("\n")[:1] in (" ", "\t")


def _indented_program(text: str, name: str) -> bool:
    """Say whether the text is indented as a whole and defines the name, so that it is no body."""
    shifted = textwrap.dedent(text)
    return not _indented(shifted) and _defines(shifted, name)


def _defines(text: str, name: str) -> bool:
    """Say whether an unindented line begins a definition of the name."""
    return _definition(text.split("\n"), name) is not None


def _definition(lines: list[str], name: str) -> int | None:
    pattern = re.compile(rf"(?:async\s+)?(?:def|class)\s+{name}\b|{name}\s*(?::[^=]*)?=(?!=)")
    return next((place for place, line in enumerate(lines) if pattern.match(line)), None)


def _whole(text: str, name: str) -> str | None:
    """Return the longest stretch of statements around the definition of the name; `None` if there is none."""
    lines = (textwrap.dedent(text) if _indented(text) else text).split("\n")
    defined = _definition(lines, name)
    if defined is None:
        return None
    if _error_line("\n".join(lines)) is None:
        return "\n".join(lines)
    tops = _tops(lines)
    end = len(lines)
    while (wrong := _error_line("\n".join(lines[defined:end]))) is not None:
        # The statement that holds the error, and all that follows it, is left out.
        end = max(top for top in tops if top < min(defined + wrong, end))
        if end <= defined:
            return None
    openings = [top for top in tops if top < defined and _OPENING.match(lines[top])][-_MOST_TRIES:]
    start = next((top for top in openings if _error_line("\n".join(lines[top:end])) is None), defined)
    return "\n".join(lines[start:end]) + "\n"


def _continued(text: str, prefix: str) -> str | None:
    """Return the prefix with the shortest body that the text begins with; `None` if it begins with none."""
    lines = text.split("\n")
    first = next((place for place, line in enumerate(lines) if line.strip()), len(lines))
    if not _indented(text):
        return None
    ends = [top for top in _tops(lines) if top > first and not lines[top].startswith("#")]
    for end in [*ends[:_MOST_TRIES], len(lines)]:
        code = prefix + "\n".join(lines[:end]) + "\n"
        if _error_line(code) is None:
            return code
    return None


def _tops(lines: list[str]) -> list[int]:
    """Return the places of unindented lines with anything in them."""
    return [place for place, line in enumerate(lines) if line[:1].strip()]


def _error_line(code: str) -> int | None:
    """Return the number of the line at which code stops being Python, counted from 1; `None` if it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "reply", "exec", dont_inherit=True)
    except SyntaxError as error:
        return max(error.lineno or 1, 1)
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return 1  # null bytes, or nested too deeply
    return None
