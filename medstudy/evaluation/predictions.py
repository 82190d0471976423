"""The predictions table: one row an arm and case, the source of every number of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medstudy.arms import ARMS
from medstudy.data.audit import WORDING
from medstudy.data.card import DataCard
from medstudy.data.cases import SMALLEST_COUNT, Case
from medstudy.evaluation.metrics import PredictionsError, single_outcome, small_count
from medstudy.show import OWN, aggregate
from medstudy.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

NOT_SHOWN = "[not shown: the data card does not say `shareable: true`]"


def predictions_table(
    task: Task,
    cases: list[Case],
    answers: Mapping[str, list[str]],
    probabilities: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Parse and score every arm's outputs.

    Args:
        task: parses and scores.
        cases: the test cases, in the order of the outputs.
        answers: arm -> output per case.
        probabilities: arm -> probability of each label (cases, labels), where one outcome has labels.

    Returns:
        Columns case_id, group_id, arm, output, status, answer and gold (JSON text by outcome), ``score_*``.
        Every case is there for every arm; an answer that was not parsed scores 0. ``score_rescued`` is 1 where
        the answer could be read although it was not in the exact form. With ``probabilities`` also
        ``score_brier`` (mean squared error over the labels) and, where the card names a positive label,
        ``score_p_positive``. ``attrs["shareable"]`` is the card's: of other tables small counts are masked.
    """
    import pandas as pd

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
    outcome = single_outcome(task.card.labels)
    if outcome is None:
        raise PredictionsError(f"probabilities need one outcome with labels; the card has {list(task.card.labels)}")
    p = dict(zip(task.card.labels[outcome], probabilities, strict=True))
    errors = [(value - (label == case.gold[outcome])) ** 2 for label, value in p.items()]
    scores = {"score_brier": sum(errors) / len(errors)}
    return scores | ({"score_p_positive": p[task.card.positive]} if task.card.positive else {})


def first_look(predictions: pd.DataFrame) -> pd.DataFrame:
    """Per arm: cases, shares answered right, not readable, and read though not in the asked-for form."""
    by_arm = predictions.groupby("arm", sort=False)
    counts = {
        "right": by_arm["score_correct"].sum(),
        "unparsed": by_arm["status"].agg(lambda status: (status != "parsed").sum()),
        "rescued": by_arm["score_rescued"].sum(),
    }
    n = by_arm.size()
    shareable = predictions.attrs.get("shareable", False)
    shares = {name: [_share_text(*of, shareable) for of in zip(hits, n, strict=True)] for name, hits in counts.items()}
    few = f"< {SMALLEST_COUNT}"
    table = n.map(lambda n: n if shareable or n >= SMALLEST_COUNT else few).to_frame("n").assign(**shares)
    return aggregate(table, ["arm"]) if set(table.index) <= set(ARMS) else table


def _share_text(hits: float, n: float, shareable: bool) -> str:
    limits = None if shareable else small_count(hits, n)
    if limits is None:
        return f"{hits / n:.3f}"
    return f"< {limits[1]:.3f}" if limits[0] == 0 else f"> {limits[0]:.3f}"


def side_by_side(card: DataCard, task: Task, cases: list[Case], answers: Mapping[str, list[str]], n: int = 3) -> str:
    """The first ``n`` cases, gold and every arm's output, as Markdown; nothing of a source not shareable."""
    if not card.shareable:
        return NOT_SHOWN
    lines = []
    for i, case in enumerate(cases[:n]):
        lines += [f"**Case {i + 1}**: {_inline(case.text)}", "", "| arm | answer |", "|---|---|"]
        lines += [f"| *gold* | {_inline(task.target(case))} |"]
        lines += [f"| {arm} | {_inline(outputs[i]) or '(empty)'} |" for arm, outputs in answers.items()] + [""]
    return "\n".join(lines)


def show_text(card: DataCard, text: str) -> str:
    """``text`` if the card's source may be shown, else a line that says why not."""
    return text if card.shareable else NOT_SHOWN


def show_counts(card: DataCard, table: pd.DataFrame, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table of counts to look at; of a source that may not be shown, counts of 1 to 10 read ``< 11``.

    Only tables of the package (`show.OWN`) are tagged: a user's may be counts of names.
    Where that hides one label of an outcome alone, the next smallest reads ``hidden``, as the first would
    follow from the total.

    ``columns``: where the counts of cases are; everywhere, if empty.
    """

    def shown(value: object) -> object:
        if pd.isna(value):
            return ""
        number = isinstance(value, (int, float, np.number)) and float(value).is_integer()
        few = not card.shareable and number and 0 < float(value) < SMALLEST_COUNT
        return f"< {SMALLEST_COUNT}" if few else int(value) if number else value

    import pandas as pd

    counted = list(columns) or list(table)
    # as objects: beside a mean, pandas would turn a count of 168 into 168.00
    columns = {str(name): pd.Series(map(shown, table[name]), table.index, dtype=object) for name in counted}
    table = table.astype(object).assign(**columns)
    if not table.attrs.get(OWN):
        return table
    words = ["", "topic", "measure", "pairs audit"]  # the package's own: index and first columns of its tables
    if card.shareable or "topic" not in table:
        return aggregate(table, words)
    wording = table["measure"].str.replace(rf"^{WORDING}'.*?' alone", "a wording (not shown) alone", regex=True)
    return aggregate(_labels_apart(table.assign(measure=wording), card, counted), words)


def _labels_apart(table: pd.DataFrame, card: DataCard, columns: Sequence[str]) -> pd.DataFrame:
    """Where one label's count alone is masked, the next smallest reads ``hidden``."""
    for outcome in card.labels:
        rows = table.index[table["topic"] == outcome]
        for name in columns:
            counts = {i: value for i in rows if isinstance(value := table.loc[i, name], int) and value > 0}
            if sum(table.loc[rows, name] == f"< {SMALLEST_COUNT}") == 1 and counts:
                table.loc[min(counts, key=counts.__getitem__), name] = "hidden"
    return table


def _inline(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def _json(value: Mapping[str, str]) -> str:
    return json.dumps(dict(value), ensure_ascii=False, sort_keys=True)
