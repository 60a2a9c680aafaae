import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_server import install

from selfalign.config import EngineSettings, Lora, Policy, Sampling, Serve
from selfalign.engines import Engine, GenerationRequest, close_engine, keeper, open_engine
from selfalign.engines.serving import Server
from selfalign.errors import RecipeError, ServerError
from selfalign.models.load import load_trainable
from selfalign.records import Message

START = """
import sys
from pathlib import Path
from selfalign.config import Policy, Serve
from selfalign.engines.serving import Server
server = Server(Serve.model_validate_json(sys.argv[1]), Policy(), Path(sys.argv[2]))
print("healthy", flush=True)
"""
KEEPER = [sys.executable, "-I", "-S", str(Path(keeper.__file__))]
IMPATIENT = "import keeper, sys; keeper._GRACE_SECONDS = 0.3; keeper.main(sys.argv[1:])"
DEAF = "trap '' TERM; echo $$ > {}; while :; do sleep 0.1; done"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return install(tmp_path / "environment" / "bin")


def settings(python: Path, *arguments: str, **others: Any) -> Serve:
    return Serve(python=str(python), arguments=arguments, **others)


def recorded(tmp_path: Path) -> tuple[str, str]:
    """Have the made-up vLLM tell how it was started."""
    return "--record", str(tmp_path / "record.json")


def record(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "record.json").read_text())


def is_running(pid: int) -> bool:
    """Say whether a process is there and no zombie."""
    state = subprocess.run(["/bin/ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def answer(engine: Engine) -> str | None:
    request = GenerationRequest("one", (Message(role="user", content="hello"),), 0)
    return next(iter(engine.generate([request], Sampling(max_new_tokens=20)))).text


def test_a_model_is_served_as_the_recipe_says_until_its_engine_is_let_go(
    tiny_model: Path, tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    serve = settings(python, "--seed", "1", *recorded(tmp_path), tensor_parallel=2, data_parallel=3)
    policy = Policy(model=str(tiny_model), precision="bfloat16")
    engine = open_engine(EngineSettings(kind="server", serve=serve), policy, tiny_model)
    assert answer(engine)
    started = record(tmp_path)
    assert started["arguments"][:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    given = dict(zip(started["arguments"][2::2], started["arguments"][3::2], strict=True))
    assert given.pop("--port").isdecimal()
    assert given == {
        "--model": str(tiny_model),
        "--host": "127.0.0.1",
        "--served-model-name": "policy",
        "--tensor-parallel-size": "2",
        "--data-parallel-size": "3",
        "--dtype": "bfloat16",
        "--generation-config": "vllm",
        "--seed": "1",
        "--record": str(tmp_path / "record.json"),
    }
    assert "VLLM_API_KEY" not in started["environment"]
    assert started["environment"]["PATH"].startswith(f"{python.parent}:")
    assert is_running(started["pid"])
    assert is_running(started["worker"])
    del engine
    close_engine()
    assert eventually(lambda: not is_running(started["pid"]))
    assert eventually(lambda: not is_running(started["worker"]))  # a killed process goes a moment later


def test_the_server_says_how_long_its_context_is(tiny_model: Path, python: Path):
    assert Server(settings(python), Policy(), tiny_model).context == 1024


def test_an_adapter_is_served_merged_into_its_base(
    tiny_model: Path, tiny_policy: Policy, tmp_path: Path, python: Path
):
    model = load_trainable(tiny_model, tiny_policy, Lora(rank=2), dropout=0.0)
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    for file in tiny_model.glob("*token*"):
        (adapter / file.name).write_bytes(file.read_bytes())
    (adapter / "chat_template.jinja").write_text((tiny_model / "chat_template.jinja").read_text())
    serve = settings(python, *recorded(tmp_path))
    engine = open_engine(EngineSettings(kind="server", serve=serve), tiny_policy, adapter)
    assert answer(engine)
    started = record(tmp_path)
    assert {"config.json", "model.safetensors"} <= set(started["files"])
    assert "adapter_config.json" not in started["files"]
    assert not Path(started["arguments"][1]).exists()
    assert torch.is_grad_enabled()


def test_without_a_python_it_is_this_one(tiny_model: Path):
    with pytest.raises(ServerError, match=r"(?s)ended with 1.*No module named 'vllm'"):
        Server(Serve(), Policy(), tiny_model)


def test_a_python_that_is_not_there_is_refused(tiny_model: Path):
    with pytest.raises(RecipeError, match=r"engine\.serve\.python: /nowhere/python: no such program"):
        Server(settings(Path("/nowhere/python")), Policy(), tiny_model)


def test_a_server_that_ends_at_its_start_is_told_with_its_last_words(tiny_model: Path, python: Path):
    with pytest.raises(ServerError, match=r"ended with 1\. Its last words:\nno GPU here$"):
        Server(settings(python, "--die", "no GPU here"), Policy(), tiny_model)


def test_a_server_that_never_gets_healthy_is_ended(tiny_model: Path, tmp_path: Path, python: Path):
    serve = settings(python, "--never-healthy", *recorded(tmp_path), start_seconds=2)
    with pytest.raises(
        ServerError, match=r"(?s)after 2 s; raise engine\.serve\.start_seconds.*loading the model"
    ):
        Server(serve, Policy(), tiny_model)
    assert not is_running(record(tmp_path)["pid"])


def test_a_server_that_ends_in_the_middle_is_told_with_its_last_words(
    tiny_model: Path, tiny_policy: Policy, tmp_path: Path, python: Path
):
    serve = settings(python, *recorded(tmp_path), retries=1)
    engine = open_engine(EngineSettings(kind="server", serve=serve), tiny_policy, tiny_model)
    os.kill(record(tmp_path)["pid"], signal.SIGKILL)
    with pytest.raises(ServerError, match=r"(?s)the vLLM server ended with .*loading the model"):
        answer(engine)
    assert eventually(lambda: not is_running(record(tmp_path)["worker"]))


@pytest.mark.parametrize("how", ["killed", "done"])
def test_a_server_ends_with_the_process_that_serves(tiny_model: Path, tmp_path: Path, python: Path, how: str):
    last = "import time; time.sleep(60)" if how == "killed" else ""
    given = settings(python, *recorded(tmp_path)).model_dump_json()
    command = [sys.executable, "-c", START + last, given, str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"healthy\n"
        started = record(tmp_path)
        if how == "killed":
            assert is_running(started["pid"])
            process.kill()
        process.wait(10)
    assert eventually(lambda: not is_running(started["pid"]))
    assert eventually(lambda: not is_running(started["worker"]))


@pytest.mark.parametrize("how", ["pipe closed", "keeper terminated"])
def test_what_does_not_heed_a_termination_signal_is_killed(tmp_path: Path, how: str):
    file = tmp_path / "pid"
    run = f"import sys; sys.path.append({str(Path(keeper.__file__).parent)!r}); {IMPATIENT}"
    command = [sys.executable, "-I", "-S", "-c", run, "/bin/sh", "-c", DEAF.format(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert eventually(lambda: file.exists() and file.read_text().strip().isdecimal())
        pid = int(file.read_text())
        assert is_running(pid)
        if how == "pipe closed":
            process.stdin.close()
        else:
            process.terminate()
        process.wait(5)
        assert not is_running(pid)


def test_the_keeper_passes_on_how_the_command_ended():
    command = [*KEEPER, "/bin/sh", "-c", "exit 7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(5) == 7
