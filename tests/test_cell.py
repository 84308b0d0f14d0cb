"""Identity: all and only the settings that change the numbers."""

import dataclasses
import hashlib
import os
import re
from pathlib import Path

import pytest
import yaml
from conftest import composed

from kvcore.cell import Cell, identity, lock_path, prepare_output_root, write_atomically
from kvcore.schema import SettingError, parse_settings


def cell(*overrides: str, model_revision: str = "m", dataset_revision: str = "d") -> Cell:
    return Cell(parse_settings(composed(*overrides)), model_revision, dataset_revision)


def test_identity_is_the_hash_of_canonical_json() -> None:
    canonical = '{"a":[1,0.5,null],"b":{"c":"é"}}'
    assert identity({"b": {"c": "é"}, "a": [1, 0.5, None]}) == hashlib.sha256(canonical.encode()).hexdigest()[:12]
    assert re.fullmatch("[0-9a-f]{12}", cell().id)
    assert cell().id != cell().spectrum_id


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model.dtype=bfloat16",
        "model.attention=eager",
        "model.template=chat",
        "dataset.max_tokens=100",
        "dataset.max_examples=10",
        "dataset.max_length=512",
        "dataset.prompt='{input} {instruction}'",
        "dataset.columns.text=output",
        "capture.point=rotary",
        "capture.skip_first_tokens=1",
        "evaluation.share=0.3",
    ],
)
def test_what_changes_a_spectrum_changes_both_identities(override: str) -> None:
    assert cell(override).spectrum_id != cell().spectrum_id
    assert cell(override).id != cell().id


def test_content_changes_identity_of_the_cell() -> None:
    other = cell("dataset@held_out.dataset=pocket_code")
    for changed in (dataclasses.replace(other, held_out_revision="h"), dataclasses.replace(other, ranks_revision="r")):
        assert changed.id != other.id
        assert changed.spectrum_id == other.spectrum_id


def test_what_is_allocated_with_is_part_of_the_identity() -> None:
    for option in ("waterfill", "importance", "sensitivity", "energy", "uniform"):
        plain = cell(f"rank_budget={option}")
        assert cell(f"rank_budget={option}", "rank_budget.budgets=[0.25,0.5,0.375,0.75]").id == plain.id
        assert cell(f"rank_budget={option}", "rank_budget.budgets=[0.5]").id != plain.id
    assert cell("rank_budget=waterfill", "rank_budget.floor=0.1").id != cell("rank_budget=waterfill").id
    where = [cell("rank_budget=file", f"rank_budget.path={path}").id for path in ("a", "b")]
    assert where[0] == where[1]  # the content counts


def test_content_changes_both_identities() -> None:
    for changed in (cell(model_revision="other"), cell(dataset_revision="other")):
        assert changed.spectrum_id != cell().spectrum_id
        assert changed.id != cell().id


@pytest.mark.parametrize(
    "override",
    [
        "rank_budget=none",
        "rank_budget.key_ratios=[0.5]",
        "evaluation.target=response",
        "evaluation.max_tokens=50",
        "evaluation.max_examples=5",
        "rank_budget=uniform",
        "dataset@held_out.dataset=pocket_code",
        "capture.per_head=true",
    ],
)
def test_what_changes_only_the_evaluation_shares_the_spectrum(override: str) -> None:
    assert cell(override).spectrum_id == cell().spectrum_id
    assert cell(override).id != cell().id


@pytest.mark.parametrize(
    "override",
    [
        "output_root=/elsewhere",
        "gates=warn",
        "grid=name",
        "tracker=wandb",
        "model.device=cpu",
        "model.name=alias",
        "dataset.name=alias",
        "capture.batch_tokens=7",
        "evaluation.batch_tokens=7",
        "language@held_out.language=english",
        "rank_budget.key_ratios=[0.2,0.4,0.6,0.8,1.0]",
    ],
)
def test_what_changes_no_number_changes_no_identity(override: str) -> None:
    assert (cell(override).id, cell(override).spectrum_id) == (cell().id, cell().spectrum_id)


def test_columns_that_are_not_read_change_no_identity() -> None:
    text = cell("dataset.columns.text=body")
    assert cell("dataset.columns.text=body", "dataset.columns.output=x", "dataset.prompt='{input}'").id == text.id
    assert cell("dataset.columns.text=other").id != text.id


def test_folders() -> None:
    settings = cell("output_root=/results")
    assert settings.folder == Path(f"/results/runs/smollm2_135m/pocket_general-english/{settings.id}")
    assert settings.spectrum_folder == Path(f"/results/spectra/{settings.spectrum_id}")


def test_an_opened_folder_holds_the_settings_and_is_unfinished(tmp_path: Path) -> None:
    opened = cell(f"output_root={tmp_path}")
    opened.open_folder()
    written = yaml.safe_load((opened.folder / "settings.yaml").read_text())
    assert written == opened.described_settings()
    assert (written["model"]["revision"], written["dataset"]["revision"]) == ("m", "d")
    assert not opened.is_finished()
    opened.record_path.write_text("{}")
    assert opened.is_finished()


def test_unwritable_output_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"output_root = '.*/file': cannot be written to"):
        prepare_output_root(str(tmp_path / "file"))
    with pytest.raises(SettingError, match="cannot be written to"):
        prepare_output_root("/proc/kvcore")
    with pytest.raises(SettingError, match=r"output_root = '.*/file': cannot be written to"):
        cell(f"output_root={tmp_path / 'file'}").open_folder()


def test_a_read_only_folder_is_seen_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_output_root(str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, _: path.name != "spectra")  # root may write anywhere
    with pytest.raises(SettingError, match="its folder spectra is read-only"):
        prepare_output_root(str(tmp_path))


def test_too_little_space_is_said_beforehand(tmp_path: Path) -> None:
    opened = cell(f"output_root={tmp_path}")
    opened.require_space(1)
    with pytest.raises(SettingError, match=r"output_root = .* MB free, and this cell may write 1000000000000 MB"):
        opened.require_space(10**18)


def test_atomic_writes_leave_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "second \ud800")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, "second")
    assert path.read_text() == "second"


@pytest.mark.parametrize("place", ["folder", "spectrum_folder"])
def test_a_lock_that_cannot_be_opened_names_the_outputs(place: str, tmp_path: Path) -> None:
    """As that of another user, to whom the cell belongs."""
    begun = cell(f"output_root={tmp_path}")
    lock_path(tmp_path, getattr(begun, place)).mkdir(parents=True)
    claimed = begun.claimed() if place == "folder" else begun.spectrum_claimed(print)
    with pytest.raises(SettingError, match=r"^output_root = .* cannot be written to .*\.lock"), claimed:
        pass
