"""Workspaces of Weights & Biases that compare the mirrored cells of a project."""

import os
from typing import TYPE_CHECKING

from kvcore.results.tracking.content import FAILED
from kvcore.schema import SettingError, UserError, WandbTracker, first_line

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

_NAMES = [f"config:{group}.value.name" for group in ("model", "dataset", "language", "rank_budget")]
_RESULTS = ["ner.key", "ner.value", "converged", "perplexity.baseline", "perplexity.grid_mean_nd_ppl", "status"]
_REACHED_SECONDS = 10.0


def save_workspaces(tracker: WandbTracker) -> list[str]:
    """Save the workspaces as views of the project, and return their addresses.

    Raises:
        UserError: The optional packages are missing, the server cannot be reached, or it refuses the key.
    """
    os.environ["WANDB_SILENT"] = "true"  # the addresses are printed once, by who calls this
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError("wandb-workspaces is not installed: pip install 'kvcore[dashboard]'") from error
    import httpx2
    import wandb

    address = wandb.setup().settings.base_url
    try:
        httpx2.get(address, timeout=_REACHED_SECONDS)  # the client itself would try for minutes
    except httpx2.HTTPError as error:
        raise UserError(f"{address} cannot be reached: {first_line(error)}") from error
    try:
        entity = tracker.entity or wandb.Api().default_entity
        if entity is None:
            raise SettingError("tracker.entity", None, "the key has no entity of its own: name one")
        views = [build(entity, tracker.project) for build in (comparison, failures)]
        return [view.save().url for view in views]
    except Exception as error:  # wandb has no class of its own for what a server refuses
        raise error if isinstance(error, UserError) else UserError(f"{address}: {first_line(error)}") from error


def comparison(entity: str, project: str) -> "Workspace":
    """Return the view that compares cells: NER by dataset and model, its curves, its cost, and the cells as a table."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as views

    kinds = ("key", "value")
    bars = [
        panels.BarPlot(
            title=f"NER of {kind}s by {group}", metrics=[f"ner.{kind}"], groupby=panels.Config(f"{group}.name")
        )
        for group in ("dataset", "model", "language")
        for kind in kinds
    ]
    layers = [
        panels.LinePlot(
            title=f"NER of {kind}s", x="layers/layer", y=[f"layers/ner_{kind}"], title_x="layer", title_y="NER",
            range_y=(0, 1), smoothing_type="none", max_runs_to_show=100,
        )
        for kind in kinds
    ]  # fmt: skip
    convergence = [
        panels.LinePlot(
            title=f"NER of {kind}s, mean over layers", x="convergence/tokens", y=[f"convergence/ner_{kind}"],
            title_x="tokens", title_y="NER", log_x=True, smoothing_type="none", max_runs_to_show=100,
        )
        for kind in kinds
    ]  # fmt: skip
    cost = [
        panels.ScatterPlot(
            title=f"Mean ND-PPL against NER of {kind}s", x=panels.SummaryMetric(f"ner.{kind}"),
            y=panels.SummaryMetric("perplexity.grid_mean_nd_ppl"), regression=True,
        )
        for kind in kinds
    ]  # fmt: skip
    heatmaps = panels.MediaBrowser(media_keys=["figures/perplexity_heatmap", "figures/score_heatmap"], num_columns=3)
    sections = {
        "NER by dataset, model and language": bars,
        "NER over the layers": layers,
        "NER against cost": cost,
        "Convergence": convergence,
        "Heatmaps": [heatmaps],
    }
    return views.Workspace(
        entity=entity,
        project=project,
        name="kvcore: comparison of cells",
        sections=[views.Section(name=name, panels=shown, is_open=True) for name, shown in sections.items()],
        settings=views.WorkspaceSettings(max_runs=100),
        runset_settings=views.RunsetSettings(
            pinned_columns=[*_NAMES, *(f"summary:{name}" for name in _RESULTS)],
            order=[views.Ordering(views.Config(f"{group}.name")) for group in ("model", "dataset", "language")],
        ),
    )


def failures(entity: str, project: str) -> "Workspace":
    """Return the view that lists failed cells with stage and error."""
    import wandb_workspaces.workspaces as views
    from wandb_workspaces.expr import And

    return views.Workspace(
        entity=entity,
        project=project,
        name="kvcore: failed cells",
        runset_settings=views.RunsetSettings(
            filters=And(views.Tags().isin([FAILED])),
            pinned_columns=[*_NAMES, "summary:stage", "summary:error"],
        ),
    )
