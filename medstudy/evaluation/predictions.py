"""The predictions table: one row an arm and case, made, and checked before it is compared."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from medstudy.arms import ARMS, BASELINES, CONTRASTS
from medstudy.data.cases import Case
from medstudy.evaluation.metrics import PredictionsError
from medstudy.tasks.base import Task

COLUMNS = ("case_id", "group_id", "arm", "output", "status", "answer", "gold")
_ARMS = (*ARMS, *BASELINES)
Pair = tuple[str, str]


def predictions_table(
    task: Task,
    cases: list[Case],
    answers: Mapping[str, list[str]],
    probabilities: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Parse and score every arm's outputs, which are in the order of ``cases``.

    Columns are `COLUMNS` (answer and gold as JSON text by outcome) and ``score_*``: 0 for an answer that was not
    parsed. ``score_rescued`` is 1 where one could be read although not in the exact form. With ``probabilities`` (arm
    -> (cases, labels), where one outcome has labels) also ``score_brier``, the mean squared error over the labels, and
    ``score_p_positive``. ``attrs["shareable"]`` is the card's: small counts of other sources are masked.
    """
    rows = []
    for arm, outputs in answers.items():
        for i, (case, output) in enumerate(zip(cases, outputs, strict=True)):
            answer = task.parse(output)
            row = {"case_id": case.case_id, "group_id": case.group_id, "arm": arm, "output": output}
            row |= {"status": answer.status, "answer": _json(answer.value), "gold": _json(case.gold)}
            row |= {f"score_{name}": value for name, value in task.score(answer, case).items()}
            row["score_rescued"] = float(answer.status == "parsed" and not answer.exact)
            if probabilities:
                row |= _probability_scores(task, case, probabilities[arm][i])
            rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs["shareable"] = task.card.shareable
    return table


def _probability_scores(task: Task, case: Case, probabilities: np.ndarray) -> dict[str, float]:
    [(outcome, labels)] = task.card.labels.items()
    p = dict(zip(labels, probabilities, strict=True))
    errors = [(value - (label == case.gold[outcome])) ** 2 for label, value in p.items()]
    scores = {"score_brier": sum(errors) / len(errors)}
    return scores | ({"score_p_positive": p[task.card.positive]} if task.card.positive else {})


def _json(value: Mapping[str, str]) -> str:
    return json.dumps(dict(value), ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class Answers:
    """Answers of all seeds: a table a seed and arm, the unit of each row, and whether all sources may be shown."""

    frames: list[dict[str, pd.DataFrame]]
    units: list[np.ndarray]
    arms: list[str]
    groups: list[str]
    n_cases: int
    shareable: bool

    @classmethod
    def collect(cls, tables: list[pd.DataFrame]) -> Self:
        """Raises `PredictionsError` where the tables of the seeds cannot be compared, without a case's text."""
        for table in tables:
            _same_cases(table)
        whole = pd.concat([t[["case_id", "group_id", "gold"]] for t in tables])
        variants = whole.groupby("case_id")[["gold", "group_id"]].nunique()
        if torn := int((variants != 1).any(axis=1).sum()):
            raise PredictionsError(f"{torn} case ids stand for several golds or groups; case ids must be unique")
        present = [set(t["arm"]) for t in tables]
        if any(arms != present[0] for arms in present):
            raise PredictionsError(f"seeds have different arms: {[*map(sorted, present)]}; run the same arms")
        arms = [arm for arm in _ARMS if arm in present[0]]
        groups = sorted(whole["group_id"].unique())
        frames = [{arm: t[t["arm"] == arm] for arm in arms} for t in (t.sort_values("case_id") for t in tables)]
        units = [np.searchsorted(groups, by_arm[arms[0]]["group_id"]) for by_arm in frames]
        shareable = all(t.attrs.get("shareable", False) for t in tables)
        return cls(frames, units, arms, groups, whole["case_id"].nunique(), shareable)

    @property
    def pairs(self) -> list[Pair]:
        return [pair for pair in CONTRASTS if set(pair) <= set(self.arms)]

    @property
    def independent(self) -> bool:
        """One answer a unit, so that Wilson and McNemar hold."""
        return len(self.frames) == 1 and len(self.groups) == self.n_cases


def _same_cases(predictions: pd.DataFrame) -> None:
    """Every arm answered the same cases, once each."""
    if missing := [name for name in COLUMNS if name not in predictions]:
        raise PredictionsError(f"predictions lack the column(s) {', '.join(missing)}; they have {list(predictions)}")
    if unknown := set(predictions["arm"]) - set(_ARMS):
        raise PredictionsError(f"unknown arm {sorted(map(str, unknown))}; allowed: {', '.join(_ARMS)}")
    times = pd.crosstab(predictions["case_id"], predictions["arm"])
    if len(wrong := times[(times != 1).any(axis=1)]):
        first = wrong.iloc[0]
        counts = ", ".join(f"{arm} {n}" for arm, n in first[first != 1].items())
        raise PredictionsError(
            f"{len(wrong)} cases, e.g. '{first.name}', were not answered once by every arm (times: {counts}); "
            "give all arms the same cases"
        )
