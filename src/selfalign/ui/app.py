"""The page as a whole. Every answer passes `Guard`; `votes.jsonl` of a run is all that is ever written."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from selfalign.errors import RunError, SelfAlignError
from selfalign.ui import browsing, overview, talking, voting
from selfalign.ui.chat import Chat
from selfalign.ui.guard import Guard
from selfalign.ui.site import Site, page

_STATIC = {
    "report.css": ("selfalign.report", "templates/report.css", "text/css"),
    "ui.css": ("selfalign.ui", "static/ui.css", "text/css"),
    "icon.svg": ("selfalign.ui", "static/icon.svg", "image/svg+xml"),
    "ui.js": ("selfalign.ui", "static/ui.js", "text/javascript"),
}


def create_app(directory: Path, port: int) -> ASGIApp:
    """Return the page of a directory of runs.

    Args:
        directory: Whose run directories are shown.
        port: At which the page is asked for; requests for another one are refused.
    """
    site = Site(directory.resolve(), secrets.token_urlsafe(32), Chat())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        site.chat.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.site = site
    app.add_api_route("/static/{file}", static)
    for part in (overview, talking, voting, browsing):
        app.include_router(part.router)
    app.add_exception_handler(SelfAlignError, _explain)
    app.add_exception_handler(ValidationError, _explain)
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_exception_handler(HTTPException, _explain)
    return Guard(app, port, site.token)


def static(file: str) -> Response:
    """Return a style sheet or the script.

    Raises:
        HTTPException: There is no such file.
    """
    if file not in _STATIC:
        raise HTTPException(404)
    package, path, media_type = _STATIC[file]
    text = (resources.files(package) / path).read_text(encoding="utf-8")
    return Response(text, media_type=media_type)


def _explain(request: Request, error: Exception) -> Response:
    """Say what went wrong: as JSON where a script asked, as a page where a person did."""
    match error:
        case HTTPException():
            status, message = error.status_code, "There is no such page."
        case RequestValidationError():
            problem = error.errors()[0]
            status, message = 422, f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        case ValidationError():
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            status, message = 409, f"{where}: {problem['msg']}; the run is damaged, or of another version"
        case RunError():
            status, message = 404 if request.method == "GET" else 409, str(error)
        case _:
            status, message = 409, str(error)
    if request.method == "POST":
        return JSONResponse({"error": message}, status_code=status)
    return page(request, "error.jinja", status=status, title=f"Not shown ({status})", message=message)
