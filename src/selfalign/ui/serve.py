"""Serving the page on this machine alone."""

import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn

from selfalign.errors import RunError
from selfalign.ui.app import create_app

TRIES = 20
"""Ports that are tried, from the one that was asked for."""


def serve(directory: Path, port: int, *, browser: bool, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        directory: Whose run directories are shown.
        port: To listen at; where it is taken, the next free one.
        browser: Whether to open a browser.
        say: Tells the user where the page is.

    Raises:
        RunError: There is no such directory, it is itself a run, or no port is free.
    """
    if not directory.is_dir():
        raise RunError(f"{directory}: no such directory; give the one that holds your runs")
    if (directory / "recipe.resolved.json").is_file():
        raise RunError(
            f"{directory}: is a run itself; give the directory that holds it: {directory.resolve().parent}"
        )
    listening = listen(port)
    taken = listening.getsockname()[1]
    if taken != port:
        say(f"port {port} is taken")
    url = f"http://127.0.0.1:{taken}/"
    say(f"runs in {directory}: {url}  (Ctrl-C ends it)")
    config = uvicorn.Config(
        create_app(directory, taken), log_level="warning", server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    if browser:
        webbrowser.open(url)  # the socket listens already: the page comes as soon as the server runs
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback, at the port or the first free one of the next.

    Raises:
        RunError: None of them is free.
    """
    for number in range(port, min(port + TRIES, 65536)):
        tried = socket.socket()
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", number))
            tried.listen()
        except OSError:
            tried.close()
            continue
        return tried
    raise RunError(f"no port from {port} to {port + TRIES - 1} is free here; give another --port")
