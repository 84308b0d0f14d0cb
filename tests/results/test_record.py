"""The record and its parts."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from results_example import example_record

from kvcore.results import record


def test_the_file_has_the_promised_keys_and_is_strict_json(tmp_path: Path) -> None:
    example_record().write(tmp_path / "record.json")

    def no_constant(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    written = json.loads((tmp_path / "record.json").read_text(), parse_constant=no_constant)
    assert set(written) == {
        "schema_version", "status", "id", "spectrum_id", "settings", "tokens", "tokens_per_dim", "converged", "ner",
        "perplexity", "gates", "versions", "git_commit", "device", "seconds", "peak_memory_bytes", "splits",
            "judged",
    }  # fmt: skip
    assert written["schema_version"] == 2
    assert written["gates"] == {"token_count": {"passed": True, "value": 0, "limit": 0}}
    assert written["perplexity"] == {"baseline": 12.5, "grid_mean_nd_ppl": "Infinity"}
    assert written["settings"]["dataset"]["languages"] == ["english"]


def test_versions_are_those_installed() -> None:
    versions = record.library_versions()
    assert versions["torch"] == torch.__version__
    assert {"python", "kvcore", "transformers", "numpy"} <= set(versions)


def test_commit_of_this_checkout() -> None:
    commit = record.git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_no_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    assert record.git_commit() is None


def test_no_commit_of_a_repository_the_package_is_not_part_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "record.py").write_text("")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    assert record.git_commit() is None


def test_device_and_memory() -> None:
    cpu = torch.device("cpu")
    assert record.describe_device(cpu).startswith("cpu: ")
    before = record.peak_memory_bytes(cpu)
    block = torch.ones(before // 4 + 10_000_000)  # 4 bytes each: more than the peak so far
    assert record.peak_memory_bytes(cpu) > before
    assert block[0] == 1
