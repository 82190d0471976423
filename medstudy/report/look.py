"""A closer look at a run, a line each: wrong answers, confusions, two arms side by side, a question of one's own.

Nothing here is tagged as an aggregate: of a private source what these show stays in ``private/``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.data.cases import Case, DataError
from medstudy.report.privacy import card_of
from medstudy.runs import Run
from medstudy.tasks import get_task
from medstudy.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

UNREAD = "not readable"


def wrong_answers(run: Run | str | Path, arm: str, n: int = 20) -> Styler:
    """The first ``n`` test cases that an arm answered wrong: text, right answer, its answer."""
    rows = _answers(run, arm)
    return _whole(rows[rows["score_correct"] < 1][["text", "gold", "output"]].head(n))


def side_by_side(run: Run | str | Path, first: str, second: str, n: int = 20) -> Styler:
    """The first ``n`` test cases that two arms answered otherwise, with the right answer."""
    one, other = _answers(run, first), _answers(run, second)
    table = one[["text", "gold"]].assign(**{first: one["output"], second: other["output"]})
    return _whole(table[one["answer"] != other["answer"]].head(n))


def confusion(run: Run | str | Path, arm: str, outcome: str = "") -> pd.DataFrame:
    """How often an arm gave each answer (columns) where each was right (rows), in the card's order of labels.

    ``outcome``: by default urgency where there is one, else the first that has labels.

    Raises:
        DataError: the task has no such outcome with labels.
    """
    import pandas as pd

    labels = card_of(_folder(run), {}).labels
    outcome = outcome or ("urgency" if "urgency" in labels else next(iter(labels), ""))
    if outcome not in labels:
        raise DataError(
            f"no outcome '{outcome}' with labels (allowed: {', '.join(labels) or 'none, answers are text'})"
        )
    rows = _answers(run, arm)
    right, said = ([json.loads(text).get(outcome, UNREAD) for text in rows[name]] for name in ("gold", "answer"))
    table = pd.crosstab(pd.Series(right, name=f"right {outcome}"), pd.Series(said, name=arm))
    return table.reindex(index=labels[outcome], columns=[*labels[outcome], UNREAD], fill_value=0)


def ask(run: Run, arm: str, text: str, task: Task | None = None) -> str:
    """What a trained arm of this notebook, or ``base``, answers to a text of one's own; nothing is stored.

    Raises:
        DataError: the arm has no model of its own in this notebook.
    """
    from medstudy.training.chat import load_chat
    from medstudy.training.decoding import Decoding, decode
    from medstudy.training.models import load_model

    trained = {
        name: stage.folder / "adapter" for name, stage in run.stages.items() if (stage.folder / "adapter").is_dir()
    }
    if arm != "base" and arm not in trained:
        raise DataError(f"no model of arm '{arm}' (allowed: {', '.join(['base', *trained])})")
    task = task or get_task(run.params.task, card_of(run.folder, {}))
    model = load_model(run.params, trained.get(arm), merged=True)
    how = Decoding(run.params.max_new_tokens, 1)
    return decode(model, load_chat(run.params), [task.messages(Case("own", "own", text, {}, {}))], how).texts[0][0]


def compare_runs(first: Run | str | Path, second: Run | str | Path) -> pd.DataFrame:
    """Two runs, or the folders of two studies: parameters that differ, then every value, side by side.

    Of studies: differences and verdicts of every scope.
    """
    import pandas as pd

    folders = _folder(first), _folder(second)
    if all((folder / "verdicts.csv").is_file() for folder in folders):
        keys, kept = ["scope", "name", "outcome", "contrast"], ["difference", "low", "high", "verdict"]
        tables = [pd.read_csv(folder / "verdicts.csv").set_index(keys)[kept] for folder in folders]
        return tables[0].join(tables[1], how="outer", suffixes=(" first", " second"))
    asked = [_saved(folder, "run")["parameters"] for folder in folders]
    other = {("parameter", k): (asked[0].get(k), v) for k, v in asked[1].items() if asked[0].get(k) != v}
    values: list[dict[tuple[str, str], Any]] = [
        {(arm, name): cell["value"] for arm, cells in _saved(folder, "metrics").items() for name, cell in cells.items()}
        for folder in folders
    ]
    rows = other | {key: (values[0].get(key), values[1].get(key)) for key in values[0] | values[1]}
    index = pd.MultiIndex.from_tuples(rows, names=["arm", "what"])
    return pd.DataFrame(list(rows.values()), index=index, columns=["first", "second"], dtype=object)


def _folder(run: Run | str | Path) -> Path:
    return run.folder if isinstance(run, Run) else Path(run)


def _saved(folder: Path, name: str) -> Any:
    file = folder / f"{name}.json"
    if not file.is_file():
        raise DataError(f"{file} does not exist: give a finished run (results/…/seed0), or two studies' folders")
    return json.loads(file.read_text(encoding="utf-8"))


def _answers(run: Run | str | Path, arm: str) -> pd.DataFrame:
    """An arm's rows of predictions.parquet by case, with the case's text."""
    import pandas as pd

    private = _folder(run) / "private"
    if not (private / "predictions.parquet").is_file():
        raise DataError(f"{private.parent} has no predictions yet; run the cell that makes them")
    table = pd.read_parquet(private / "predictions.parquet")
    if arm not in set(table["arm"]):
        raise DataError(f"no arm '{arm}' (allowed: {', '.join(table['arm'].unique())})")
    cases = pd.read_parquet(private / "cases.parquet").set_index("case_id")["texts"].str[0]
    return table[table["arm"] == arm].set_index("case_id").assign(text=cases)


def _whole(table: pd.DataFrame) -> Styler:
    """Unlike a plain table it cuts no text off; ``.data`` is the table itself."""
    return table.style.set_properties(**{"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top"})
