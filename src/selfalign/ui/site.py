"""What all addresses of the page share: the directory of runs, the token, and making an answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse

from selfalign.ui.chat import Chat
from selfalign.ui.pages import render
from selfalign.ui.state import find_run


@dataclass(frozen=True)
class Site:
    """One page that is served."""

    directory: Path
    """Of the run directories, resolved."""
    token: str
    """What a page has to say to write or to have a model answer."""
    chat: Chat


def site_of(request: Request) -> Site:
    """Return the site that a request came to."""
    site: Site = request.app.state.site
    return site


def run_of(request: Request, name: str) -> Path:
    """Return the run directory that an address names.

    Raises:
        RunError: There is no such run.
    """
    return find_run(site_of(request).directory, name)


RunRoot = Annotated[Path, Depends(run_of)]


def page(request: Request, template: str, *, status: int = 200, **shown: Any) -> HTMLResponse:
    """Answer with a page."""
    return HTMLResponse(render(template, token=site_of(request).token, **shown), status_code=status)


def run_page(request: Request, root: Path, template: str, here: str, **shown: Any) -> HTMLResponse:
    """Answer with a page of a run.

    Args:
        request: As it came.
        root: The run directory.
        template: Of the page.
        here: The part of the run that it is, as the navigation calls it.
        shown: What the template shows.
    """
    title = f"{root.name}: {here}" if here else root.name
    return page(request, template, title=title, name=root.name, here=here, run_path=str(root), **shown)
