"""Settings of an arm, chosen on validation cases from candidates; the test cases are never looked at."""

from collections.abc import Sequence

import pandas as pd

from medstudy.data.cases import Case, masked
from medstudy.evaluation.metrics import score, task_metrics
from medstudy.evaluation.predictions import predictions_table
from medstudy.evaluation.views import HIDDEN
from medstudy.params import RunParams
from medstudy.runs import Run, Stage
from medstudy.show import aggregate
from medstudy.tasks.base import Task
from medstudy.training.generation import answer_cases


def choose(
    run: Run, arm: str, task: Task, validation: list[Case], trials: Sequence[tuple[RunParams, Stage]]
) -> tuple[Stage, pd.DataFrame]:
    """The trial (parameters of `RunParams.tries`, and their training) that answers validation cases best: the arm.

    The score is the mean of the task's primary metrics; of equal ones the first is taken. A single trial answers
    nothing. Also returns a row a trial, which run.json keeps under ``tried``: settings and, of several, score (of few
    cases that may not be shown: hidden), number of cases and choice.
    """
    scores = [_score(run, arm, task, validation, stage) for _, stage in trials] if len(trials) > 1 else [None]
    best = max(range(len(trials)), key=lambda i: scores[i] or 0.0)
    tried = [
        {"arm": arm, "settings": params.settings(arm), "score": value, "n": len(validation), "chosen": i == best}
        for i, ((params, _), value) in enumerate(zip(trials, scores, strict=True))
    ]
    stage, n = trials[best][1], masked(len(validation), task.card.shareable)
    few = {"n": n} | ({"score": HIDDEN} if n != len(validation) and len(trials) > 1 else {})
    told = [row | few for row in tried]
    run.settle(stage, tried, told)
    unsaid = ["settings", *(["score", "n", "chosen"] if len(trials) == 1 else [])]
    table = pd.DataFrame([row["settings"] | row for row in told]).drop(columns=unsaid).set_index("arm")
    return stage, aggregate(table, ["arm", *tried[0]["settings"]])


def _score(run: Run, arm: str, task: Task, cases: list[Case], stage: Stage) -> float:
    table, card = predictions_table(task, cases, {arm: answer_cases(run, arm, task, cases, stage)}), task.card
    primary = [m for m in task_metrics(card.task, card.labels, card.positive) if m.primary]
    return round(sum(score(m, table, card.labels) for m in primary) / len(primary), 6)
