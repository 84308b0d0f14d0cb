"""The mirror in Weights & Biases: real offline runs, read back, and a server on loopback."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from results_example import cost_tables, write_cell
from tracker_server import Service, serving

from kvcore.results.tracking import tracker as tracker_module
from kvcore.results.tracking.content import mirrored_cells, read_content
from kvcore.results.tracking.tracker import mirror
from kvcore.schema import WandbTracker

KEY = "canary-" + "0123456789abcdef" * 3
WRITTEN = (("b", 3.0), ("c", 600.0))  # when each was written, in seconds
LAYERS = pd.DataFrame(
    {"layer": [0, 0, 1, 1], "kind": ["key", "value"] * 2, "kv_dim": 16, "ner": [0.1, 0.5, 0.3, 0.7], "converged": True}
)
CONVERGENCE = pd.DataFrame(
    {
        "layer": [0, 0, 0, 0, 1, 1],
        "kind": ["key", "value"] * 3,
        "tokens": [16, 16, 100, 100, 100, 100],
        "ner": [0.01, 0.02, 0.1, 0.5, 0.3, 0.7],
    }
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is of the user who runs the tests out of them."""
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home" / name))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def tracker(**changes: Any) -> WandbTracker:
    values = {"name": "wandb", "mode": "offline", "project": "kvcore", "entity": None, "group": None, "tags": ("mine",)}
    return WandbTracker.model_validate(values | {"folder": None, "timeout_seconds": 2.0} | changes)


def finished_cell(root: Path, dataset: str = "pocket_code", **changes: Any) -> Path:
    tables = cost_tables("grid", {(1.0, 1.0): [1.0], (0.5, 1.0): [2.0]}, [3])
    tables |= {"layers": LAYERS, "convergence": CONVERGENCE}
    path = write_cell(root, "tiny", dataset, id=dataset.removeprefix("pocket_"), tables=tables, **changes)
    settings = json.loads(path.read_text())["settings"] | {"grid": "pocket", "tracker": {"name": "wandb"}}
    (path.parent / "settings.yaml").write_text(yaml.safe_dump(settings))
    (path.parent / "answers.parquet").write_bytes(b"texts of the user's")
    return path.parent


def failed_cell(root: Path) -> Path:
    folder = finished_cell(root, "pocket_medical")
    (folder / "record.json").unlink()
    failure = {"stage": "perplexity", "error": "by nothing\nat all", "traceback": "...", "settings": {}}
    (folder / "failure.json").write_text(json.dumps(failure))
    return folder


def mirrored(cells: list[Path], root: Path, **changes: Any) -> tuple[bool, list[str]]:
    said: list[str] = []
    return mirror(cells, tracker(**changes), root, said.append), said


def runs_in(root: Path) -> list[Path]:
    return sorted((root / "tracking" / "wandb").glob("offline-run-*"))


def inspected(run: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in inspected(run).splitlines()]
    return [line[kind] for line in lines if line["type"] == kind]


def test_a_run_holds_what_the_record_holds(tmp_path: Path) -> None:
    cell = finished_cell(tmp_path)
    (cell / "figures").mkdir()
    drawn = (Path(__file__).parents[2] / ".github" / "demo_layerwise_ner.png").read_bytes()
    (cell / "figures" / "layerwise_ner.png").write_bytes(drawn)
    complete, said = mirrored([cell], tmp_path)
    (run,) = runs_in(tmp_path)
    assert complete
    assert said == [f"tracker: {run}"]

    seen = json.loads(inspected(run, "--summary"))
    record = json.loads((cell / "record.json").read_text())
    expected = {name: value for name, value in record.items() if name != "settings" and value is not None}
    assert {name: seen["summary"][name] for name in expected} == expected
    assert seen["summary"]["ner"] == {"key": 0.25, "value": 0.5}
    assert not any(name.startswith(("layers/", "convergence/")) for name in seen["summary"])
    assert (seen["run_id"], seen["project"], seen["exit_code"]) == (cell.name, "kvcore", 0)
    assert seen["name"] == "tiny, pocket_code, english, grid"
    config = seen["config"]
    assert (config["model"], config["grid"]) == ({"name": "tiny"}, "pocket")
    assert "tracker" not in config
    (told,) = records(run, "run")
    assert (told["run_group"], told["job_type"], told["tags"]) == ("pocket", "cell", ["mine", "not-converged"])

    files = {path.name.split("_")[0]: path for path in run.rglob("media/table/**/*.json")}
    shown = json.loads(files["layers"].read_text())
    assert (shown["columns"], shown["data"]) == (list(LAYERS.columns), LAYERS.to_numpy().tolist())
    assert set(files) == {"layers", "convergence", "perplexity"}
    (image,) = run.rglob("media/images/**/*.png")
    assert image.read_bytes() == drawn


def test_curves_are_over_layers_and_over_tokens(tmp_path: Path) -> None:
    mirrored([finished_cell(tmp_path)], tmp_path)
    (run,) = runs_in(tmp_path)
    rows = [row["item"] for row in records(run, "history")]
    points = [{name: value for name, value in row.items() if name[0] != "_"} for row in rows][:-1]
    assert points[:2] == [
        {"layers/layer": 0, "layers/ner_key": 0.1, "layers/ner_value": 0.5},
        {"layers/layer": 1, "layers/ner_key": 0.3, "layers/ner_value": 0.7},
    ]
    (whole,) = points[2:]  # at 16 tokens only one of both layers has been measured
    assert whole == {
        "convergence/tokens": 100,
        "convergence/ner_key": pytest.approx(0.2),
        "convergence/ner_value": pytest.approx(0.6),
    }
    steps = {row.get("glob_name"): row.get("step_metric") for row in records(run, "metric")}
    assert steps["layers/*"] == "layers/layer"
    assert steps["convergence/*"] == "convergence/tokens"


def test_the_record_and_all_numbers_are_an_artifact_and_texts_are_not(tmp_path: Path) -> None:
    cell = finished_cell(tmp_path)
    spectrum_id = json.loads((cell / "record.json").read_text())["spectrum_id"]
    spectrum = tmp_path / "spectra" / spectrum_id / "spectrum.json"
    spectrum.parent.mkdir(parents=True)
    spectrum.write_text("{}")
    mirrored([cell], tmp_path)
    (run,) = runs_in(tmp_path)
    (artifact,) = (one for one in records(run, "artifact") if one["type"] == "cell")
    kept = {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
    tables = {f"{name}.parquet" for name in ("layers", "convergence", "perplexity", "likelihoods")}
    assert set(kept) == {"settings.yaml", "record.json", "spectrum.json"} | tables
    assert kept["record.json"].read_bytes() == (cell / "record.json").read_bytes()
    assert all(path.is_relative_to(tmp_path / "tracking") for path in kept.values())


def test_a_rerun_replaces_its_run_and_leaves_others(tmp_path: Path) -> None:
    other, cell = finished_cell(tmp_path), failed_cell(tmp_path)
    mirrored([other, cell], tmp_path)
    first = {run.name.split("-", 3)[3]: run for run in runs_in(tmp_path)}
    assert set(first) == {other.name, cell.name}
    failed = json.loads(inspected(first[cell.name], "--summary"))
    assert failed["exit_code"] == 1
    expected = {"status": "failed", "stage": "perplexity", "error": "by nothing\nat all"}
    assert {name: failed["summary"][name] for name in expected} == expected
    assert records(first[cell.name], "run")[0]["tags"] == ["mine", "failed"]

    (cell / "failure.json").unlink()
    (cell / "record.json").write_bytes((other / "record.json").read_bytes())
    assert mirrored([cell], tmp_path)[0]
    (again,) = (run for run in runs_in(tmp_path) if cell.name in run.name)
    seen = json.loads(inspected(again, "--summary"))
    assert (seen["run_id"], seen["exit_code"], seen["summary"]["status"]) == (cell.name, 0, "finished")
    assert "stage" not in seen["summary"]
    assert first[other.name].is_dir()
    assert len(list((tmp_path / "tracking" / "staging").iterdir())) == 2


def test_a_cell_that_cannot_be_read_is_named_and_the_others_are_mirrored(tmp_path: Path) -> None:
    good, bad = finished_cell(tmp_path), finished_cell(tmp_path, "pocket_general")
    (bad / "record.json").write_text("{")
    assert mirrored_cells(tmp_path) == sorted([good, bad])
    complete, said = mirrored([bad, good], tmp_path)
    assert not complete
    assert said[0].startswith(f"tracker: {bad} is not mirrored: JSONDecodeError")
    assert said[1:] == [f"tracker: {run}" for run in runs_in(tmp_path)]
    assert len(runs_in(tmp_path)) == 1


def test_an_interrupted_cell_is_not_mirrored(tmp_path: Path) -> None:
    (finished_cell(tmp_path) / "record.json").unlink()
    assert mirrored_cells(tmp_path) == []


def test_who_is_killed_leaves_no_half_written_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = finished_cell(tmp_path)
    (cell / "figures").mkdir()
    os.mkfifo(cell / "figures" / "layerwise_ner.png")  # a disk that does not answer
    monkeypatch.setattr(tracker_module, "_START_SECONDS", 0.0)
    complete, (said,) = mirrored([cell], tmp_path)
    assert not complete
    assert said == "tracker: not mirrored: wandb did not end within 10 seconds"
    assert runs_in(tmp_path) == []
    assert list((tmp_path / "tracking" / "staging").rglob("*.wandb"))  # it had begun one
    (cell / "figures" / "layerwise_ner.png").unlink()
    assert mirrored([cell], tmp_path)[0]
    assert len(list((tmp_path / "tracking" / "staging").iterdir())) == 1


def test_numbers_that_json_lacks_come_back(tmp_path: Path) -> None:
    content = read_content(finished_cell(tmp_path))
    assert content.summary["perplexity"]["grid_mean_nd_ppl"] == float("inf")


def test_nothing_is_written_when_disabled(tmp_path: Path) -> None:
    cell = finished_cell(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert mirrored([cell], tmp_path, mode="disabled") == (True, [])
    assert set(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "tracking").write_text("")
    complete, (said,) = mirrored([finished_cell(tmp_path)], tmp_path)
    assert not complete
    assert said.startswith("tracker: not mirrored: ")
    assert "tracking" in said


def files_with_the_key(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()
    with serving(service) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        yield service


def test_online_runs_are_sent_and_sent_again_from_their_first_row(tmp_path: Path, service: Service) -> None:
    cell = finished_cell(tmp_path)
    for _ in range(2):
        complete, said = mirrored([cell], tmp_path, mode="online", group="chosen", timeout_seconds=20.0)
        assert complete, said
    made = [(run["name"], run["groupName"], run["jobType"]) for run in service.runs if run["groupName"]]
    assert made == [(cell.name, "chosen", "cell")] * 2
    sent = service.history[cell.name]
    starts = [rows for first, rows in sent if first == 0]
    assert len(starts) == 2  # the second run overwrites the first
    assert starts[1][0]["layers/ner_key"] == 0.1
    assert files_with_the_key(tmp_path) == []


def test_a_wrong_key_is_one_line(tmp_path: Path, service: Service) -> None:
    service.key_is_wrong = True
    complete, said = mirrored([finished_cell(tmp_path)], tmp_path, mode="online")
    assert not complete
    (run,) = runs_in(tmp_path)
    assert said == [
        f"tracker: {run}",
        f"tracker: 1 run not sent (user is not logged in); later: wandb sync {run.parent}",
    ]
    assert not list(run.glob("*.synced"))


def test_nobody_waits_for_a_server_that_does_not_answer(tmp_path: Path, service: Service) -> None:
    service.hanging = True
    cells = [finished_cell(tmp_path), finished_cell(tmp_path, "pocket_general")]
    started = time.monotonic()
    complete, said = mirrored(cells, tmp_path, mode="online", timeout_seconds=1.0)
    waited = time.monotonic() - started
    assert not complete
    assert len(runs_in(tmp_path)) == 2
    assert "2 runs not sent (no answer within tracker.timeout_seconds = 1)" in said[2]
    assert waited < 90  # one attempt and the start of wandb, twice; left to itself, it tries for minutes on end


def test_writing_many_runs_does_not_make_the_wait_for_the_server_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What wandb takes to start counts once, however many cells it writes."""
    limits = []

    def call(module: list[str], *_: Any, seconds: float, **__: Any) -> subprocess.CompletedProcess[str]:
        limits.append(seconds)
        answers = [{"cell": "a", "fault": "damaged"}]
        answers += [{"cell": cell, "run": f"{tmp_path}/wandb/{cell}", "seconds": after} for cell, after in WRITTEN]
        said = "" if "sync" in module else "".join(json.dumps(answer) + "\n" for answer in answers)
        return subprocess.CompletedProcess(module, 0, said, "")

    monkeypatch.setattr(tracker_module, "_call", call)
    mirrored([tmp_path / name for name in "abc"], tmp_path, mode="online", timeout_seconds=2.0)
    assert limits[1:] == [2.0 + 3.0]


def test_no_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    complete, said = mirrored([finished_cell(tmp_path)], tmp_path, mode="online")
    assert not complete
    assert "1 run not sent (No API key configured. Use `wandb login` to log in.)" in said[1]


def test_the_key_is_written_nowhere(tmp_path: Path, service: Service) -> None:
    service.key_is_wrong = True
    _, said = mirrored([finished_cell(tmp_path)], tmp_path, mode="online", timeout_seconds=10.0)
    assert service  # it was asked
    assert files_with_the_key(tmp_path) == []
    assert "canary" not in str(said)
    assert os.environ["WANDB_API_KEY"] == KEY
