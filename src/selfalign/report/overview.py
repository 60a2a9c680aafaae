"""What was run, on which machine, and what it took in time and tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfalign import __version__
from selfalign.report.read import Manifest
from selfalign.report.text import duration, moment, plural, share, whole, words_of

_KINDS = {
    "generating": ("prompts", "candidates", "completions", "answers", "outputs"),
    "judging": ("judgments", "attacks"),
    "training": ("reference", "train"),
    "measuring": ("evaluate", "gate", "strength", "preference"),
    "data and pairs": ("read", "contrasts", "examples", "pairs"),
}
_GENERATED = ("candidates", "completions", "judgments", "attacks", "evaluate")
"""Stages whose `tokens` a model wrote."""


@dataclass(frozen=True)
class Cost:
    """What a stage, or stages of one kind, took."""

    name: str
    seconds: float
    part: str
    """Share of the time of all."""
    tokens: int | None
    """Written by a model or trained on; `None` where none were, or they were not counted."""
    made: str = ""
    finished: str = ""


@dataclass(frozen=True)
class Overview:
    """What stands above everything else, and the details that stand at the end."""

    headline: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    details: tuple[tuple[str, str], ...] = ()
    """Seed, hashes and versions."""


def overview(manifest: Mapping[str, Any], stages: Mapping[str, Manifest]) -> Overview:
    """Return what the manifest of a run and its stages say; an empty manifest says nothing."""
    if not manifest:
        return Overview()
    first, last = manifest["invocations"][0], manifest["invocations"][-1]
    headline = (
        f"{words_of(manifest['method'])} from {manifest['model']['name']}",
        f"begun {moment(first['started'])}",
        f"selfalign {last['selfalign']}",
    )
    facts = (
        ("machine", _machine(last)),
        ("time", _time(stages, len(manifest["invocations"]))),
        ("tokens", _tokens(stages)),
    )
    return Overview(headline, tuple(fact for fact in facts if fact[1]), tuple(_details(manifest, last)))


def other_version(manifest: Mapping[str, Any]) -> str | None:
    """Say that another version made the run, which may be why something can't be read; or `None`."""
    made = manifest["invocations"][-1]["selfalign"] if manifest else __version__
    if made == __version__:
        return None
    return f"selfalign {made} made the run and {__version__} this report, which may be why"


def costs(stages: Mapping[str, Manifest]) -> list[Cost]:
    """Return what each finished stage took, in order."""
    total = sum(made["seconds"] for made in stages.values())
    return [
        Cost(
            name,
            made["seconds"],
            _part(made["seconds"], total),
            _tokens_of(name, made),
            _made(made["figures"]),
            moment(made["finished"]),
        )
        for name, made in stages.items()
    ]


def costs_by_kind(stages: Mapping[str, Manifest]) -> list[Cost]:
    """Return what the stages of each kind took together, the longest first."""
    total = sum(made["seconds"] for made in stages.values())
    found = []
    for kind in (*_KINDS, "benchmarks"):
        its = {name: made for name, made in stages.items() if kind_of(name) == kind}
        if its:
            seconds = sum(made["seconds"] for made in its.values())
            counted = [n for name, made in its.items() if (n := _tokens_of(name, made)) is not None]
            tokens = sum(counted) if counted else None
            found.append(Cost(kind, seconds, _part(seconds, total), tokens, plural(len(its), "stage")))
    return sorted(found, key=lambda cost: -cost.seconds)


def kind_of(stage: str) -> str:
    """Return what kind of work a stage does; the stages of an evaluation are its benchmarks."""
    name = stage.rpartition("/")[2]
    return next((kind for kind, names in _KINDS.items() if name in names), "benchmarks")


def _tokens_of(name: str, made: Manifest) -> int | None:
    """Return the tokens that a model wrote or was trained on in a stage."""
    counted = "tokens" if name.rpartition("/")[2] in _GENERATED else "training_tokens"
    tokens: int | None = made["figures"].get(counted)
    return tokens


def _part(seconds: float, total: float) -> str:
    return share(seconds / total) if total else ""


def _made(figures: Mapping[str, Any]) -> str:
    if "rows" in figures:
        return plural(figures["rows"], "row")
    return plural(figures["steps"], "step") if "steps" in figures else ""


def _machine(invocation: Mapping[str, Any]) -> str:
    known = invocation.get("machine")
    if known is None:
        return str(invocation.get("platform") or "")
    parts = [f"{known['processor']}, {plural(known['cores'], 'core')}, {known['memory'] / 2**30:.1f} GiB"]
    return "; ".join((*parts, *_counted(known["accelerators"]), *([invocation["platform"]])))


def _counted(names: Sequence[str]) -> list[str]:
    return [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]


def _time(stages: Mapping[str, Manifest], starts: int) -> str:
    took = duration(sum(made["seconds"] for made in stages.values()))
    again = f", started {starts} times" if starts > 1 else ""
    return f"{took} in {plural(len(stages), 'finished stage')}{again}"


def _tokens(stages: Mapping[str, Manifest]) -> str:
    """Return the tokens written and trained on, as far as the stages counted them."""
    written = [
        m["figures"].get("tokens") or 0 for n, m in stages.items() if n.rpartition("/")[2] in _GENERATED
    ]
    trained = [m["figures"].get("training_tokens") or 0 for m in stages.values()]
    said = [(sum(written), "written by models"), (sum(trained), "trained on")]
    return ", ".join(f"{whole(number)} {what}" for number, what in said if number)


def _details(manifest: Mapping[str, Any], invocation: Mapping[str, Any]) -> list[tuple[str, str]]:
    model = manifest["model"]
    return [
        ("seed", str(manifest["seed"])),
        ("model", f"{model['name']}, fingerprint {model['fingerprint']}"),
        ("chat template", str(manifest["chat_template"] or "none")),
        *_data(manifest["data"]),
        *(
            (words_of(key), moment(value) if key == "started" else str(value))
            for key, value in invocation.items()
            if value and key != "machine"
        ),
    ]


def _data(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the contents of the data, by what it is for."""
    paths = {
        "ift": [data["ift"]["path"]] if "ift" in data else [],
        "ranked": data.get("ranked", {}).get("paths", []),
        "prompt": data.get("paths", []),
    }
    return [
        (f"{kind} data", f"content {content}") for kind, contents in paths.items() for content in contents
    ]
