"""What lies on other machines: snapshots of the Hugging Face hub and files of GitHub, fetched once and kept."""

import os
import re
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, NamedTuple

import httpx2
import platformdirs
from huggingface_hub import HfApi, constants, get_cached_repo_tree, get_token, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kvcore.schema import SettingError, first_line

TIMEOUT_SECONDS = 8.0
GITHUB = "https://github.com"

_COMMIT = re.compile("[0-9a-f]{40}")
_ROOM_LEFT_BYTES = 100_000_000

Kind = Literal["model", "dataset"]


class Snapshot(NamedTuple):
    """Files of one commit of a repository of the hub."""

    folder: Path
    commit: str


def cache_root() -> Path:
    """Return the folder for what kvcore keeps: $KVCORE_CACHE, or kvcore in the user's cache directory."""
    return Path(os.environ.get("KVCORE_CACHE") or platformdirs.user_cache_dir("kvcore"))


def find_snapshot(kind: Kind, repository: str, revision: str, patterns: Sequence[str], *, gated: bool) -> Snapshot:
    """Return the files of a repository of the hub, downloading those that are missing.

    A commit that is here needs no network. A branch or tag is looked up; without network it stands for the
    commit at which it was seen last.

    Args:
        kind: `model` or `dataset`: whose settings the messages name.
        repository: OWNER/NAME.
        revision: Commit, branch or tag.
        patterns: Names of the wanted files, such as `*.json`.
        gated: Whether its owner grants access to those who accept terms.

    Raises:
        SettingError: It does not exist, is gated or too large for the disk, or the hub cannot be reached.
    """
    if _COMMIT.fullmatch(revision) and (kept := _kept(kind, repository, revision, patterns, listed=True)):
        return kept
    if gated and not get_token() and not constants.HF_HUB_OFFLINE:
        raise _gated(kind, repository, "no token is set")
    try:
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        found = ask(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
        missing = [
            file.size or 0
            for file in found.siblings or []
            if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
            and not try_to_load_from_cache(repository, file.rfilename, revision=found.sha, repo_type=kind)
        ]
        _require_room(kind, repository, sum(missing))
        folder = snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=list(patterns))
    except (GatedRepoError, RevisionNotFoundError, RepositoryNotFoundError) as error:
        raise _not_granted(kind, repository, revision, error) from error
    except (OfflineModeIsEnabled, httpx2.HTTPError, EntryNotFoundError, TimeoutError) as error:
        if kept := _kept(kind, repository, revision, patterns, listed=False):
            return kept
        raise SettingError(f"{kind}.id", repository, f"not on this machine, and {_unreachable(error)}") from error
    except OSError as error:
        raise SettingError(f"{kind}.id", repository, f"cannot be stored ({first_line(error)})") from error
    return Snapshot(Path(folder), Path(folder).name)


def find_github_files(repository: str, revision: str, names: Sequence[str]) -> list[Path]:
    """Return files of a repository of GitHub, downloading those that are missing.

    Args:
        repository: OWNER/NAME.
        revision: Commit, branch or tag. What was downloaded for a branch is kept: delete it to look again.
        names: Paths of the files in the repository.

    Raises:
        SettingError: There is no such file, it cannot be stored, or GitHub cannot be reached.
    """
    folder = cache_root() / "github" / repository / revision
    for name in names:
        if not (folder / name).is_file():
            _download(f"{GITHUB}/{repository}/raw/{revision}/{name}", folder / name)
    return [folder / name for name in names]


def _download(address: str, target: Path) -> None:
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with httpx2.stream("GET", address, timeout=TIMEOUT_SECONDS, follow_redirects=True) as answer:
            answer.raise_for_status()
            with unfinished.open("wb") as file:
                for piece in answer.iter_bytes():
                    file.write(piece)
        unfinished.replace(target)
    except httpx2.HTTPStatusError as error:
        raise SettingError("dataset.files", address, f"GitHub answers {error.response.status_code}") from error
    except httpx2.HTTPError as error:
        advice = f"download it elsewhere and store it as {target}"
        raise SettingError(
            "dataset.files", address, f"GitHub cannot be reached ({first_line(error)}); {advice}"
        ) from error
    except OSError as error:
        raise SettingError("KVCORE_CACHE", str(target), f"cannot be written ({first_line(error)})") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _kept(kind: Kind, repository: str, revision: str, patterns: Sequence[str], *, listed: bool) -> Snapshot | None:
    """Return what is on this machine if it is complete; `listed`: only if the list of the files is here to tell."""
    try:
        if listed:
            get_cached_repo_tree(repository, repo_type=kind, revision=revision)
        folder = snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=list(patterns), local_files_only=True
        )
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return None
    return Snapshot(Path(folder), Path(folder).name)


def _require_room(kind: Kind, repository: str, needed_bytes: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if needed_bytes + _ROOM_LEFT_BYTES > free:
        sizes = f"{needed_bytes / 1e9:.1f} GB to download, and {cache} has {free / 1e9:.1f} GB free"
        raise SettingError(f"{kind}.id", repository, f"too large: {sizes}")


def _gated(kind: Kind, repository: str, reason: str) -> SettingError:
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    return SettingError(f"{kind}.id", repository, f"gated, and {reason}: accept its terms at {page} and set HF_TOKEN")


def _not_granted(kind: Kind, repository: str, revision: str, error: HfHubHTTPError) -> SettingError:
    if isinstance(error, GatedRepoError):
        return _gated(kind, repository, "your token has no access" if get_token() else "no token is set")
    if isinstance(error, RevisionNotFoundError):
        return SettingError(f"{kind}.revision", revision, f"{repository} has no such commit, branch or tag")
    return SettingError(
        f"{kind}.id", repository, f"the hub has no such {kind}, or it is private and HF_TOKEN has no access"
    )


def _unreachable(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask the hub: run experiments/prefetch.py once without it"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answers {error.response.status_code}: try again later"
    return (
        f"the hub cannot be reached ({type(error).__name__}): run experiments/prefetch.py where there is network, "
        "with HF_HOME on a disk that both machines see"
    )
