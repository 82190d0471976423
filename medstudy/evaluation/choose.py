"""Settings of an arm, chosen on validation cases from candidates; the test cases are never looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medstudy.data.cases import Case
from medstudy.evaluation.metrics import score, task_metrics
from medstudy.evaluation.predictions import predictions_table
from medstudy.params import RunParams
from medstudy.runs import Run, Stage
from medstudy.show import OWN, aggregate
from medstudy.tasks.base import Task
from medstudy.training.generation import answer_cases

if TYPE_CHECKING:
    import pandas as pd


def choose(
    run: Run, arm: str, task: Task, validation: list[Case], trials: Sequence[tuple[RunParams, Stage]]
) -> tuple[Stage, pd.DataFrame]:
    """The trial that answers validation cases best; of equal ones the first. It becomes the arm.

    The score is the mean of the task's primary metrics. A single trial is taken as it is, and answers nothing.
    What was tried is kept for run.json under ``tried``.

    Args:
        run: notes what was chosen.
        arm: whose trainings these are.
        task: words the prompts and scores the answers.
        validation: cases of the validation split.
        trials: parameters (of `RunParams.tries`) and the training that was made with them.

    Returns:
        The chosen training, and a row a trial: its settings, score and number of cases.
    """
    import pandas as pd

    scores = [_score(run, arm, task, validation, stage) for _, stage in trials] if len(trials) > 1 else [None]
    best = max(range(len(trials)), key=lambda i: scores[i] or 0.0)
    tried = [
        {"arm": arm, "settings": params.settings(arm), "score": value, "n": len(validation), "chosen": i == best}
        for i, ((params, _), value) in enumerate(zip(trials, scores, strict=True))
    ]
    stage = trials[best][1]
    run.settle(stage, tried)
    settings = [row["settings"] | {k: v for k, v in row.items() if k != "settings"} for row in tried]
    table = aggregate(pd.DataFrame(settings).set_index("arm"), ["arm", *tried[0]["settings"]])
    table.attrs[OWN] = True
    return stage, table


def _score(run: Run, arm: str, task: Task, cases: list[Case], stage: Stage) -> float:
    """Mean of the primary metrics of one training on the validation cases."""
    answers = answer_cases(run, arm, task, cases, stage)
    table, card = predictions_table(task, cases, {arm: answers}), task.card
    primary = [m for m in task_metrics(card.task, card.labels, card.positive) if m.primary]
    return round(sum(score(m, table, card.labels) for m in primary) / len(primary), 6)
