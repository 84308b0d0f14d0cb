"""Files of ranks: what a run allocated, to be read by later ones."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvcore.cell import write_atomically
from kvcore.compression.allocation import Allocation, KvDims, only
from kvcore.model.geometry import KINDS
from kvcore.schema import SettingError, first_line

SCHEMA_VERSION = 1


def write_ranks(
    path: Path, allocations: Sequence[Allocation], kv_dims: KvDims, *, model: str, model_revision: str
) -> None:
    """Write allocations as JSON: for each its strategy, what was asked, its cost, and ranks by kind, a list by layer.

    Args:
        path: The file.
        allocations: At least one.
        kv_dims: kv_dim by layer and kind.
        model: Name of the model.
        model_revision: Hash of its weights: ranks are of use for this model only.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": model, "revision": model_revision},
        "kv_dim": {kind: list(only(kind, kv_dims).values()) for kind in KINDS},
        "allocations": [_described(allocation, kv_dims) for allocation in allocations],
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_ranks(path: Path, kv_dims: KvDims, *, model_revision: str) -> list[Allocation]:
    """Read the allocations of a file, but for those that truncate nothing.

    Args:
        path: A file that `write_ranks` wrote.
        kv_dims: kv_dim by layer and kind.
        model_revision: Hash of the weights of the model at hand.

    Raises:
        SettingError: It cannot be read, is of another model, or has ranks that do not fit.
    """
    content = _read(path)
    try:
        if content["model"]["revision"] != model_revision:
            allowed = f"holds the ranks of another model: {content['model']['name']}, or other weights of this name"
            raise SettingError("rank_budget.path", str(path), allowed)
        found = [_allocation(entry, kv_dims) for entry in content["allocations"]]
    except SettingError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(path, error) from error
    truncating = [allocation for allocation in found if allocation.truncating(kv_dims)]
    if not truncating:
        raise SettingError("rank_budget.path", str(path), "none of its allocations truncates anything")
    return truncating


def count_ranks(path: Path) -> int:
    """Return how many allocations of a file truncate something.

    Raises:
        SettingError: It cannot be read.
    """
    try:
        return sum(entry["cost_ratio"] < 1 for entry in _read(path)["allocations"])
    except (KeyError, TypeError) as error:
        raise _unusable(path, error) from error


def _read(path: Path) -> Any:  # noqa: ANN401 - any JSON
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {content['schema_version']}, expected {SCHEMA_VERSION}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unusable(path, error) from error
    return content


def _unusable(path: Path, error: Exception) -> SettingError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return SettingError("rank_budget.path", str(path), f"cannot be used as a ranks.json ({reason})")


def ranks_revision(path: Path) -> str:
    """Return the SHA-256 of a file of ranks.

    Raises:
        SettingError: It cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SettingError("rank_budget.path", str(path), f"cannot be read ({first_line(error)})") from error


def _described(allocation: Allocation, kv_dims: KvDims) -> dict[str, Any]:
    cost = {name: None if value == float("inf") else value for name, value in asdict(allocation.cost(kv_dims)).items()}
    return {
        "strategy": allocation.strategy,
        "asked": allocation.asked,
        "key_ratio": allocation.key_ratio,
        "value_ratio": allocation.value_ratio,
        "budget": allocation.budget,
        **cost,
        "ranks": {kind: list(only(kind, allocation.ranks).values()) for kind in KINDS},
    }


def _allocation(entry: dict[str, Any], kv_dims: KvDims) -> Allocation:
    ranks = {}
    for kind in KINDS:
        part, listed = only(kind, kv_dims), entry["ranks"][kind]
        if len(listed) != len(part):
            raise ValueError(f"{kind} ranks of {len(listed)} layers, and the model has {len(part)}")
        for (place, kv_dim), rank in zip(part.items(), listed, strict=True):
            if type(rank) is not int or not 1 <= rank <= kv_dim:
                raise ValueError(f"rank {rank!r} for the {kind}s of layer {place.layer}: allowed are 1 to {kv_dim}")
            ranks[place] = rank
    for name in ("key_ratio", "value_ratio", "budget"):
        if entry[name] is not None and not (type(entry[name]) in (int, float) and 0 < entry[name] <= 1):
            raise ValueError(f"{name} {entry[name]!r}: allowed are numbers above 0, up to 1, and null")
    return Allocation(
        strategy="file",
        asked=f"{entry['strategy']}: {entry['asked']}",
        ranks={place: ranks[place] for place in kv_dims},
        key_ratio=entry["key_ratio"],
        value_ratio=entry["value_ratio"],
        budget=entry["budget"],
    )
