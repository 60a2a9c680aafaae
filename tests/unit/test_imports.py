import ast
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "selfalign"
HEAVY = {"torch", "transformers", "peft", "datasets", "ray", "vllm"}

# Every room, from the ground up, and the rooms that it may import, wherever in its files it does so.
PURE = {"records", "errors", "dedup", "judging"}
SETTINGS = {"config", "records", "errors", "seeds"}
MAY_IMPORT = {
    "records": set(),
    "errors": set(),
    "seeds": set(),
    "dedup": {"records", "errors"},
    "judging": {"records", "errors"},
    "comparing": {"records", "errors", "judging"},
    "pairs": PURE,
    "eft": PURE,
    "balancing": PURE,
    "rlcd": PURE,
    "prompting": PURE,
    "data": PURE,
    "evaluation": PURE | {"comparing", "data"},
    "harness": PURE | {"data", "evaluation", "runs"},
    "config": PURE | {"pairs", "eft", "rlcd", "data"},
    "recipes": PURE | {"pairs", "eft", "rlcd", "data", "config"},
    "runs": SETTINGS,
    "models": SETTINGS | {"runs"},
    "engines": SETTINGS | {"runs", "models"},
    "training": SETTINGS | {"runs", "models"},
    "stages": PURE
    | SETTINGS
    | {"pairs", "eft", "rlcd", "prompting", "data", "evaluation", "runs", "models", "engines", "training"}
    | {"comparing", "harness", "balancing"},
    "report": SETTINGS | {"runs", "evaluation", "judging", "pairs", "rlcd", "prompting"},
    "export": SETTINGS | {"runs", "models", "report", "evaluation"},
    "methods": SETTINGS | {"runs", "models", "engines", "training", "stages", "report"},
    "ui": SETTINGS | {"runs", "models", "engines", "report", "evaluation"},
    "cli": SETTINGS | {"recipes", "runs", "models", "methods", "report", "evaluation", "export", "ui"},
}


def room_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(file):
    """Every module that a file imports at any depth, functions and type checking included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            if node.module == "selfalign":
                yield from (f"selfalign.{alias.name}" for alias in node.names)
            else:
                yield node.module


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = {file: set(imported_modules(file)) for file in FILES}


def test_every_room_has_its_place_in_the_table():
    assert {room_of(file) for file in FILES} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room):
    found = defaultdict(set)
    for file in FILES:
        if room_of(file) == room:
            for name in IMPORTS[file]:
                parts = name.split(".")
                if parts[0] == "selfalign" and parts[1] != "__version__":
                    found[parts[1]].add(file.name)
    found.pop(room, None)
    assert {name: files for name, files in found.items() if name not in MAY_IMPORT[room]} == {}


def test_the_table_has_no_circle():
    placed = set()
    while placed != set(MAY_IMPORT):
        ready = {room for room, below in MAY_IMPORT.items() if below <= placed}
        assert ready - placed, f"in a circle: {set(MAY_IMPORT) - placed}"
        placed |= ready


@pytest.mark.parametrize(
    "room", ["report", "cli", "runs", "config", "recipes", "methods", "evaluation", "export"]
)
def test_rooms_without_models_import_no_heavy_library_even_when_used(room):
    heavy = {
        (file.name, name)
        for file in FILES
        if room_of(file) == room
        for name in IMPORTS[file]
        if name.split(".")[0] in HEAVY
    }
    assert heavy == set()


def loaded_after(code, *words):
    """Run Python code in a process of its own; return the modules that it loaded."""
    program = (
        f"import atexit, json, sys\nsys.argv = {['selfalign', *words]!r}\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n" + code
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("module", ["cli.main", "recipes", "methods.execute"])
def test_importing_loads_no_heavy_library(module):
    loaded = loaded_after(f"import selfalign.{module}")
    assert f"selfalign.{module}" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["ui", "--help"], ["validate", "quickstart"], ["schema"]]
)
def test_small_commands_load_no_heavy_library(words):
    words = [str(ROOT / "recipes" / "quickstart.yaml") if word == "quickstart" else word for word in words]
    loaded = loaded_after("from selfalign.cli.main import main\nmain()", *words)
    assert "selfalign.cli.main" in loaded
    assert loaded & HEAVY == set()


def test_planning_loads_no_heavy_library(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    code = """
import sys
from pathlib import Path
from selfalign.methods.execute import plan
from selfalign.recipes import load_recipe
assert plan(load_recipe(Path(sys.argv[1]), sys.argv[2:]), Path("run"))
"""
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    loaded = loaded_after(code, recipe, f"policy.model={tmp_path}")
    assert "selfalign.methods.execute" in loaded
    assert loaded & HEAVY == set()
