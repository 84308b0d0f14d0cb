"""Everything a grid needs from elsewhere, fetched beforehand for machines without network."""

from collections.abc import Callable, Iterable
from pathlib import Path

from kvcore.model.geometry import check_family
from kvcore.model.loading import fetch_tensors, read_config
from kvcore.preparation import locate_data, locate_weights
from kvcore.schema import DatasetSettings, ModelSettings, Settings, TransformersJudge, UserError


def prefetch(cells: Iterable[Settings], say: Callable[[str], None]) -> bool:
    """Fetch the models and datasets of cells, each once, and go on where one cannot be had.

    Args:
        cells: The grid.
        say: Told one line about each model and dataset: where it is, or why not.

    Returns:
        Whether all are there.
    """
    settings = list(cells)
    wanted: list[ModelSettings | DatasetSettings] = [cell.model for cell in settings]
    wanted += [cell.judge.model for cell in settings if isinstance(cell.judge, TransformersJudge)]
    wanted += [cell.dataset for cell in settings]
    wanted += [cell.held_out.dataset for cell in settings if cell.held_out.dataset]
    complete = True
    for item in dict.fromkeys(wanted):
        label = f"{'model' if isinstance(item, ModelSettings) else 'dataset'} {item.name}"
        try:
            say(f"{label}: ready in {_fetch(item)}")
        except UserError as error:
            complete = False
            say(f"{label}: MISSING. {error}")
    return complete


def _fetch(item: ModelSettings | DatasetSettings) -> Path:
    if isinstance(item, DatasetSettings):
        return locate_data(item).files[0]
    weights = locate_weights(item)
    check_family(read_config(weights))
    fetch_tensors(weights)
    return weights.folder
