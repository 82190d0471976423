"""The answers that are compared: every arm the same cases once, with the same gold, or an error that names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medstudy.arms import ARMS, BASELINES, CONTRASTS
from medstudy.evaluation.metrics import PredictionsError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("case_id", "group_id", "arm", "output", "status", "answer", "gold")
STATUSES = ("parsed", "unparsed", "out_of_range")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Answers:
    """Answers of all seeds: a table a seed and arm, rows in one order, and the resampling unit of each row.

    ``shareable``: every table's ``attrs`` says that its source may be shown, so that no count need be masked.
    """

    frames: list[dict[str, pd.DataFrame]]
    units: list[np.ndarray]
    arms: list[str]
    groups: list[str]
    n_cases: int
    shareable: bool

    @classmethod
    def collect(cls, tables: list[pd.DataFrame]) -> Answers:
        import pandas as pd

        for table in tables:
            validate_predictions(table)
        whole = pd.concat([t[["case_id", "group_id", "gold"]] for t in tables])
        _one_gold(whole)
        present = [sorted(set(t["arm"])) for t in tables]
        if any(arms != present[0] for arms in present):
            raise PredictionsError(f"seeds have different arms: {present}; run the same arms")
        arms = [arm for arm in (*ARMS, *BASELINES) if arm in present[0]]
        groups = sorted(whole["group_id"].unique())
        frames = [{arm: t[t["arm"] == arm] for arm in arms} for t in (t.sort_values("case_id") for t in tables)]
        shareable = all(t.attrs.get("shareable", False) for t in tables)
        units = [np.searchsorted(groups, by_arm[arms[0]]["group_id"]) for by_arm in frames]
        return cls(frames, units, arms, groups, whole["case_id"].nunique(), shareable)

    @property
    def pairs(self) -> list[Pair]:
        return [pair for pair in CONTRASTS if set(pair) <= set(self.arms)]

    @property
    def independent(self) -> bool:
        """One answer a unit, so that Wilson and McNemar hold."""
        return len(self.frames) == 1 and len(self.groups) == self.n_cases


def validate_predictions(predictions: pd.DataFrame) -> None:
    """Check that every arm answered the same cases once, with the same gold.

    Raises:
        PredictionsError: names the arms and case ids that differ; never shows case text.
    """
    missing = [name for name in COLUMNS if name not in predictions]
    if missing:
        raise PredictionsError(f"predictions lack the column(s) {', '.join(missing)}; they have {list(predictions)}")
    if predictions.empty:
        raise PredictionsError("predictions have no rows; generate the answers of at least one arm")
    for name, allowed in (("arm", (*ARMS, *BASELINES)), ("status", STATUSES)):
        unknown = set(predictions[name]) - set(allowed)
        if unknown:
            raise PredictionsError(f"unknown {name} {sorted(map(str, unknown))}; allowed: {', '.join(allowed)}")
    twice = predictions[predictions.duplicated(["arm", "case_id"])]
    if len(twice):
        raise PredictionsError(
            f"{len(twice)} answers are there twice, e.g. {_example(twice)}; keep one per arm and case"
        )
    counts = predictions.groupby("case_id")["arm"].nunique()
    lone = predictions[predictions["case_id"].isin(counts.index[counts < predictions["arm"].nunique()])]
    if len(lone):
        raise PredictionsError(
            f"arms answered different cases: {lone['case_id'].nunique()} cases are missing in some arm, "
            f"e.g. {_example(lone)} has no partner; give every arm the same test cases"
        )
    _one_gold(predictions)


def _one_gold(predictions: pd.DataFrame) -> None:
    """Raises `PredictionsError` where a case id stands for several golds or groups."""
    variants = predictions.groupby("case_id")[["gold", "group_id"]].nunique()
    torn = variants.index[(variants != 1).any(axis=1)]
    if len(torn):
        raise PredictionsError(f"{len(torn)} case ids stand for several golds or groups; case ids must be unique")


def _example(rows: pd.DataFrame) -> str:
    return f"case '{rows['case_id'].iloc[0]}' in arm {rows['arm'].iloc[0]}"
