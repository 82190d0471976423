"""What a reader of a notebook sees: tables, rounded, masked where counts are small, and tagged as aggregates."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from medstudy.arms import ARMS, BASELINES
from medstudy.data.audit import WORDING
from medstudy.data.card import SPLITS, DataCard
from medstudy.data.cases import SMALLEST_COUNT, Case, masked
from medstudy.evaluation.comparison import FinishedRun
from medstudy.evaluation.evaluate import evaluate
from medstudy.evaluation.metrics import LOWER_IS_BETTER
from medstudy.evaluation.scopes import places
from medstudy.show import NOT_SHOWN, aggregate, is_own
from medstudy.tasks.base import Task

_CELL = ["task", "model"]
#: Stands for a count from which a masked one beside it could be told.
HIDDEN = "hidden"
#: Under which of several scopes that say the same a reader is told it.
_TOLD = ("task", "study", "kind", "cell")
_PUBLISHED = pd.read_csv(Path(__file__).parents[1] / "published_results.csv")
#: Model family in our ids -> its name in published_results.csv.
_PUBLISHED_MODELS = {"llama": "Llama3-8B", "mistral": "Mistral-7B-v2"}


def p_text(p: float | None) -> str:
    """A p value with three digits, never 0; empty where there is none."""
    return "" if p is None or np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def value_text(cell: Mapping[str, Any], digits: int = 3) -> str:
    """A cell of metrics.json as it is read: rounded, a limit where a small count is masked, empty without value."""
    if cell["value"] is not None and not np.isnan(cell["value"]):
        return f"{cell['value']:.{digits}f}"
    low, high = cell["low"], cell["high"]
    if low is None or high is None or np.isnan([low, high]).any():
        return ""
    return f"< {high:.{digits}f}" if low == 0 else f"> {low:.{digits}f}"


def contrasts_view(contrasts: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Contrasts as a reader sees them: rounded, and no p of 0."""
    columns = ["contrast", "metric", "difference", "low", "high", "p", "test", "n"]
    table = pd.DataFrame(contrasts)[columns].round(3).assign(p=[p_text(row["p"]) for row in contrasts])
    return _of_enough(table.set_index(columns[:2]), ["contrast", "metric", "test"])


def values_table(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """The values alone: a row an arm or baseline, a column a metric, and the cases."""
    texts = {arm: {name: value_text(cell) for name, cell in cells.items()} for arm, cells in metrics.items()}
    n = {arm: max(cell["n"] for cell in cells.values()) for arm, cells in metrics.items()}
    table = pd.DataFrame(texts).T.fillna("").assign(n=n)
    # rows of one's own, such as subgroups, may be named after patients
    return _of_enough(table, [""] if {*metrics} <= {*ARMS, *BASELINES} else [])


def _of_enough(table: pd.DataFrame, words: Sequence[str]) -> pd.DataFrame:
    """Tagged, unless its values are of so few cases that they tell of single patients."""
    return aggregate(table, words) if len(table) and table["n"].min() >= SMALLEST_COUNT else table


def first_look(predictions: pd.DataFrame, card: DataCard) -> pd.DataFrame:
    """The values of the arms that have answered so far."""
    return values_table(evaluate(predictions, card.task, card.labels, card.positive)[0])


def side_by_side(
    card: DataCard, task: Task, cases: list[Case], answers: Mapping[str, list[str]], n: int = 3
) -> Styler | Markdown:
    """The first ``n`` cases, gold and every arm's output, in full; nothing of a source not shareable."""
    if not card.shareable:
        return Markdown(NOT_SHOWN)
    said = {arm: outputs[:n] for arm, outputs in answers.items()}
    table = pd.DataFrame({"case": [c.text for c in cases[:n]], "gold": [task.target(c) for c in cases[:n]], **said})
    return table.T.style.set_properties(**{"white-space": "pre-wrap", "text-align": "left"})


def show_text(card: DataCard, text: str) -> str:
    """``text`` if the card's source may be shown, else a line that says why not."""
    return text if card.shareable else NOT_SHOWN


def show_counts(card: DataCard, table: pd.DataFrame, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table of counts to look at; of a source that may not be shown, counts of 1 to 10 read ``< 11``.

    Where that masks one label of an outcome alone, or one split of a line, or several whose sum tells them, the next
    smallest reads ``hidden``, as they would follow from the total. Only tables as the package made them (`show.own`)
    are tagged: a user's may be counts of names.

    ``columns``: where the counts of cases are; everywhere, if empty.
    """
    own, counted = is_own(table), [*map(str, columns or table)]
    topics = table["topic"] if "topic" in table else table.index.to_series()
    of_cases = ~topics.astype(str).str.startswith("words")  # lengths of texts are no counts of cases
    # as objects: beside a mean, pandas would turn a count of 168 into 168.00
    table = table.rename(columns=str).astype(object)
    exact = table.copy()
    for name in counted:
        values = zip(table[name], of_cases, strict=True)
        shown = [_count(value, card.shareable or not counts) for value, counts in values]
        table[name] = pd.Series(shown, table.index, dtype=object)
    if not own:
        return table
    if not card.shareable and "topic" in table:
        wording = table["measure"].str.replace(rf"^{WORDING}'.*?' alone", "a wording (not shown) alone", regex=True)
        table["measure"] = wording
        before = None
        while not table.equals(before):  # what is hidden in a line may be alone in its column
            before = table.copy()
            for of in (topics == outcome for outcome in card.labels):
                for name in counted:
                    table.loc[of, name] = unsolved(table.loc[of, name], exact.loc[of, name])
            for row in table.index:
                table.loc[row, [*SPLITS]] = unsolved(table.loc[row, [*SPLITS]], exact.loc[row, [*SPLITS]])
        of = topics == "rows"
        table.loc[of, "source"] = unsolved(table.loc[of, "source"], exact.loc[of, "source"], max)
    return aggregate(table, ["", "topic", "measure", "pairs audit"])  # the package's own words


def _count(value: Any, whole: bool) -> Any:
    if pd.isna(value):
        return ""
    if not isinstance(value, (int, float, np.number)) or not float(value).is_integer():
        return value
    return masked(int(value), whole)


def unsolved(counts: pd.Series, exact: pd.Series, which: Callable[..., Any] = min) -> pd.Series:
    """Counts of which those that are masked follow from their sum, with another one hidden: the smallest, or ``which``.

    So do a single one, few cases together, and counts that are all as small or as large as such can be.
    """
    others = {i: value for i, value in counts.items() if isinstance(value, int) and value > 0}
    of = exact[counts.isin([masked(1, False), HIDDEN])]
    edge = of.isin([1, SMALLEST_COUNT]).all() or (of == SMALLEST_COUNT - 1).all()
    if others and len(of) and (len(of) == 1 or of.sum() < SMALLEST_COUNT or edge):
        return counts.where(counts.index != which(others, key=others.get), HIDDEN)
    return counts


def told_under(table: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str]]:
    """Scope and name in verdicts.csv -> those under which a reader is told it, so that nothing is told twice.

    Of one task, say, study, kind and task are the same. The other has the same cells and verdict, and every number.
    """
    cells, found = table.loc[table["scope"] == "cell", "name"].unique(), {}
    for (scope, name), rows in table.groupby(["scope", "name"], sort=False):
        inside = frozenset(cell for cell in cells if places(cell)[scope] == name) or frozenset([(scope, name)])
        numbers = rows[["contrast", "difference", "low", "high"]].dropna(subset="difference").astype(str)
        found[scope, name] = (inside, rows["verdict"].fillna("").iloc[0]), set(numbers.itertuples(index=False))
    told = {}
    for key, (what, numbers) in found.items():
        same = [other for other, (whose, more) in found.items() if whose == what and numbers <= more]
        told[key] = min(same, key=lambda other: (-len(found[other][1]), _TOLD.index(other[0])))
    return told


def told_once(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of verdicts.csv that a reader is shown (`told_under`)."""
    told = told_under(table)
    return table.loc[[told[key] == key for key in zip(table["scope"], table["name"], strict=True)]]


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences turned so that more is better, also of an ``outcome`` that counts errors, with their ``text``."""
    numbers = rows[["difference", "low", "high"]].map("{:.6g}".format).astype(float)  # as exact as verdicts.csv
    errors = rows["outcome"].isin(LOWER_IS_BETTER)
    numbers[errors] = -numbers.loc[errors, ["difference", "high", "low"]].to_numpy()
    texts = (numbers + 0.0).map("{:+.3f}".format).replace(r"^([+-])0\.", r"\1.", regex=True)
    text = ["" if "nan" in " ".join(row) else "{} [{}, {}]".format(*row) for row in texts.to_numpy()]
    return rows.assign(**numbers, text=text)


def verdicts(table: pd.DataFrame, *scopes: str) -> pd.DataFrame | None:
    """Rows of verdicts.csv of these scopes that are told under them, rounded: a line a contrast; None without any.

    As in the sentences, which say the verdict, ``+`` is better, also for an outcome that counts errors.
    """
    names = ["scope", "name", "outcome", "contrast"]
    rows = gains(told_once(table).query("scope in @scopes"))
    fewer = rows["outcome"].isin(LOWER_IS_BETTER)
    rows["outcome"] = rows["outcome"].where(~fewer, rows["outcome"] + " (+: fewer)")
    if not len(rows):
        return None
    shown = rows[names].join(rows[["difference", "low", "high"]].map("{:+.3f}".format, na_action="ignore").fillna(""))
    shown = shown.assign(p=rows["p"].map(p_text), cases=rows["n_cases"], seeds=rows["n_seeds"])
    return aggregate(shown.set_index(names), [*names, "p"])


def sentences(table: pd.DataFrame, *scopes: str) -> Any:
    """What was found for every name of these scopes that is told under them, one sentence each, as Markdown."""
    named = told_once(table).query("scope in @scopes").drop_duplicates(["scope", "name"]).fillna({"verdict": ""})
    said = "\n".join(f"- **{v.verdict or v.name}.** {v.sentence}" for v in named.itertuples())
    return aggregate(Markdown(said or "*The same is told under another heading.*"))


def values(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of tables/metrics.csv, a column an arm or baseline."""
    names = [*_CELL, "metric"]
    text = table.assign(text=[value_text(cell) for cell in table.to_dict("records")])
    wide = text.pivot_table("text", names, "arm", aggfunc="first", sort=False).fillna("")
    labels = {arm: look.label for arm, look in (ARMS | BASELINES).items() if arm in wide}
    few = table.groupby(_CELL)["n"].max() < SMALLEST_COUNT
    return aggregate(wide[[*labels]].rename(columns=labels), names, enough=not few.any())


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs, their tokens, and seconds of each step, means over seeds."""
    return aggregate(table.set_index(_CELL).round(1).fillna(""), _CELL)


def runs(finished: list[FinishedRun]) -> pd.DataFrame:
    """The runs that went in: data, sizes and gates that failed."""
    names = [*_CELL, "seed", "data", "n_train", "n_test"]
    table = pd.DataFrame([run.parameters for run in finished])[names]
    table["failed gates"] = [", ".join(run.failed_gates) or "none" for run in finished]
    table = table.rename(columns={"data": "data card"}).set_index([*_CELL, "seed"])
    return aggregate(table, [*_CELL, "data card", "failed gates"])


def published(task: str, model: str) -> pd.DataFrame:
    """Values of Savage et al. (JMIR 2025;27:e76048) for this model's family, to display beside a study's; or none."""
    names = [name for family, name in _PUBLISHED_MODELS.items() if family in model.lower()]
    return _PUBLISHED[(_PUBLISHED["task"] == task) & _PUBLISHED["model"].isin(names)].reset_index(drop=True)


def published_values(finished: list[FinishedRun]) -> pd.DataFrame:
    """The published study's numbers for these tasks and model families."""
    found = pd.concat([published(*cell) for cell in dict.fromkeys(run.cell for run in finished)]).drop_duplicates()
    names = ["task", "outcome", "metric", "model"]
    table = found.drop(columns="source").astype(object).fillna("").set_index(names)
    return aggregate(table, [*names, "arm", "contrast", "p_value"])
