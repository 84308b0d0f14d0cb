"""GPT-scores: what the judgements of a cell come to."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kvcore.evaluation.intervals import NO_INTERVAL, Interval, bootstrap_interval, mean_interval, ratio_of_sums

# Scores that lie this close together, on a scale from 1 to 10, tell nothing apart.
_NO_INFORMATION = 0.05


def score_table(judgements: pd.DataFrame, points: Sequence[tuple[float, float]]) -> pd.DataFrame:
    """Return the mean score at each point and of each anchor.

    Args:
        judgements: From `judge_answers`.
        points: (key ratio, value ratio) of each point, by its index.

    Returns:
        A row for each point, in order, then one for each anchor. Columns point (-1: an anchor), anchor (missing,
        `untruncated` or `reference`), key_ratio and value_ratio (NaN for an anchor), score (mean over prompts,
        missing ones left out), score_low and score_high (95 % bootstrap interval over prompts), judged (number
        of scores), missing (number of missing ones), empty (number of empty answers, which are among the judged).
    """
    rows: list[dict[str, object]] = []
    for point, (key_ratio, value_ratio) in enumerate(points):
        place: dict[str, object] = {"point": point, "anchor": None, "key_ratio": key_ratio, "value_ratio": value_ratio}
        rows.append(place | _mean_score(judgements[judgements["point"] == point]))
    for anchor in sorted(judgements["anchor"].dropna().unique(), reverse=True):
        place = {"point": -1, "anchor": anchor, "key_ratio": None, "value_ratio": None}
        rows.append(place | _mean_score(judgements[judgements["anchor"] == anchor]))
    types = {"anchor": "str", "key_ratio": "float64", "value_ratio": "float64", "score": "float64"}
    return pd.DataFrame(rows).astype(types)


def mean_over_grid(judgements: pd.DataFrame, scores: pd.DataFrame) -> tuple[float | None, Interval]:
    """Return the mean score over the points of a grid without (1, 1), and its 95 % bootstrap interval over prompts.

    Args:
        judgements: From `judge_answers`.
        scores: From `score_table`.

    Returns:
        None where the points are not those of a grid, or no answer has a score.
    """
    by_prompt = grid_scores(judgements, scores)
    if by_prompt.empty:
        return None, NO_INTERVAL
    sums, counts = by_prompt.sum(axis=1).to_numpy(dtype="float64"), by_prompt.count(axis=1).to_numpy(dtype="float64")
    return float(sums.sum() / counts.sum()), bootstrap_interval([sums, counts], ratio_of_sums)


def grid_scores(judgements: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores at the points of a grid without (1, 1): a row for each judged prompt, a column a point."""
    truncated = (scores["key_ratio"] < 1) | (scores["value_ratio"] < 1)
    points = scores.loc[truncated & scores["key_ratio"].notna(), "point"]
    wanted = judgements[judgements["point"].isin(points)].dropna(subset="score")
    return wanted.pivot(index="prompt", columns="point", values="score")


def _mean_score(judgements: pd.DataFrame) -> dict[str, object]:
    scores = judgements["score"].dropna().to_numpy(dtype="float64")
    low, high = mean_interval(scores)
    return {
        "score": float(scores.mean()) if len(scores) else float("nan"),
        "score_low": low,
        "score_high": high,
        "judged": len(scores),
        "missing": int(judgements["score"].isna().sum()),
        "empty": int(judgements["empty"].sum()),
    }


def carries_information(judgements: pd.DataFrame) -> bool:
    """Say whether the judge told anything apart: false if all its scores are the same, of more than one answer."""
    scores = judgements.loc[judgements["asked"], "score"].dropna()
    return len(scores) < 2 or float(scores.max() - scores.min()) > _NO_INFORMATION


def summarize(judgements: pd.DataFrame) -> dict[str, Any]:
    """Return what a record says of all judgements together, as plain values."""
    missing = Counter(str(reason).partition(":")[0] for reason in judgements["missing_reason"].dropna())
    return {
        "items": len(judgements),
        "missing": dict(missing),
        "empty": int(judgements["empty"].sum()),
        "cached": int(judgements["cached"].sum()),
        "carries_information": carries_information(judgements),
    }
