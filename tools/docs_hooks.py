"""What the documentation site needs beside the pages in docs/: generated pages, and files of the repository.

A page may link to any file of the repository, as it would be read there; the site gets a page of that file.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from recipe_reference import TITLES, reference_page
from typer.cli import get_docs_for_click

from selfalign.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
IN_NAV = ("CHANGELOG.md", "CONTRIBUTING.md", "LOG.md")
"""Files of the repository that have a place in the navigation."""
_FOLDER = "repository/"
_LINK = re.compile(r"(?<=\]\()(?!\w+:)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the reference of recipes and commands, and a page of every file that a page links to."""
    for method in TITLES:
        _add(files, config, f"reference/{method}.md", reference_page(method))
    _add(files, config, "reference/command_line.md", command_line_page())
    known = {_repository_path(file.src_uri) for file in files.documentation_pages()}
    waiting = [(path, (ROOT / path).read_text(encoding="utf-8")) for path in known if (ROOT / path).is_file()]
    for path in IN_NAV:
        known.add(path)
        waiting.append((path, _add_repository_file(files, config, path)))
    while waiting:
        path, text = waiting.pop()
        for found in _LINK.finditer(text) if path.endswith(".md") else ():
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found["target"]))
            if target not in known and not target.startswith("docs/"):
                known.add(target)
                waiting.append((target, _add_repository_file(files, config, target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository at their pages."""
    del config, files
    here = _repository_path(page.file.src_uri)
    if not here.endswith(".md"):
        return markdown

    def linked(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), found["target"]))
        to = posixpath.relpath(_page_path(target), posixpath.dirname(page.file.src_uri))
        return to + (found["anchor"] or "")

    return _LINK.sub(linked, markdown)


def command_line_page() -> str:
    """Return the Markdown page of the command line, as typer writes it."""
    command = typer.main.get_command(app)
    context: Any = typer.Context(command, info_name="selfalign")
    return get_docs_for_click(obj=command, ctx=context, name="selfalign", title="Command line")


def _add(files: Files, config: MkDocsConfig, path: str, text: str) -> None:
    files.append(File.generated(config, path, content=text))


def _add_repository_file(files: Files, config: MkDocsConfig, path: str) -> str:
    """Add the page of a file and return the file's text."""
    file = ROOT / path
    if not file.is_file():
        raise PluginError(f"a page links to {path}, which is no file of the repository")
    text = file.read_text(encoding="utf-8")
    shown = text if path.endswith(".md") else _listing(path, text)
    inclusion = InclusionLevel.INCLUDED if path in IN_NAV else InclusionLevel.NOT_IN_NAV
    files.append(File.generated(config, _page_path(path), content=shown, inclusion=inclusion))
    return text


def _listing(path: str, text: str) -> str:
    language = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(os.path.splitext(path)[1], "text")  # noqa: PTH122
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n~~~~~~ {language}\n{text}\n~~~~~~\n"


def _repository_path(page: str) -> str:
    """Return where the text of a page lies in the repository."""
    if page.startswith(_FOLDER):
        path = page.removeprefix(_FOLDER)
        return path if (ROOT / path).is_file() else path.removesuffix(".md")
    return f"docs/{page}"


def _page_path(path: str) -> str:
    """Return the page of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return _FOLDER + (path if path.endswith(".md") else f"{path}.md")
