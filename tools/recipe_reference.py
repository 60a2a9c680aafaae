"""Pages that explain every key of a recipe, made from the recipe's own models."""

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, get_args

from pydantic import BaseModel

from selfalign.recipes import METHODS, resolve_recipe

TITLES = {
    "self_rewarding": "Recipe: self-rewarding",
    "rlcd": "Recipe: RLCD by system message",
    "evaluation": "Recipe: evaluation",
}


def reference_page(method: str) -> str:
    """Return the Markdown page of a method: a table for each section of its recipe.

    A key's row holds its name, its type, its default with what presets set in its place, and its meaning.
    A section that is off by default is shown with the values that it has once it is turned on.
    """
    recipe = resolve_recipe({"method": method})
    presets = {name: resolve_recipe({"method": method, "preset": name}) for name in _presets(method)}
    named = ", ".join(f"`{name}`" for name in presets)
    lines = [
        f"# {TITLES[method]}",
        "",
        f"`method: {method}`. A key that a recipe leaves out has the default shown here, or what its "
        f"`preset` sets: {named}. Any key can be given on the command line too: `section.key=value`.",
        "",
        *_section(METHODS[method], "", recipe, presets),
    ]
    return "\n".join(lines) + "\n"


def _presets(method: str) -> list[str]:
    files = (resources.files("selfalign") / "presets" / method).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files)


def _section(model: type[BaseModel], path: str, value: Any, presets: dict[str, Any]) -> Iterator[str]:
    """Yield the table of a section and then those of the sections within it.

    Args:
        model: The section.
        path: Its keys, joined by dots; empty at the top.
        value: The section by default; `None` where it is off.
        presets: The section in each preset; `None` where it is off.
    """
    schema = model.model_json_schema()
    inner: list[tuple[str, type[BaseModel]]] = []
    yield from ('<div class="keys" markdown>', "")
    yield from ("| key | type | default | meaning |", "| --- | --- | --- | --- |")
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        key = f"{path}.{name}" if path else name
        if section is not None:
            inner.append((name, section))
        if section is not None and isinstance(getattr(value, name, None), BaseModel):
            continue  # its own table says all of it
        default = field.get_default(call_default_factory=True) if value is None else getattr(value, name)
        changed = {
            preset: getattr(given, name)
            for preset, given in presets.items()
            if given is not None and key != "preset"
        }
        meaning = field.description or (section is not None and section.__doc__) or ""
        cells = [
            f"`{key}`",
            _kind(schema["properties"][name], schema.get("$defs", {})),
            "needed" if field.is_required() and value is None else _default(default, changed),
            _cell(meaning),
        ]
        yield f"| {' | '.join(cells)} |"
    yield from ("", "</div>")
    for name, section in inner:
        key = f"{path}.{name}" if path else name
        below = getattr(value, name, None)
        about = model.model_fields[name].description or section.__doc__ or ""
        if not isinstance(below, BaseModel):
            about += " Off by default: the values are those it has once it is on."
        given = {preset: getattr(recipe, name, None) for preset, recipe in presets.items()}
        yield from ("", f"## {key}", "", _cell(about), "")
        yield from _section(section, key, below, given)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) or (annotation,)
    found = (option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return next(found, None)


def _default(value: Any, changed: dict[str, Any]) -> str:
    shown = [_value(value)]
    shown += [f"{preset}: {_value(other)}" for preset, other in changed.items() if other != value]
    return "<br>".join(shown)


def _value(value: Any) -> str:
    plain = value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else value
    text = plain if isinstance(plain, str) and plain else json.dumps(plain, ensure_ascii=False)
    return f"`{text}`"


def _kind(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return a JSON Schema in words."""
    if "$ref" in schema:
        return _kind(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(_kind(option, definitions) for option in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{option}`" for option in schema["enum"])
    match schema["type"]:
        case "array":
            return f"list of {_kind(schema['items'], definitions)}"
        case "object" if "properties" in schema:
            return "section"
        case "object":
            keys = _kind(schema["propertyNames"], definitions) if "propertyNames" in schema else "text"
            return f"mapping of {keys} to {_kind(schema['additionalProperties'], definitions)}"
        case "integer" | "number" as name:
            return " ".join(["whole number" if name == "integer" else "number", *_bounds(schema)])
        case other:
            return {"string": "text", "boolean": "`true` or `false`", "null": "`null`"}[other]


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    yield from (f"{sign} {schema[bound]:g}" for bound, sign in words.items() if bound in schema)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
