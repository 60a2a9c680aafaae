"""Templates that show what a run holds: everything passes `text.readable` and is then escaped."""

import jinja2
from markupsafe import Markup

from selfalign.report import text


def environment_of(package: str) -> jinja2.Environment:
    """Return an environment for the templates of a package, with the filters that all pages share."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        finalize=_readable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (text.duration, text.moment, text.plural, text.share, text.whole, text.words_of):
        environment.filters[function.__name__] = function
    return environment


def _readable(value: object) -> object:
    """Make whatever a template shows readable, except for what a template made or left out."""
    return value if isinstance(value, Markup | jinja2.Undefined) else text.readable(str(value))
