"""Models and datasets of a hub from the command line: prefetched with network, measured without."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TEXTS
from loopback import COMMIT, Repositories, serving
from scripts import call

HUB = [
    "model=hub", "model.id=owner/tiny", "dataset=hub", "dataset.id=owner/texts", "dataset.columns.text=text",
    "dataset.max_length=256", "rank_budget=none",
    "evaluation.share=0",
]  # fmt: skip


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path) -> Iterator[tuple[Repositories, dict[str, str]]]:
    """A hub with the tiny Llama and the texts, and the environment of a user of it."""
    served = tmp_path / "texts" / "data"
    served.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"text": text} for text in (TEXTS if split == "train" else TEXTS[:2])]
        (served / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    repositories = Repositories({"models/owner/tiny": tiny_folder, "datasets/owner/texts": tmp_path / "texts"})
    with serving(repositories) as address:
        environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        yield repositories, environment | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}


def test_prefetched_then_measured_without_network(hub: tuple[Repositories, dict[str, str]], tmp_path: Path) -> None:
    repositories, environment = hub
    grid = ["-m", *HUB, "dataset.id=owner/texts,owner/other"]
    fetched = call("prefetch.py", *grid, environment=environment, cwd=tmp_path)
    lines = fetched.stdout.splitlines()
    assert fetched.returncode == 1, fetched.stderr
    assert [line.partition(":")[0] for line in lines] == ["model hub", "dataset hub", "dataset hub"]
    assert [" ready in " in line for line in lines] == [True, True, False]
    assert "MISSING. dataset.id = 'owner/other': the hub has no such dataset" in lines[2]
    repositories.asked.clear()
    done = call("run.py", *HUB, environment=environment | {"HF_HUB_OFFLINE": "1"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert repositories.asked == []
    record = json.loads((tmp_path / done.stdout.splitlines()[-1]).read_text())
    assert record["settings"]["model"]["revision"] == record["settings"]["dataset"]["revision"] == COMMIT
    assert record["tokens"] == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (["dataset.split=validation"], "dataset.split = 'validation': cannot be read (Unknown split"),
        (["model.revision=v2"], "model.revision = 'v2': owner/tiny has no such commit, branch or tag"),
        (["model.gated=true"], "model.id = 'owner/tiny': gated, and no token is set: accept its terms at http"),
        (["model.context=128"], "dataset.max_length = 256: the context of model hub is 128 tokens"),
        (["model.expected.kv_heads=4"], "model.expected.kv_heads = 4: the loaded model has 2"),
        (["dataset.columns.text=body"], "dataset.columns.text = 'body': the file's columns are 'text'"),
        (["model.device_map=auto", "model.device=cpu"], "model.device = 'cpu': model.device_map places the model"),
        (["dataset.path=x.json"], "dataset.path = 'x.json': does not go with source hub"),
        (["model.path=/x"], "model.path = '/x': goes with model=folder"),
        (["capture.skip_first_tokens=500"], "capture.skip_first_tokens = 500: no example has more tokens than this"),
        (["dataset.files=[../x.json]"], "dataset.files.0 = '../x.json': string should match pattern"),
        (["model.id=tiny"], "model.id = 'tiny': string should match pattern"),
    ],
)
def test_mistakes_are_one_line(
    hub: tuple[Repositories, dict[str, str]], tmp_path: Path, mistake: list[str], said: str
) -> None:
    failed = call("run.py", *HUB, *mistake, environment=hub[1], cwd=tmp_path)
    assert failed.returncode == 2
    assert failed.stderr.startswith(said)
    assert len(failed.stderr.splitlines()) == 1


def test_layers_spread_by_a_map_give_the_same_numbers(hub: tuple[Repositories, dict[str, str]], tmp_path: Path) -> None:
    alone, spread = (
        call("run.py", *HUB, f"model.device_map={chosen}", f"output_root=of-{chosen}", environment=hub[1], cwd=tmp_path)
        for chosen in ("null", "auto")
    )
    assert spread.returncode == 0, spread.stderr
    records = [json.loads((tmp_path / done.stdout.splitlines()[-1]).read_text()) for done in (alone, spread)]
    assert records[0]["ner"] == records[1]["ner"]
    assert records[0]["id"] == records[1]["id"]


def test_a_grid_and_its_table(hub: tuple[Repositories, dict[str, str]], tmp_path: Path) -> None:
    swept = call("run.py", "-m", *HUB, "dataset.name=texts", "model.name=one,two", environment=hub[1], cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    shown = call("collect.py", environment=hub[1], cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    (row,) = [line.split() for line in shown.stdout.splitlines() if line.strip().startswith("texts")]
    record = json.loads(next((tmp_path / "outputs" / "runs" / "one").rglob("record.json")).read_text())
    mark = "" if record["converged"] else "*"
    assert row == ["texts", "english", *(f"{record['ner'][kind]:.4f}{mark}" for kind in ("key", "value")), *row[4:]]
    assert row[2:4] == row[4:]
    missing = call("collect.py", "elsewhere", environment=hub[1], cwd=tmp_path)
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
