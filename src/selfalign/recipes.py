"""Reading recipes: YAML, then the preset under it, then `a.b=value` overrides on top, validated once."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from selfalign.config import EvaluationRecipe, Recipe, RLCDRecipe, SelfRewardingRecipe
from selfalign.errors import RecipeError

METHODS: dict[str, type[Recipe]] = {
    "self_rewarding": SelfRewardingRecipe,
    "rlcd": RLCDRecipe,
    "evaluation": EvaluationRecipe,
}
"""The recipe of each method."""


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: A YAML file whose top level is a mapping.
        overrides: `a.b=value` words; the value is YAML, so `[x, y]`, `null` and `1e-6` work.

    Raises:
        RecipeError: The file is missing or not YAML, or a key or value is wrong; the message names the
            key's path and, for an unknown key, the nearest known one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `selfalign init` writes one to start from") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a recipe file ({error})") from None
    return resolve_recipe(_parse(text, str(path)), overrides, where=str(path))


def resolve_recipe(own: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """Merge defaults, preset, recipe and overrides, later ones winning, and validate the result.

    Raises:
        RecipeError: As for `load_recipe`.
    """
    for word in overrides:
        own = _merge(own, _override(word))
    method = own.get("method", "self_rewarding")
    model = METHODS.get(method) if isinstance(method, str) else None
    if model is None:
        raise RecipeError(
            f"{where}:\n  method: {method!r} is not one of {', '.join(METHODS)}"
            f"{_did_you_mean(str(method), list(METHODS))}"
        )
    # The defaults are merged too: a section's default may differ from its model's, as dpo.train does.
    base = model.model_validate({"method": method}).model_dump(mode="json")
    preset = own.get("preset")
    if isinstance(preset, str):
        base = _merge(base, load_preset(method, preset))
    try:
        return model.model_validate(_merge(base, own))
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _explain(error, model))
        raise RecipeError(f"{where}:\n{lines}") from None


def load_preset(method: str, name: str) -> dict[str, Any]:
    """Return the plain mapping of a method's shipped preset.

    Raises:
        RecipeError: There is no preset of that name.
    """
    folder = resources.files("selfalign") / "presets" / method
    known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir())
    if name not in known:
        raise RecipeError(f"preset: {name!r} is not one of {', '.join(known)}{_did_you_mean(name, known)}")
    return _parse((folder / f"{name}.yaml").read_text(encoding="utf-8"), name)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    return TypeAdapter(Recipe).json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}


class _Loader(yaml.SafeLoader):
    """YAML that reads `1e-6` as a number, as every other language does, and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {repeated[0]!r} appears twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in entries if tag != "tag:yaml.org,2002:float"]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader subclass
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys, not a {type(value).__name__}")
    return value


def _override(word: str) -> dict[str, Any]:
    key, equals, value = word.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{word!r} is no override; write it as section.key=value")
    try:
        nested: Any = yaml.load(value, _Loader)  # noqa: S506 -- a SafeLoader subclass
    except yaml.YAMLError as error:
        raise RecipeError(f"{word!r}: the value is not valid YAML: {error}") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return base with over laid on it; mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _keys_at(model, path[:-1])
            yield f"{'.'.join(path)}: unknown key{_did_you_mean(path[-1], known)}"
        elif path and item["type"] == "value_error":
            yield f"{'.'.join(path)}: {message}"  # about keys that contradict each other: names them itself
        elif path:
            yield f"{'.'.join(path)}: {message} (got {json.dumps(item['input'], default=str)})"
        else:
            yield message


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None:
            return []
        inner = _section_of(field.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, UnionType):
        return next((found for arg in get_args(annotation) if (found := _section_of(arg))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known keys: {', '.join(known)}" if known else ""


def explain_recipe(method: str = "self_rewarding", preset: str | None = None) -> str:
    """Return a recipe as YAML text that shows every key, its default or preset value, and its meaning.

    Raises:
        RecipeError: There is no such method or preset.
    """
    recipe = resolve_recipe({"method": method, **({"preset": preset} if preset else {})})
    lines = [
        "# A selfalign recipe. A key that you leave out keeps the value shown here.",
        "# Run:   selfalign run THIS_FILE",
        "# Look:  selfalign run THIS_FILE --dry-run",
        *_explained(recipe, ""),
    ]
    return "\n".join(lines) + "\n"


def _explained(section: BaseModel, indent: str) -> Iterator[str]:
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        inner = _section_of(field.annotation)
        meaning = field.description or (inner and inner.__doc__) or ""
        yield from (f"{indent}# {line}" for line in meaning.splitlines())
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _explained(value, indent + "  ")
            continue
        if inner is not None:
            yield from (f"{indent}# {line}" for line in _as_section(inner, "As a section"))
        yield f"{indent}{name}: {_flow(plain[name])}"


def _as_section(section: type[BaseModel], heading: str) -> Iterator[str]:
    """Yield a section on a line, then those within it that are left out; what has no default is <named>."""
    needed = {key: f"<{key}>" for key, part in section.model_fields.items() if part.is_required()}
    yield f"{heading}: {_flow(section(**needed).model_dump(mode='json'))}"
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None and field.default is None:
            yield from _as_section(inner, f"  {name} as a section")


def _flow(value: Any) -> str:
    """Return a JSON value as YAML on one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=float("inf")
    )
    return text.removesuffix("\n").removesuffix("...").strip()
