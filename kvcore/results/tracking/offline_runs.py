"""Writing cells as offline runs of Weights & Biases, in a process of its own.

wandb leaves threads, a service and changed handlers behind (0.31 replaces `sys.exit` and `sys.excepthook`), and prints
where it likes. In a process of its own, nothing of that meets a cell or a user's own runs. It is sent a list of folders
as JSON, and answers one line of JSON for each.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb

from kvcore.results.tracking.content import Content, read_content
from kvcore.schema import WandbTracker, first_line


def write_run(content: Content, tracker: WandbTracker, folder: Path) -> Path:
    """Write a cell as a complete offline run, which replaces an earlier one of the same cell.

    Args:
        content: What to show.
        tracker: Project, entity, group and tags.
        folder: Where complete runs are, in `wandb/`, and what they send as artifacts, in `staging/`.

    Returns:
        The run's folder.
    """
    for name in ("staging", "wandb"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{content.id}-", dir=folder / "staging"))
    os.environ["WANDB_DATA_DIR"] = str(staging)  # there is no setting for it
    run = wandb.init(
        id=content.id,
        name=content.name,
        project=tracker.project,
        entity=tracker.entity,
        group=tracker.group or content.settings.get("grid"),
        job_type="cell",
        tags=[*tracker.tags, *content.tags],
        config=dict(content.settings),
        mode="offline",
        settings=wandb.Settings(
            root_dir=str(staging),
            console="off",
            silent=True,
            symlink=False,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )
    _log(run, content)
    run.finish(exit_code=1 if content.failed else 0)
    for pattern in (f"wandb/*-{content.id}", f"staging/{content.id}-*"):
        for earlier in {*folder.glob(pattern)} - {staging}:
            shutil.rmtree(earlier, ignore_errors=True)
    written = Path(run.settings.sync_dir)
    return written.rename(folder / "wandb" / written.name)  # only now: who is killed leaves no half-written run there


def _log(run: wandb.Run, content: Content) -> None:
    for name, x in (("layers", "layer"), ("convergence", "tokens")):
        run.define_metric(f"{name}/{x}", summary="none")
        run.define_metric(f"{name}/*", step_metric=f"{name}/{x}", summary="none")
    for point in content.curves:
        run.log(point)
    tables = {f"tables/{name}": wandb.Table(dataframe=table) for name, table in content.tables.items()}
    images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in content.images}
    if tables or images:
        run.log(tables | images)
    run.summary.update(dict(content.summary))
    artifact = wandb.Artifact(f"cell-{content.id}", "cell")
    for path in content.files:
        artifact.add_file(str(path))
    run.log_artifact(artifact)


def answers(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Write every cell, and say for each `cell` and either `run`, its folder, or `fault`, why there is none.

    Beside a `run` stand the `seconds` since `started`.
    """
    tracker, folder = WandbTracker.model_validate(request["tracker"]), Path(request["folder"])
    for cell in request["cells"]:
        try:
            run = write_run(read_content(Path(cell)), tracker, folder)
            yield {"cell": cell, "run": str(run), "seconds": max(0.0, time.time() - request["started"])}
        except Exception as error:  # whatever it is: one cell that cannot be mirrored must not keep the others
            yield {"cell": cell, "fault": f"{type(error).__name__}: {first_line(error)}"}


if __name__ == "__main__":
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what wandb prints is no answer
    for line in answers(json.load(sys.stdin)):
        answer.write(json.dumps(line) + "\n")
        answer.flush()
