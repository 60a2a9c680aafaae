from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from selfalign.errors import HubError, RunError
from selfalign.export import push, upload_of


@pytest.fixture
def exported(tmp_path):
    """A directory as an export of rows leaves it."""
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "README.md").write_text("---\n---\n")
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """A hub that remembers what it was asked; `refuse` makes it refuse."""
    asked = SimpleNamespace(calls=[], refuse=None)

    class Api:
        def create_repo(self, repository, **options):
            if asked.refuse is not None:
                raise asked.refuse
            asked.calls.append(("create", repository, options))

        def upload_folder(self, **options):
            asked.calls.append(("upload", options.pop("repo_id"), options))
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return asked


def test_rows_and_models_are_told_apart(exported):
    upload = upload_of(exported)
    assert (upload.kind, upload.files) == ("dataset", {"README.md": 8, "train.jsonl": 3})
    for name in ("config.json", "model.safetensors"):
        (exported / name).touch()
    assert upload_of(exported).kind == "model"


@pytest.mark.parametrize("missing", ["README.md", "train.jsonl"])
def test_what_no_export_wrote_is_refused(exported, missing):
    (exported / missing).unlink()
    with pytest.raises(RunError, match="selfalign export"):
        upload_of(exported)


@pytest.mark.parametrize("public", [True, False])
def test_a_push_makes_the_repository_and_sends_the_directory(exported, hub, public):
    assert push(upload_of(exported), "me/pairs", public=public) == "https://hub/commit"
    (create, repository, options), (upload, to, sent) = hub.calls
    assert (create, repository, upload, to) == ("create", "me/pairs", "upload", "me/pairs")
    assert options == {"repo_type": "dataset", "private": not public, "exist_ok": True}
    assert (sent["repo_type"], sent["folder_path"]) == ("dataset", exported)


def test_a_refusal_names_the_repository_and_the_way_out(exported, hub):
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    hub.refuse = HfHubHTTPError("403 Forbidden", response=response)
    with pytest.raises(HubError, match=r"me/pairs: .*403 Forbidden.*hf auth whoami"):
        push(upload_of(exported), "me/pairs")


def test_a_wrong_name_is_refused_by_the_hub_library(exported):
    """The real library checks the name before it asks anybody."""
    with pytest.raises(HubError, match="owner/name"):
        push(upload_of(exported), "a/b/c")
