"""A closer look at a run, a line each: wrong answers, confusions, two arms side by side, a question of one's own.

Nothing here is tagged as an aggregate: of a private source what these show is in the notebook that is open, and in no
other that leaves ``private/``.
"""

import json
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from medstudy.data.cases import Case, DataError
from medstudy.evaluation.views import show_counts
from medstudy.files import from_root
from medstudy.report.privacy import card_of, is_private
from medstudy.runs import Run
from medstudy.tasks import get_task
from medstudy.tasks.base import Task

UNREAD = "not readable"


def wrong_answers(run: Run | str | Path, arm: str, n: int = 20) -> Styler:
    """The first ``n`` test cases that an arm answered wrong: text, right answer, its answer."""
    rows = predictions_of(run, arm).set_index("case_id")
    return _whole(rows[rows["score_correct"] < 1][["text", "gold", "output"]].head(n))


def side_by_side(run: Run | str | Path, first: str, second: str, n: int = 20) -> Styler:
    """The first ``n`` test cases that two arms answered otherwise, with the right answer."""
    one, other = (predictions_of(run, arm).set_index("case_id") for arm in (first, second))
    table = one[["text", "gold"]].assign(**{first: one["output"], second: other["output"]})
    return _whole(table[one["answer"] != other["answer"]].head(n))


def confusion(run: Run | str | Path, arm: str, outcome: str = "") -> pd.DataFrame:
    """How often an arm gave each answer (columns) where each was right (rows), in the card's order of labels.

    Of a private source counts of 1 to 10 are masked, as somebody may release the cell by hand. ``outcome``: by default
    urgency where there is one, else the first that has labels.

    Raises:
        DataError: the task has no such outcome with labels.
    """
    rows, folder = predictions_of(run, arm), _folder(run)
    card = card_of(folder).model_copy(update={"shareable": not is_private(folder)})
    labels = card.labels
    outcome = outcome or ("urgency" if "urgency" in labels else next(iter(labels), ""))
    if outcome not in labels:
        allowed = ", ".join(labels) or "none, answers are text"
        raise DataError(f"no outcome '{outcome}' with labels (allowed: {allowed})")
    right, said = ([json.loads(text).get(outcome, UNREAD) for text in rows[name]] for name in ("gold", "answer"))
    table = pd.crosstab(pd.Series(right, name=f"right {outcome}"), pd.Series(said, name=arm))
    return show_counts(card, table.reindex(index=labels[outcome], columns=[*labels[outcome], UNREAD], fill_value=0))


def ask(run: Run, arm: str, text: str, task: Task | None = None) -> str:
    """What a trained arm of this notebook, or ``base``, answers to a text of one's own; nothing is stored.

    Raises:
        DataError: the arm has no model of its own in this notebook.
    """
    from medstudy.training.chat import load_chat
    from medstudy.training.decoding import Decoding, decode
    from medstudy.training.models import load_model

    adapters = {name: stage.folder / "adapter" for name, stage in run.stages.items()}
    models = {"base": None} | {name: adapter for name, adapter in adapters.items() if adapter.is_dir()}
    if arm not in models:
        raise DataError(f"no model of arm '{arm}' (allowed: {', '.join(models)})")
    task = task or get_task(run.params.task, card_of(run.folder))
    model = load_model(run.params, models[arm], merged=True)
    how = Decoding(run.params.max_new_tokens, 1)
    return decode(model, load_chat(run.params), [task.messages(Case("own", "own", text, {}, {}))], how).texts[0][0]


def predictions_of(run: Run | str | Path, *arms: str) -> pd.DataFrame:
    """Rows of predictions.parquet, of these arms or all, with the ``text`` of the case.

    Raises:
        DataError: there are no predictions yet, or none of these arms.
    """
    private = _folder(run) / "private"
    if not (private / "predictions.parquet").is_file():
        raise DataError(f"{private.parent} has no predictions yet: run the cell that makes them, or give another run")
    table = pd.read_parquet(private / "predictions.parquet")
    known = list(table["arm"].unique())
    if missing := [arm for arm in arms if arm not in known]:
        raise DataError(f"no arm '{', '.join(missing)}' (allowed: {', '.join(known)})")
    texts = pd.read_parquet(private / "cases.parquet").set_index("case_id")["texts"].str[0]
    return table[table["arm"].isin(arms or known)].assign(text=lambda rows: rows["case_id"].map(texts))


def _folder(run: Run | str | Path) -> Path:
    return run.folder if isinstance(run, Run) else from_root(run)


def _whole(table: pd.DataFrame) -> Styler:
    """Unlike a plain table it cuts no text off; ``.data`` is the table itself."""
    return table.style.set_properties(**{"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top"})
