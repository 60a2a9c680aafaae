import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
import yaml

from selfalign.cli.main import app
from selfalign.recipes import METHODS, load_recipe, resolve_recipe

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tools"))

from recipe_reference import TITLES, reference_page  # noqa: E402

PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "LOG.md"]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
COMMANDS = typer.main.get_command(app)


def blocks(text, *languages):
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """The words of every selfalign command of a page, in blocks and in the running text (not a bare verb)."""
    lines = [
        line for block in blocks(text, "sh", "shell") for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"`(selfalign [a-z]+ [^`]+)`", text)
    for line in lines:
        words = shlex.split(re.sub(r"[&>|;].*", "", line), comments=True)
        if words and Path(words[0]).name == "selfalign":
            yield words[1:]


def parsed(words):
    """The options of a command line, as the command itself reads them; nothing is run."""
    group = COMMANDS.make_context("selfalign", list(words))
    name, command, rest = COMMANDS.resolve_command(group, [*group._protected_args, *group.args])
    return name, command.make_context(name, rest, parent=group).params


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_line_of_a_page_parses(page):
    for words in commands(page.read_text(encoding="utf-8")):
        name, given = parsed(words)
        overrides = given.get("overrides") or []
        if name == "run" and "KEY=VALUE" not in overrides:
            recipe = ROOT / given["recipe"]
            if recipe.is_file():
                load_recipe(recipe, overrides)
            else:
                resolve_recipe({}, overrides)


def test_a_command_with_an_unknown_option_or_key_would_be_found():
    [words] = commands("```sh\nselfalign run recipes/quickstart.yaml --dry\n```\n")
    with pytest.raises(Exception, match="No such option: --dry"):
        parsed(words)
    [words] = commands("so `selfalign eval doctor --suite rlcd` says")
    assert parsed(words)[1]["suite"] == "rlcd"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_yaml_block_of_a_page_is_a_recipe_or_a_part_of_one(page):
    for block in blocks(page.read_text(encoding="utf-8"), "yaml"):
        resolve_recipe(yaml.safe_load(block), where=str(page))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_that_a_page_links_to_is_there(page):
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    generated = {DOCS / "reference" / f"{name}.md" for name in (*METHODS, "command_line")}
    missing = {
        target
        for target in targets
        if not (page.parent / target).exists() and (page.parent / target).resolve() not in generated
    }
    assert missing == set()


def keys(schema, definitions, prefix=""):
    """Every key of a recipe by its JSON Schema, those of sections that are off too."""
    for name, field in schema["properties"].items():
        yield prefix + name
        for option in (field, *field.get("anyOf", ())):
            section = definitions.get(option.get("$ref", "").rpartition("/")[2], {})
            if "properties" in section:
                yield from keys(section, definitions, f"{prefix}{name}.")


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_has_every_key_with_its_meaning(method):
    page = reference_page(method)
    expected = set(_all_keys(METHODS[method]))
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", page, re.MULTILINE))
    headings = set(re.findall(r"^## ([\w.]+)$", page, re.MULTILINE))
    assert expected == set(rows) | headings
    assert [key for key, cells in rows.items() if re.search(r"\|\s*$", cells)] == []


def test_the_reference_shows_the_default_of_the_place_and_what_presets_set():
    page = reference_page("self_rewarding")
    assert re.search(r"^\| `dpo.train.learning_rate` \| number > 0 \| `1e-06`", page, re.MULTILINE)
    assert re.search(r"^\| `sft.learning_rate` .*paper: `5.5e-06`", page, re.MULTILINE)
    assert re.search(r"^\| `judge.endpoint.url` \| text \| needed \|", page, re.MULTILINE)


def test_every_method_has_a_reference_page():
    assert set(TITLES) == set(METHODS)


def messages():
    """Every text of the source, with … for what is filled in."""
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "…".join(part.value for part in node.values if isinstance(part, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_that_troubleshooting_quotes_is_one_of_ours():
    text = "\n".join(messages())
    rows = re.findall(
        r"^\| (.+?) \| ", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    quoted = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 30
    pieces = [piece.strip(" :;.,()") for quote in quoted for piece in quote.split("…")]
    assert [piece for piece in pieces if len(piece) > 3 and piece not in text] == []


@pytest.mark.parametrize("page", PAGES[:-1], ids=NAMES[:-1])  # the log tells of keys that were
def test_every_recipe_key_that_a_page_names_is_one(page):
    known = {key for method in METHODS.values() for key in _all_keys(method)}
    tops = {key for key in known if "." not in key}
    code = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?=[=:`])", page.read_text(encoding="utf-8"))
    files = (".py", ".json", ".jsonl", ".md", ".html", ".yaml", ".toml", ".jinja")
    named = {key for key in code if key.split(".")[0] in tops and not key.endswith(files)}
    assert named - known == set()


def _all_keys(method):
    schema = method.model_json_schema()
    return keys(schema, schema["$defs"])
