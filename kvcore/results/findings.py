"""What a grid says of the claims of the paper it repeats (KV-CoRE, arXiv 2602.05929).

A finding rests on trusted and converged cells alone. Its intervals and p values are over datasets and languages, or
over models where the claim is about models. A p value is that of the claim: one-sided.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from kvcore.evaluation.intervals import Samples, mean_interval
from kvcore.results.agreement import one_a_spectrum
from kvcore.results.collection import on_own_data, trusted

KINDS = ("key", "value")
_ENGLISH = "english"
_SIGNIFICANT = 0.05
_FEWEST = 3  # datasets, languages or cells to draw from
_FEWEST_OF_ONE_SIGN = 5  # with four, all of one sign come by chance once in sixteen, which no interval over them shows
_FEWEST_MODELS = 4  # with three, no order of them is rarer than one in six
_DATA = ["dataset", "language"]
_PERMUTATIONS, _SEED = 9999, 0


@dataclass(frozen=True)
class Finding:
    """What a grid says of a claim.

    Attributes:
        claim: In one sentence.
        statement: What was found, with its statistics, in one sentence.
        supported: Whether the claim holds here; None where the cells do not allow to tell.
        statistics: The numbers of the statement, by name.
    """

    claim: str
    statement: str
    supported: bool | None
    statistics: dict[str, float] = field(default_factory=dict)


class _TooLittle(Exception):  # noqa: N818 - no fault, an answer
    """The cells of the grid do not allow to tell; says what is missing."""


def findings(cells: pd.DataFrame) -> list[Finding]:
    """Return what the cells say of each claim.

    Args:
        cells: From `kvcore.results.agreement.comparable`; those that are not trusted or not converged are left out.
    """
    used = trusted(cells)
    used = used[used["converged"]]
    return [_finding(claim, test, used) for claim, test in _CLAIMS.items()]


def left_out(cells: pd.DataFrame) -> str:
    """Say how many spectra no finding rests on, and why; empty where there are none."""
    spectra = one_a_spectrum(cells)
    untrusted = len(spectra) - len(trusted(spectra))
    unsettled = int((~trusted(spectra)["converged"]).sum())
    counts = {"with a failed gate": untrusted, "not converged": unsettled}
    parts = [f"{count} {why}" for why, count in counts.items() if count]
    return f"left out of the findings: {', '.join(parts)}, of {len(spectra)} spectra" if parts else ""


_Answer = tuple[str, bool, dict[str, float]]  # what was found, whether the claim holds, the numbers
_Test = Callable[[pd.DataFrame], _Answer]


def _finding(claim: str, test: _Test, cells: pd.DataFrame) -> Finding:
    try:
        said, supported, statistics = test(cells)
    except _TooLittle as missing:
        return Finding(claim, f"Cannot be told from this grid: {missing}.", None)
    return Finding(claim, f"{'Supported' if supported else 'Not supported'} here: {said}.", supported, statistics)


def _keys_and_values(cells: pd.DataFrame) -> _Answer:
    spectra = one_a_spectrum(cells)
    differences = (spectra["ner_value"] - spectra["ner_key"]).groupby([spectra[name] for name in _DATA]).mean()
    count = len(differences)
    _require(
        count >= _FEWEST_OF_ONE_SIGN, f"it takes {_FEWEST_OF_ONE_SIGN} datasets or languages, and there are {count}"
    )
    mean, (low, high) = float(differences.mean()), mean_interval(differences)
    lower = int((spectra["ner_key"] < spectra["ner_value"]).sum())
    said = (
        f"NER of keys is lower than that of values in {lower} of {len(spectra)} cells, on average by {mean:.3f} "
        f"(95 % interval over {count} datasets and languages {low:.3f} to {high:.3f})"
    )
    return said, low > 0, {"difference": mean, "low": low, "high": high, "lower": lower, "cells": len(spectra)}


def _languages_and_domains(cells: pd.DataFrame) -> _Answer:
    shifts = _shifts_from_english(one_a_spectrum(cells))
    counts = shifts["changed"].value_counts()
    _require(
        all(counts.get(changed, 0) >= _FEWEST for changed in ("language", "domain")),
        f"it takes one dataset in English and {_FEWEST} other languages, and {_FEWEST} other English datasets, "
        "measured with all models",
    )
    parts, statistics, supported = [], dict[str, float](), True
    for kind in KINDS:
        language, domain = (shifts.loc[shifts["changed"] == name, kind].to_numpy() for name in ("language", "domain"))
        test = stats.mannwhitneyu(language, domain, alternative="greater")
        numbers = [float(language.mean()), float(domain.mean())]
        larger, p = float(test.statistic) / (len(language) * len(domain)), float(test.pvalue)
        supported &= p <= _SIGNIFICANT
        by = " % and ".join(f"{100 * number:.1f}" for number in numbers)
        parts.append(f"NER of {kind}s by {by} % (larger in {100 * larger:.0f} % of pairs, one-sided p = {p:.2g})")
        names = [f"{kind}_{name}" for name in ("language_shift", "domain_shift", "larger", "p")]
        statistics |= dict(zip(names, [*numbers, larger, p], strict=True))
    what = f"another language ({counts['language']} of them) and another English dataset ({counts['domain']})"
    return f"{what} move {', '.join(parts)}; medians over models, from the same English cell", supported, statistics


def _shifts_from_english(spectra: pd.DataFrame) -> pd.DataFrame:
    """Return how far NER moves from that of one English cell when the language changes, or the domain.

    If neither mattered more, the two would be draws of one distribution, which is what the test asks.

    Returns:
        A row for each other language of the dataset with the most languages, and each other English dataset. Columns:
        changed (language or domain), key, value: shares of NER, medians over models.
    """
    counts = spectra.groupby("dataset")["language"].nunique()
    dataset = counts.idxmax() if len(counts) else None
    english, same = spectra["language"] == _ENGLISH, spectra["dataset"] == dataset
    origins = spectra[english & same]
    moved = _with_all_models(spectra[english ^ same].merge(origins, on="model", suffixes=("", "_origin")))
    shifts = {kind: (moved[f"ner_{kind}"] / moved[f"ner_{kind}_origin"] - 1).abs() for kind in KINDS}
    changed = (moved["dataset"] == dataset).map({True: "language", False: "domain"})
    return moved.assign(changed=changed, **shifts).groupby(["changed", *_DATA])[list(KINDS)].median().reset_index()


def _kv_capacity(cells: pd.DataFrame) -> _Answer:
    spectra = one_a_spectrum(cells)
    models = spectra.groupby("model")["kv_dim"].first()
    _require(
        len(models) >= _FEWEST_MODELS and models.nunique() > 1,
        f"it takes {_FEWEST_MODELS} models of several sizes of the cache, and there are {len(models)}",
    )
    shared = _with_all_models(spectra)
    _require(len(shared) > 0, "no dataset was measured with all models")
    parts, statistics, supported = [], dict[str, float](), True
    means = -shared.groupby("model")[[f"ner_{kind}" for kind in KINDS]].mean()
    correlations = _spearman_and_p([[means[name]] for name in means], [models.reindex(means.index)])
    for kind, (rho, p) in zip(KINDS, correlations, strict=True):
        supported &= p <= _SIGNIFICANT
        parts.append(f"of {kind}s {-rho:.2f} (one-sided p = {p:.2g})")
        statistics |= {f"{kind}_spearman": -rho, f"{kind}_p": p}
    said = f"over {len(models)} models, Spearman's correlation of kv_dim with NER is {' and '.join(parts)}"
    return said, supported, statistics | {"models": len(models)}


def _rank_collapse(cells: pd.DataFrame) -> _Answer:
    spectra = one_a_spectrum(cells)
    english = spectra[spectra["language"] == _ENGLISH]
    others = spectra[spectra["language"] != _ENGLISH]
    pairs = _with_all_models(others.merge(english, on=["model", "dataset"], suffixes=("", "_english")))
    count = pairs["language"].nunique()
    _require(
        count >= _FEWEST_OF_ONE_SIGN,
        f"it takes {_FEWEST_OF_ONE_SIGN} languages beside English, measured with all models, and there are {count}",
    )
    parts, statistics, supported = [], {"languages": float(count)}, True
    for kind in KINDS:
        drops = (1 - pairs[f"ner_{kind}"] / pairs[f"ner_{kind}_english"]).groupby(pairs["language"]).mean()
        mean, (low, high) = float(drops.mean()), mean_interval(drops)
        supported &= low > 0
        interval = f"95 % interval over {count} languages {100 * low:.1f} to {100 * high:.1f}"
        most = f"most in {drops.idxmax()}, {100 * drops.max():.1f} %"
        parts.append(f"of {kind}s by {100 * mean:.1f} % ({interval}; {most})")
        statistics |= {f"{kind}_drop": mean, f"{kind}_low": low, f"{kind}_high": high}
    return f"NER of other languages lies below that of English: {', '.join(parts)}", supported, statistics


def _with_all_models(spectra: pd.DataFrame) -> pd.DataFrame:
    """Keep the datasets and languages of all models: means over others would differ by which models they are of."""
    models = spectra["model"].nunique()
    return spectra.groupby(_DATA).filter(lambda group: group["model"].nunique() == models)


def _cost(cells: pd.DataFrame) -> _Answer:
    grid = cells[on_own_data(cells) & cells["grid_mean_nd_ppl"].notna()]
    grid = one_a_spectrum(grid[np.isfinite(grid["grid_mean_nd_ppl"])])
    grid = grid.groupby("model").filter(lambda group: len(group) > _FEWEST)
    _require(len(grid) > 0, f"it takes more than {_FEWEST} cells of one model with rank_budget=grid")
    _require(grid["surface"].nunique() == 1, "cost was measured in several ways: other ratios, targets or limits")
    both = grid.assign(ner_both=(grid["ner_key"] + grid["ner_value"]) / 2)
    parts, statistics = [], dict[str, float](cells=len(grid))
    models = [group for _, group in both.groupby("model")]
    names = {"both": "keys and values together", "key": "keys", "value": "values"}
    correlations = _spearman_and_p(
        [[group[f"ner_{name}"] for group in models] for name in names], [group["grid_mean_nd_ppl"] for group in models]
    )
    for (name, said), (rho, p) in zip(names.items(), correlations, strict=True):
        parts.append(f"of {said} {rho:.2f} (one-sided p = {p:.2g})")
        statistics |= {f"{name}_spearman": rho, f"{name}_p": p}
    found = ", ".join(parts)
    said = (
        f"over {len(grid)} cells, ranked within each model, Spearman's correlation of mean ND-PPL with NER is {found}"
    )
    return said, statistics["both_p"] <= _SIGNIFICANT, statistics


def _spearman_and_p(
    predictors: Sequence[Sequence[ArrayLike]], predicted: Sequence[ArrayLike]
) -> list[tuple[float, float]]:
    """Return Spearman's correlation within groups for each predictor, and the p value of one this large by chance.

    Chance: what is predicted is permuted within each group, for all predictors alike.

    Args:
        predictors: Of each, the values of every group.
        predicted: The values of every group.
    """
    y = [_centred_ranks(group) for group in predicted]
    x = [np.stack([_centred_ranks(group) for group in groups]) for groups in zip(*predictors, strict=True)]
    norms = np.sqrt(sum(np.square(part).sum(1) for part in x) * sum(part @ part for part in y))
    _require(norms.all(), "all cells have the same NER, or the same of what it is correlated with")
    draws = np.random.default_rng(_SEED)
    found = sum(of @ part for of, part in zip(x, y, strict=True))
    by_chance = sum(
        draws.permuted(np.tile(part, (_PERMUTATIONS, 1)), axis=1) @ of.T for of, part in zip(x, y, strict=True)
    )
    as_large = np.sum(by_chance >= found - 1e-9 * norms, axis=0)
    return list(zip((found / norms).tolist(), ((1 + as_large) / (1 + _PERMUTATIONS)).tolist(), strict=True))


def _centred_ranks(values: ArrayLike) -> Samples:
    ranks = stats.rankdata(np.asarray(values))
    return np.asarray(ranks - ranks.mean())


def _require(enough: bool, missing: str) -> None:
    if not enough:
        raise _TooLittle(missing)


_CLAIMS: dict[str, _Test] = {
    "Keys are more compressible than values.": _keys_and_values,
    "Another language changes NER more than another domain does.": _languages_and_domains,
    "The larger the cache of a model (kv_dim), the smaller its NER.": _kv_capacity,
    "Ranks collapse in languages other than English.": _rank_collapse,
    "The higher NER is, the more compression costs.": _cost,
}
