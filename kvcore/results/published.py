"""The values of NER published for seven models, beside those measured here."""

from importlib.resources import files

import pandas as pd

from kvcore.results.agreement import one_a_spectrum
from kvcore.results.collection import trusted

_FIELDS = ["dataset", "language", "model", "kind"]
_POINT = "projection"  # where the published keys and values are from


def published_ner() -> pd.DataFrame:
    """Return the published values of 12 datasets, under the names of `conf/model` and `conf/dataset`.

    Source: KV-CoRE, arXiv 2602.05929.

    Returns:
        Columns dataset, language, model, kind (key or value), ner.
    """
    with (files("kvcore.results") / "published_ner.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def against_published(cells: pd.DataFrame) -> pd.DataFrame:
    """Return what was measured at the projections, what was published, and the difference, where both are.

    Args:
        cells: From `kvcore.results.agreement.comparable`; those whose gates failed are left out.

    Returns:
        Columns dataset, language, model, kind, measured, published, difference (measured - published), converged.
    """
    cells = one_a_spectrum(trusted(cells))
    cells = cells[cells["capture.point"] == _POINT]
    measured = cells.rename(columns={"ner_key": "key", "ner_value": "value"}).melt(
        ["dataset", "language", "model", "converged"], ["key", "value"], var_name="kind", value_name="measured"
    )
    both = measured.merge(published_ner().rename(columns={"ner": "published"}), on=_FIELDS)
    both["difference"] = both["measured"] - both["published"]
    return both.sort_values(_FIELDS, ignore_index=True)[[*_FIELDS, "measured", "published", "difference", "converged"]]
