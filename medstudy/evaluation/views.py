"""What a reader of the comparison notebook sees: tables that are rounded, in order, and tagged as aggregates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS, BASELINES
from medstudy.evaluation.comparison import FinishedRun
from medstudy.evaluation.evaluate import p_text, value_text
from medstudy.evaluation.verdict import published
from medstudy.show import aggregate

if TYPE_CHECKING:
    import pandas as pd

_CELL = ["task", "model"]


def verdicts(table: pd.DataFrame, *scopes: str) -> pd.DataFrame:
    """Rows of verdicts.csv of these scopes, rounded: a line a contrast, with the verdict of its scope and name."""
    names = ["scope", "name", "outcome", "contrast"]
    rows = table[table["scope"].isin(scopes)]
    shown = rows[names].join(rows[["difference", "low", "high"]].map("{:+.3f}".format, na_action="ignore").fillna(""))
    shown = shown.assign(p=rows["p"].map(p_text), cases=rows["n_cases"], seeds=rows["n_seeds"], verdict=rows["verdict"])
    return aggregate(shown.set_index(names), [*names, "p", "verdict"])


def sentences(table: pd.DataFrame, *scopes: str) -> Any:
    """What was found for every name of these scopes, one sentence each, as Markdown."""
    from IPython.display import Markdown

    named = table[table["scope"].isin(scopes)].drop_duplicates(["scope", "name"]).fillna({"verdict": ""})
    lines = (f"- **{v.verdict or v.name}.** {v.sentence}" for v in named.itertuples())
    return aggregate(Markdown("\n".join(lines)))


def values(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of tables/metrics.csv, a column an arm."""
    names = [*_CELL, "metric"]
    text = table.assign(text=[value_text(cell) for cell in table.to_dict("records")])
    wide = text.pivot_table("text", names, "arm", aggfunc="first", sort=False).fillna("")
    return aggregate(wide[[arm for arm in ARMS if arm in wide]], names)


def baselines(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of tables/metrics.csv of the baselines, which no model has a part in: a line a task and baseline."""
    names = ["task", "arm"]
    rows = table[
        table["arm"].isin(BASELINES) & ~table["metric"].isin(["unparsed", "rescued", "length", "accuracy_parsed"])
    ]
    wide = rows.pivot_table("value", names, "metric", sort=False).map("{:.3f}".format, na_action="ignore").fillna("")
    return aggregate(wide.join(rows.groupby(names).agg(n=("n", "max"), seeds=("seeds", "max"))), names)


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs, their tokens, and seconds of each step, means over seeds."""
    return aggregate(table.set_index(_CELL).round(1).fillna(""), _CELL)


def runs(finished: list[FinishedRun]) -> pd.DataFrame:
    """The runs that went in: data, sizes, time and gates that failed."""
    import pandas as pd

    rows = [
        {name: run.parameters[name] for name in (*_CELL, "seed", "data", "n_train", "n_test")}
        | {"pairs": run.record["pairs"], "seconds": round(sum(s or 0 for s in run.record["seconds"].values()))}
        | {"failed gates": ", ".join(run.failed_gates) or "none"}
        for run in finished
    ]
    table = pd.DataFrame(rows).rename(columns={"data": "data card"}).set_index([*_CELL, "seed"])
    return aggregate(table, [*_CELL, "data card", "failed gates"])


def published_values(finished: list[FinishedRun]) -> pd.DataFrame:
    """The published study's numbers for these tasks and model families."""
    import pandas as pd

    found = pd.concat([published(*cell) for cell in dict.fromkeys(run.cell for run in finished)]).drop_duplicates()
    names = ["task", "outcome", "metric", "model"]
    columns = ["arm", "value", "contrast", "p_value"]
    return aggregate(
        found[names + columns].astype(object).fillna("").set_index(names), [*names, "arm", "contrast", "p_value"]
    )
