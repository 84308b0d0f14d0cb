"""The hub and GitHub: fetched once, kept, and every fault one clear line within seconds."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import constants
from loopback import COMMIT, Repositories, serving

from kvcore import remote
from kvcore.remote import find_github_files, find_snapshot
from kvcore.schema import SettingError

ABSENT = "http://127.0.0.1:9"  # the port of a service that nobody runs


pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    """A hub with one model and one dataset, an empty cache and no token."""
    for name in ("models/owner/model", "datasets/owner/data"):
        folder = tmp_path / "served" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "picture.png").write_text("a picture")
        (folder / "part").mkdir()
        (folder / "part" / "rows.json").write_text("[]")
    served = ("models/owner/model", "datasets/owner/data")
    repositories = Repositories({name: tmp_path / "served" / name for name in served})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(remote, "get_token", lambda: None)
    with serving(repositories) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template[1] + template[2])
        yield repositories


def find(revision: str = COMMIT, repository: str = "owner/model", *, gated: bool = False) -> remote.Snapshot:
    return find_snapshot("model", repository, revision, ["*.json"], gated=gated)


def refusal(revision: str = COMMIT, repository: str = "owner/model", *, gated: bool = False) -> str:
    with pytest.raises(SettingError) as caught:
        find(revision, repository, gated=gated)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_wanted_files_are_fetched_and_no_others(kind: remote.Kind) -> None:
    repository = {"model": "owner/model", "dataset": "owner/data"}[kind]
    found = find_snapshot(kind, repository, "main", ["*.json"], gated=False)
    assert found.commit == COMMIT
    assert names(found.folder) == {"config.json", "part/rows.json"}


def test_a_commit_that_is_here_needs_no_network(hub: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find()
    hub.asked.clear()
    assert find() == found
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find() == found


def test_more_of_a_commit_is_fetched_later() -> None:
    folder = find().folder
    assert find_snapshot("model", "owner/model", COMMIT, ["*"], gated=False).folder == folder
    assert names(folder) == {"config.json", "part/rows.json", "picture.png"}


def test_an_interrupted_download_is_completed() -> None:
    folder = find().folder
    (folder / "config.json").unlink()
    assert names(find().folder) == {"config.json", "part/rows.json"}


def test_a_branch_stands_for_what_was_seen_last(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find("main")
    monkeypatch.setattr(constants, "ENDPOINT", ABSENT)
    assert find("main") == found


def test_a_wrong_name_or_revision_is_said() -> None:
    said = "model.revision = 'no-such-branch': owner/model has no such commit, branch or tag"
    assert refusal("no-such-branch") == said
    assert refusal(repository="owner/other").startswith("model.id = 'owner/other': the hub has no such model")


def test_a_gated_model_names_the_page_with_its_terms(hub: Repositories) -> None:
    page = f"accept its terms at {constants.ENDPOINT}/owner/model and set HF_TOKEN"
    assert refusal(gated=True) == f"model.id = 'owner/model': gated, and no token is set: {page}"
    assert hub.asked == []
    hub.gated.add("models/owner/model")
    assert refusal() == f"model.id = 'owner/model': gated, and no token is set: {page}"


def test_a_token_without_access_is_said(hub: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add("models/owner/model")
    monkeypatch.setattr(remote, "get_token", lambda: "hf_secret")
    said = refusal(gated=True)
    assert "your token has no access" in said
    assert "hf_secret" not in said


def test_what_does_not_fit_on_the_disk_is_not_begun(hub: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9))
    hub.sizes["config.json"] = 5 * 10**9
    assert "too large: 5.0 GB to download" in refusal()
    assert not [path for path in hub.asked if "resolve" in path]
    hub.sizes["config.json"] = 5 * 10**8
    hub.sizes["picture.png"] = 5 * 10**9  # is not wanted
    hub.sizes.pop("config.json")
    assert find().commit == COMMIT


def test_no_network_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", ABSENT)
    started = time.perf_counter()
    for revision in ("main", COMMIT):
        assert "not on this machine, and the hub cannot be reached" in refusal(revision)
    assert time.perf_counter() - started < 5
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids to ask the hub: run experiments/prefetch.py" in refusal("main")


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_hub_that_never_answers_is_given_up_within_20_seconds(hub: Repositories, revision: str) -> None:
    hub.hanging = True
    started = time.perf_counter()
    assert "the hub cannot be reached (ReadTimeout)" in refusal(revision)
    assert time.perf_counter() - started < 20


def test_github_files_are_fetched_once(hub: Repositories, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "GITHUB", constants.ENDPOINT)
    hub.folders["owner/questions"] = hub.folders["models/owner/model"]
    (found,) = find_github_files("owner/questions", "main", ["part/rows.json"])
    assert found.read_text() == "[]"
    hub.asked.clear()
    assert find_github_files("owner/questions", "main", ["part/rows.json"]) == [found]
    assert hub.asked == []
    with pytest.raises(SettingError, match=r"dataset.files = '.*/raw/main/other.json': GitHub answers 404"):
        find_github_files("owner/questions", "main", ["other.json"])
    hub.hanging = True
    started = time.perf_counter()
    with pytest.raises(SettingError, match=r"GitHub cannot be reached \(.*\); download it elsewhere and store it as"):
        find_github_files("owner/questions", "main", ["third.json"])
    assert time.perf_counter() - started < 20
    assert names(tmp_path / "cache") == {"github/owner/questions/main/part/rows.json"}
