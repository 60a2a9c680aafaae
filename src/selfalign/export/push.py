"""Putting an exported directory on the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfalign.errors import HubError, RunError

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Upload:
    """What would go to the hub."""

    directory: Path
    kind: Kind
    files: dict[str, int]
    """Bytes of each file, by its path in the directory."""


def upload_of(directory: Path) -> Upload:
    """Return what a push of an exported directory would send; asks nobody.

    Raises:
        RunError: It is no directory that `selfalign export` wrote: the card, or what it is about, is missing.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths}
    model = "config.json" in files and any(name.endswith(".safetensors") for name in files)
    rows = any(name.startswith(("train.", "test.")) for name in files)
    if "README.md" not in files or not (model or rows):
        raise RunError(
            f"{directory}: no exported model or data set; `selfalign export RUN` writes one, with its card"
        )
    return Upload(directory, "model" if model else "dataset", files)


def push(upload: Upload, repository: str, *, public: bool = False) -> str:
    """Send a directory to a repository of the hub, made if need be, in one commit.

    The token is the hub's own: `hf auth login`, or HF_TOKEN.

    Args:
        upload: What to send.
        repository: Its id, `owner/name`.
        public: Whether a new repository can be seen by all; one that exists stays as it is.

    Returns:
        The address of the commit.

    Raises:
        HubError: The hub refuses, or can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repository, repo_type=upload.kind, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            repo_type=upload.kind,
            folder_path=upload.directory,
            commit_message=f"Add {upload.directory.resolve().name}, exported by selfalign",
        )
    except HFValidationError as error:
        raise HubError(f"{repository}: no id of a repository: {error}; write owner/name") from None
    except LocalTokenNotFoundError:
        raise HubError("the hub needs a token; run `hf auth login`, or set HF_TOKEN") from None
    except (HfHubHTTPError, OSError) as error:
        raise HubError(
            f"{repository}: the hub refused or can't be reached ({error}); check the token "
            "(`hf auth whoami`), the name and the network, then give the same command again"
        ) from error
    return str(commit.commit_url)
