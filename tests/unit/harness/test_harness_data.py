"""The original files of benchmarks as rows of the hub."""

import json
import zipfile
from pathlib import Path

import pytest

from selfalign.errors import DataError
from selfalign.harness.data import is_local, missing_file, read_local

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data files are not here")


def write(directory: Path, name: str, content: str) -> Path:
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return file


def test_mmlu_has_no_header_and_numbers_its_answers(tmp_path: Path):
    write(tmp_path, "mmlu/test/law_test.csv", '"Is it,\nreally?",a,b,c,"d ""e""",C\n')
    write(tmp_path, "mmlu/dev/law_dev.csv", "Q,1,2,3,4,A\n")
    assert read_local("mmlu", tmp_path, ["law"]) == {
        "law": {
            "test": [{"question": "Is it,\nreally?", "choices": ["a", "b", "c", 'd "e"'], "answer": 2}],
            "dev": [{"question": "Q", "choices": ["1", "2", "3", "4"], "answer": 0}],
        }
    }


def test_cmmlu_has_a_header_and_an_index(tmp_path: Path):
    content = "\ufeff,Question,A,B,C,D,Answer\n0,问,甲,乙,丙,丁,D\n"
    for split in ("test", "dev"):
        write(tmp_path, f"cmmlu/{split}/law.csv", content)
    row = {"Question": "问", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "Answer": "D"}
    assert read_local("cmmlu", tmp_path, ["law"]) == {"law": {"test": [row], "dev": [row]}}


def test_math_is_sorted_by_type_and_what_is_not_there_is_left_out(tmp_path: Path):
    rows = [
        {"problem": "p1", "solution": r"\boxed{1}", "type": "Counting & Probability", "level": "Level 1"},
        {"problem": "p2", "solution": r"\boxed{2}", "type": "Algebra", "level": "Level 2"},
    ]
    write(tmp_path, "math/test.jsonl", "\n".join(map(json.dumps, rows)))
    subjects = ["algebra", "counting_and_probability", "geometry"]
    assert read_local("math", tmp_path, subjects) == {
        "algebra": {"test": [{"problem": "p2", "solution": r"\boxed{2}"}]},
        "counting_and_probability": {"test": [{"problem": "p1", "solution": r"\boxed{1}"}]},
    }
    with pytest.raises(DataError, match=r"test\.jsonl, row 1: \"type\" is 'Counting & Probability'"):
        read_local("math", tmp_path, ["algebra"])


def test_gsm8k_and_ifeval_keep_their_fields(tmp_path: Path):
    for split in ("test", "train"):
        write(tmp_path, f"gsm8k/{split}.jsonl", json.dumps({"question": split, "answer": "#### 1"}))
    assert read_local("gsm8k", tmp_path, ["main"])["main"] == {
        "test": [{"question": "test", "answer": "#### 1"}],
        "train": [{"question": "train", "answer": "#### 1"}],
    }
    row = {"key": 7, "prompt": "p", "instruction_id_list": ["x:y"], "kwargs": [{"num_words": 3}]}
    write(tmp_path, "ifeval/input_data.jsonl", json.dumps(row))
    assert read_local("ifeval", tmp_path, ["None"]) == {"None": {"train": [row]}}


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("mmlu", "mmlu/test/law_test.csv", "Q,1,2,3,4,A\nQ,1,2,3,A\n", "row 2: the row has 5 cells"),
        ("mmlu", "mmlu/test/law_test.csv", "Q,1,2,3,4,1\n", "row 1: the last cell is '1'"),
        ("cmmlu", "cmmlu/test/law.csv", "h\n0,Q,1,2,3,4,\n", "row 2: the last cell is ''"),
        ("cmmlu", "cmmlu/test/other.csv", "", "law.csv: there is no such file"),
        ("gsm8k", "gsm8k/test.jsonl", '{"question": "q"}', 'row 1: the field "answer" is missing'),
        (
            "gsm8k",
            "gsm8k/test.jsonl",
            '{"question": "q", "answer": "2"}',
            'row 1: "answer" has no line "####',
        ),
        (
            "math",
            "math/test.jsonl",
            '{"problem": "p", "solution": "2", "type": "law"}',
            r'row 1: "solution" has no answer in \\boxed',
        ),
        (
            "math",
            "math/test.jsonl",
            json.dumps({"problem": "p", "solution": r"$\boxed{1}$, or \boxed{\frac{2}{3}", "type": "law"}),
            r'row 1: "solution" has no answer in \\boxed',
        ),
        (
            "ifeval",
            "ifeval/input_data.jsonl",
            '{"instruction_id_list": ["a"], "kwargs": []}',
            "of one length",
        ),
        ("gpqa", "gpqa/dataset.zip", "no archive", "the archive is damaged or locked otherwise"),
        ("gpqa", "gpqa/other.zip", "", "there is no such file"),
    ],
)
def test_malformed_files_are_refused_with_their_row(
    tmp_path: Path, task: str, name: str, content: str, message: str
):
    write(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        read_local(task, tmp_path, ["law"])


def test_a_strange_archive_is_refused_without_showing_what_is_in_it(tmp_path: Path):
    (tmp_path / "gpqa").mkdir()
    file = tmp_path / "gpqa" / "dataset.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("dataset/other.csv", "x")
    with pytest.raises(DataError, match=r"has no dataset/gpqa_diamond\.csv"):
        read_local("gpqa", tmp_path, ["gpqa_diamond"])
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("dataset/gpqa_diamond.csv", "Question,Record ID\nsecret,1\n")
    with pytest.raises(DataError, match="lacks rows or columns") as caught:
        read_local("gpqa", tmp_path, ["gpqa_diamond"])
    assert "secret" not in str(caught.value)


def test_a_folder_makes_a_benchmark_local_and_its_files_make_it_whole(tmp_path: Path):
    assert not is_local("mmlu", None)
    assert not is_local("mmlu", tmp_path)
    assert not is_local("piqa", tmp_path)
    write(tmp_path, "mmlu/test/law_test.csv", "")
    assert is_local("mmlu", tmp_path)
    assert missing_file("mmlu", tmp_path, ["law"]) == tmp_path / "mmlu" / "dev" / "law_dev.csv"
    write(tmp_path, "mmlu/dev/law_dev.csv", "")
    assert missing_file("mmlu", tmp_path, ["law"]) is None


@needs_data
def test_the_published_files_have_as_many_rows_as_they_say():
    def sizes(task: str, subjects: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for splits in read_local(task, DATA, subjects).values():
            for split, rows in splits.items():
                found[split] = found.get(split, 0) + len(rows)
        return found

    mmlu = [file.name.removesuffix("_test.csv") for file in (DATA / "mmlu" / "test").iterdir()]
    cmmlu = [file.stem for file in (DATA / "cmmlu" / "test").iterdir()]
    assert sizes("mmlu", mmlu) == {"test": 1140, "dev": 285}
    assert sizes("cmmlu", cmmlu) == {"test": 11582, "dev": 335}
    assert sizes("gsm8k", ["main"]) == {"test": 1319, "train": 1000}
    assert sizes("ifeval", ["None"]) == {"train": 541}
    assert sizes("gpqa", ["gpqa_diamond"]) == {"train": 198}
