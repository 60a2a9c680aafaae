"""Making HTML: everything of a run passes `text.readable` and is then escaped, wherever it is shown."""

from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup, escape

from selfalign.report import text
from selfalign.report.templating import environment_of


def render(template: str, **shown: Any) -> str:
    """Return a page, or a part of one."""
    return _environment().get_template(template).render(shown)


def whole(value: str) -> str:
    """Return all of a text with nothing hidden in it, however long it is."""
    value = value.replace("\r\n", "\n")
    return "".join(
        text.readable(value[begin : begin + text.LIMIT]) for begin in range(0, len(value), text.LIMIT)
    )


def address(*parts: str, **query: object) -> Markup:
    """Return the address of a page; what is `None` or empty is left out of the query."""
    path = "".join(f"/{quote(part, safe='')}" for part in parts) or "/"
    asked = {name: str(value) for name, value in query.items() if value not in (None, "")}
    return Markup(escape(path + (f"?{urlencode(asked)}" if asked else "")))  # noqa: S704 -- it is escaped


@cache
def _environment() -> jinja2.Environment:
    environment = environment_of("selfalign.ui")
    environment.filters |= {"number": _number, "exact": escape}
    environment.globals |= {"address": address, "LIMIT": text.LIMIT}
    return environment


def _number(value: float | None) -> str:
    """Return a number to two places, whole ones without; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.2f}".removesuffix(".00").replace("-", "−")
