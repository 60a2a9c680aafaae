"""The original files of benchmarks, read as rows of the hub data sets that lm-eval expects.

Nothing is unpacked or written. The questions of GPQA stay in memory: its authors ask that none be shown in
plain text.
"""

import csv
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from selfalign.data import read_rows
from selfalign.data.fields import Row, located, objects, text, whole
from selfalign.errors import DataError
from selfalign.runs.files import hash_file, hash_json

T = TypeVar("T")
Rows = list[dict[str, Any]]
Splits = dict[str, Rows]
"""Rows by the name of their split on the hub."""

FILES = {
    "gsm8k": ("gsm8k/test.jsonl", "gsm8k/train.jsonl"),
    "math": ("math/test.jsonl",),
    "mmlu": ("mmlu/test", "mmlu/dev"),
    "cmmlu": ("cmmlu/test", "cmmlu/dev"),
    "ifeval": ("ifeval/input_data.jsonl",),
    "gpqa": ("gpqa/dataset.zip",),
}
"""Where a data directory has the files of a benchmark; MMLU and CMMLU have one of each subject in there."""

_LETTERS = "ABCD"
_GPQA = "dataset/gpqa_diamond.csv"
# The authors publish it beside the archive, which they lock against being copied into training data.
_GPQA_PASSWORD = b"deserted-untie-orchid"
_GPQA_FIELDS = (
    *("Record ID", "Question", "Correct Answer"),
    *("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
)


def is_local(task: str, data_dir: Path | None) -> bool:
    """Say whether a data directory has a folder for a benchmark, which is then taken from there alone."""
    return data_dir is not None and task in FILES and (data_dir / FILES[task][0]).parent.is_dir()


def missing_file(task: str, data_dir: Path, subjects: Sequence[str]) -> Path | None:
    """Return the first file of a benchmark that its folder lacks, `None` if all are there."""
    files = [file for subject in subjects for file in _files(task, data_dir, subject)]
    return next((file for file in files if not file.is_file()), None)


def fingerprint(task: str, data_dir: Path | None) -> str:
    """Return a hash of a benchmark's local files; where it comes from the hub, of that alone."""
    if data_dir is None or not is_local(task, data_dir):
        return hash_json(["hub", task])
    places = [data_dir / name for name in FILES[task]]
    files = [
        file for place in places for file in (sorted(place.glob("*.csv")) if place.is_dir() else [place])
    ]
    return hash_json({str(file.relative_to(data_dir)): hash_file(file) for file in files})


def read_local(task: str, data_dir: Path, subjects: Sequence[str]) -> dict[str, Splits]:
    """Read a benchmark from its original files.

    Args:
        task: One of `FILES`.
        data_dir: Holds them.
        subjects: The hub's configurations that lm-eval asks for; one where there are no subjects.

    Returns:
        The splits of each subject that has rows.

    Raises:
        DataError: A file is missing or damaged, or a row is malformed.
    """
    if task == "math":
        return _math(data_dir / FILES[task][0], subjects)
    return {subject: _splits(task, _files(task, data_dir, subject)) for subject in subjects}


def _files(task: str, data_dir: Path, subject: str) -> list[Path]:
    """Return the files of a subject."""
    paths = [data_dir / name for name in FILES[task]]
    if task == "mmlu":
        return [path / f"{subject}_{path.name}.csv" for path in paths]
    return [path / f"{subject}.csv" for path in paths] if task == "cmmlu" else paths


def _splits(task: str, files: Sequence[Path]) -> Splits:
    match task:
        case "gsm8k":
            return {file.stem: _json_rows(file, _gsm8k) for file in files}
        case "ifeval":
            return {"train": _json_rows(files[0], _ifeval)}
        case "gpqa":
            return {"train": _gpqa(files[0])}
        case "mmlu":
            return {file.parent.name: _read(file, _csv_rows(file), _mmlu) for file in files}
        case _:
            return {file.parent.name: _read(file, _csv_rows(file, header=True), _cmmlu) for file in files}


def _math(file: Path, subjects: Sequence[str]) -> dict[str, Splits]:
    """Sort the problems by their type, which is what the hub's configurations are called after."""
    found: dict[str, Splits] = {subject: {"test": []} for subject in subjects}
    for number, row in read_rows(str(file)):
        with located(str(file), number):
            subject = text(row, "type").lower().replace(" & ", "_and_").replace(" ", "_")
            if subject not in found:
                raise DataError(f'"type" is {row["type"]!r}, of which there is no subject; correct it')
            if not _boxes_an_answer(text(row, "solution")):
                raise DataError('"solution" has no answer in \\boxed{}, closed again; add it')
            found[subject]["test"].append({name: text(row, name) for name in ("problem", "solution")})
    return {subject: splits for subject, splits in found.items() if splits["test"]}


def _boxes_an_answer(solution: str) -> bool:
    r"""Say whether lm-eval finds the answer of a solution: behind the last `\boxed`, in braces or a space."""
    _, boxed, answer = solution.rpartition("\\boxed")
    depths = accumulate({"{": 1, "}": -1}.get(character, 0) for character in answer)
    return "\\boxed " in solution or (bool(boxed) and answer.startswith("{") and 0 in depths)


def _json_rows(file: Path, convert: Callable[[Row], dict[str, Any]]) -> Rows:
    return _read(file, read_rows(str(file)), convert)


def _read(file: Path, rows: Iterable[tuple[int, T]], convert: Callable[[T], dict[str, Any]]) -> Rows:
    """Convert the rows of a file."""
    converted = []
    for number, row in rows:
        with located(str(file), number):
            converted.append(convert(row))
    return converted


def _gsm8k(row: Row) -> dict[str, Any]:
    if "#### " not in text(row, "answer"):
        raise DataError('"answer" has no line "#### " with the result; add it')
    return {name: text(row, name) for name in ("question", "answer")}


def _ifeval(row: Row) -> dict[str, Any]:
    instructions, arguments = row.get("instruction_id_list"), objects(row, "kwargs")
    if not isinstance(instructions, list) or len(instructions) != len(arguments):
        raise DataError('"instruction_id_list" and "kwargs" must be lists of one length')
    return {
        "key": whole(row, "key"),
        "prompt": text(row, "prompt"),
        "instruction_id_list": instructions,
        "kwargs": arguments,
    }


def _mmlu(cells: Sequence[str]) -> dict[str, Any]:
    question, *choices, answer = _cells(cells, 6)
    return {"question": question, "choices": choices, "answer": _LETTERS.index(answer)}


def _cmmlu(cells: Sequence[str]) -> dict[str, Any]:
    _, question, *choices, answer = _cells(cells, 7)
    return {"Question": question, **dict(zip(_LETTERS, choices, strict=True)), "Answer": answer}


def _cells(cells: Sequence[str], number: int) -> Sequence[str]:
    """Return the cells of a row that ends with the letter of the right answer."""
    if len(cells) != number:
        raise DataError(f"the row has {len(cells)} cells; it must have {number}")
    if cells[-1] not in tuple(_LETTERS):
        raise DataError(f"the last cell is {cells[-1]!r}; it must be the right answer's letter, A to D")
    return cells


def _csv_rows(file: Path, *, header: bool = False) -> Iterator[tuple[int, list[str]]]:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError("there is no such file; check the path", path=file) from None
    except UnicodeDecodeError:
        raise DataError("the file is not UTF-8; save it as UTF-8", path=file) from None
    rows = list(enumerate(csv.reader(io.StringIO(content, newline="")), start=1))
    yield from rows[header:]


def _gpqa(file: Path) -> Rows:
    """Read the questions inside their archive; no error shows any of them."""
    try:
        with zipfile.ZipFile(file) as archive:
            content = archive.read(_GPQA, pwd=_GPQA_PASSWORD).decode()
    except FileNotFoundError:
        raise DataError("there is no such file; check the path", path=file) from None
    except KeyError:
        raise DataError(f"the archive has no {_GPQA}; fetch it again", path=file) from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, UnicodeDecodeError):
        raise DataError("the archive is damaged or locked otherwise; fetch it again", path=file) from None
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    if not rows or not set(_GPQA_FIELDS) <= rows[0].keys():
        raise DataError(f"{_GPQA} lacks rows or columns; fetch it again", path=file)
    return [{name: row[name] for name in _GPQA_FIELDS} for row in rows]
