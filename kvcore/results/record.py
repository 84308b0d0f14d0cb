"""The record: one cell's result as JSON, written last."""

import json
import math
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcore.cell import write_atomically

if TYPE_CHECKING:  # torch takes seconds, which reading records need not wait for
    import torch

    from kvcore.evaluation.gates import Gate

SCHEMA_VERSION = 2
FINISHED = "finished"
UNTRUSTED = "untrusted"
_LIBRARIES = ("kvcore", "torch", "transformers", "tokenizers", "datasets", "numpy", "pandas", "safetensors")


@dataclass(frozen=True)
class Record:
    """What a finished cell says of itself; the fields are the keys of record.json.

    Attributes:
        schema_version: Version of this layout.
        status: `finished`, or `untrusted` where a gate failed and `gates=warn` let it pass.
        id: Identity of the cell.
        spectrum_id: Identity of the spectrum it used.
        settings: All settings, with the content hashes of weights and data.
        tokens: Tokens the spectra were computed from.
        tokens_per_dim: `tokens` over the largest kv_dim.
        converged: Whether every spectrum saw enough tokens.
        ner: Plain mean over layers of the normalized effective rank of `key` and of `value`.
        splits: For `calibration` and `evaluation`: dataset, language, examples, tokens, cut_examples (longer than
            `dataset.max_length`, of which only the beginning was used) and left_out_rows (without text in all mapped
            columns). For `evaluation` also in_sample (it is the calibration) and shared_examples (left out, for they
            are among those that calibrate).
        perplexity: `baseline` of the untruncated model, `grid_mean_nd_ppl` over the grid without (1, 1), each with
            the ends of its 95 % bootstrap interval over examples.
        judged: None without a judge; else items, missing (by reason), empty, cached, carries_information, and the mean
            scores `untruncated_score` and `grid_mean_score`, over the grid without (1, 1), with their intervals.
        gates: By name: passed, value, limit.
        versions: Of Python and the libraries that make the numbers.
        git_commit: Of the checkout the package runs from, if it is one; `-dirty` if it was changed.
        device: What the model ran on.
        seconds: Wall time by stage.
        peak_memory_bytes: Of the GPU if there is one, else of the process.
    """

    status: str
    id: str
    spectrum_id: str
    settings: Mapping[str, Any]
    tokens: int
    tokens_per_dim: float
    converged: bool
    ner: Mapping[str, float]
    splits: Mapping[str, Mapping[str, Any]]
    perplexity: Mapping[str, Any]
    judged: Mapping[str, Any] | None
    gates: "Mapping[str, Gate]"
    device: str
    seconds: Mapping[str, float]
    peak_memory_bytes: int
    versions: Mapping[str, str]
    git_commit: str | None
    schema_version: int = SCHEMA_VERSION

    def write(self, path: Path) -> None:
        """Write the record in one step."""
        write_atomically(path, json.dumps(finite(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Replace NaN and infinities by the strings `NaN`, `Infinity`, `-Infinity`, which JSON can carry."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that make the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def git_commit() -> str | None:
    """Return the commit of the checkout the package runs from, None where it is none."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)  # noqa: S603, S607
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:  # inside somebody else's repository
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def describe_device(device: "torch.device") -> str:
    """Name the device and its hardware."""
    import torch

    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def peak_memory_bytes(device: "torch.device") -> int:
    """Return the most memory used so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
