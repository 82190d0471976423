"""What DPO adds over SFT with fewer and more pairs: how much labelling would pay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medstudy.data.cases import Case
from medstudy.evaluation.evaluate import evaluate
from medstudy.evaluation.predictions import predictions_table
from medstudy.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd


def learning_curve(task: Task, cases: list[Case], sft: list[str], by_pairs: Mapping[int, list[str]]) -> pd.DataFrame:
    """The contrast dpo-sft of every primary outcome for each number of pairs.

    Args:
        task: scores the answers.
        cases: test cases, in the order of the answers.
        sft: answers of the SFT model.
        by_pairs: number of pairs -> answers of the model that DPO made from so many.

    Returns:
        Columns pairs, metric, difference, low, high, n; one row a number of pairs and outcome.
    """
    import pandas as pd

    card, rows = task.card, []
    for pairs, answers in sorted(by_pairs.items()):
        table = predictions_table(task, cases, {"sft": sft, "dpo": answers})
        _, contrasts = evaluate(table, card.task, card.labels, card.positive)
        keys = ("metric", "difference", "low", "high", "n")
        rows += [{"pairs": pairs} | {k: row[k] for k in keys} for row in contrasts if row["primary"]]
    return pd.DataFrame(rows)
