"""Who may ask the page for what: this machine's browser, under this page's own address, and nobody else."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_HEADER = "x-selfalign-token"  # noqa: S105 -- its name
MOST_BYTES = 4 * 1024 * 1024
"""Of what a page may send."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
)
"""Of a report, which is one file with its style in it and has no script."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses what does not come from the page itself, and says on every answer what it may do in a browser.

    A page of another origin can send requests, but it can't read the token, nor choose `Host` or `Origin`.
    A name that another server points to this machine comes with that name as `Host`.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        """Take what answers, the port that it is asked at, and the token of its pages."""
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("localhost", "127.0.0.1", "[::1]")}
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with an empty answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        refused = self._refusal(scope["method"], headers)
        app: ASGIApp = self._app if refused is None else Response(status_code=refused)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    own.setdefault(name, value)
            await send(message)

        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> int | None:
        """Return the status that a request is refused with, `None` if it may pass."""
        if headers.getlist("host") not in [[host] for host in self._hosts]:
            return 421
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return 405
        origin = urlsplit(headers.get("origin", ""))
        own = origin.scheme == "http" and origin.netloc == headers["host"]
        if not own or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return 403
        if not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            return 403
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return 413
        return None if headers.get("content-type", "").startswith("application/json") else 415
