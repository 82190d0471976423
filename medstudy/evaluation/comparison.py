"""From the predictions of a study's finished runs to its verdicts, tables and figures."""

from collections import Counter
from dataclasses import asdict, dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from medstudy.arms import TRAINED
from medstudy.data.cases import DataError
from medstudy.evaluation.evaluate import evaluate, measure
from medstudy.evaluation.scopes import Cell, contrasts_table, metrics_table, variances_table
from medstudy.evaluation.verdict import RULES, Rules, verdict_table
from medstudy.files import read_json
from medstudy.tasks import TASK_TYPES


class UnlikeRuns(DataError):
    """Runs that may not be pooled; said of private ones too, as it quotes nothing but run.json, which is no secret."""


@dataclass(frozen=True)
class FinishedRun:
    """A run whose end marker says ok: its folder and its run.json."""

    folder: Path
    record: dict[str, Any]

    @property
    def gates(self) -> list[dict[str, Any]]:
        return self.saved("gates")

    @property
    def parameters(self) -> dict[str, Any]:
        return self.record["parameters"]

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters, with what was chosen on validation cases in its place."""
        chosen = (row["settings"] for row in self.record.get("tried", []) if row["chosen"])
        return reduce(or_, chosen, self.parameters)

    @property
    def cell(self) -> tuple[str, str]:
        """Task and model."""
        return self.parameters["task"], self.parameters["model"]

    @property
    def failed_gates(self) -> list[str]:
        """Failed gates, with the reason where one is given; a run without gates has failed too."""
        if not (gates := self.gates):
            return ["no gate was checked"]
        failed = (gate for gate in gates if not gate["passed"])
        return [f"{g['gate']} ({g['reason']})" if g.get("reason") else g["gate"] for g in failed]

    def predictions(self) -> pd.DataFrame:
        """The answers of every arm; holds case text."""
        table = pd.read_parquet(self.folder / "private" / "predictions.parquet")
        table.attrs["shareable"] = self.record["shareable"]
        return table

    def saved(self, name: str) -> Any:
        """One of the run's JSON files; empty where it was not written."""
        return read_json(self.folder / f"{name}.json")


def finished_runs(study: Path) -> list[FinishedRun]:
    """Runs under ``results/<study>`` that ended well, in the order task, model, seed."""
    runs = [FinishedRun(marker.parent, read_json(marker)) for marker in study.glob("*/*/seed*/run.json")]
    ended = [run for run in runs if run.record.get("status") == "ok"]
    tasks = list(TASK_TYPES)
    return sorted(ended, key=lambda run: (tasks.index(run.cell[0]), run.cell[1], run.parameters["seed"]))


def study_cells(runs: list[FinishedRun]) -> list[Cell]:
    """One cell per task and model, over its seeds, computed from the predictions alone; DataError without any run."""
    if not runs:
        raise DataError("no finished run of this study: look at `study` and `results`, and at medstudy status")
    return [_cell(*cell, [run for run in runs if run.cell == cell]) for cell in dict.fromkeys(r.cell for r in runs)]


def _cell(task: str, model: str, runs: list[FinishedRun]) -> Cell:
    predictions = [run.predictions() for run in runs]
    for run, table in zip(runs[1:], predictions[1:], strict=True):
        _refuse_unlike(runs[0], run, set(table["case_id"]) == set(predictions[0]["case_id"]))
    measured = measure(predictions, task, runs[0].record["labels"], runs[0].record["positive"])
    failed = sorted({name for run in runs for name in run.failed_gates})
    cost = {
        "pairs": mean(run.record["pairs"] for run in runs),
        "pair_tokens": mean(run.record["stages"]["dpo"].get("tokens", 0) for run in runs),
    }
    for step in (*TRAINED, "samples"):
        seconds = [run.record["seconds"][step] for run in runs if run.record["seconds"].get(step) is not None]
        cost |= {f"{step}_seconds": round(mean(seconds), 1)} if seconds else {}
    baselines: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, cells in run.saved("baselines").items():
            for metric, cell in cells.items():
                if cell["value"] is not None:
                    baselines.setdefault(name, {}).setdefault(metric, []).append(cell["value"])
    means = {name: {metric: mean(values) for metric, values in of.items()} for name, of in baselines.items()}
    return Cell(task, model, measured, tuple(run.parameters["seed"] for run in runs), failed, means, cost)


def rules_of(study: Path) -> Rules:
    """The rules that the study was judged by; the default where it has not been judged."""
    file = study / "tables" / "rules.csv"
    return Rules(**pd.read_csv(file, dtype={"plan": str, "note": str}).fillna("").loc[0]) if file.is_file() else Rules()


def rules_for(study: Path, runs: list[FinishedRun], margin: float) -> Rules:
    """What the study is judged by now: its frozen plan, if it has one, at the look that its trainings make."""
    if not (plan := read_json(study / "plan.json")):
        return Rules(margin)
    now, looks = min(Counter(run.cell for run in runs).values(), default=0), plan["looks"]
    notes = [] if now in looks else [f"{now} trainings a cell are no planned look ({', '.join(map(str, looks))})"]
    notes += [] if plan["rules"] == RULES else ["the rules are not those of the frozen plan"]
    return Rules(plan["margin"], plan["alpha"], plan["hash"], "; ".join(notes))


def study_tables(cells: list[Cell], rules: Rules) -> dict[str, pd.DataFrame]:
    """The study's CSV files: path from its folder -> table."""
    return {
        "verdicts.csv": verdict_table(cells, rules),
        "tables/metrics.csv": metrics_table(cells),
        "tables/contrasts.csv": contrasts_table(cells),
        "tables/variances.csv": variances_table(cells),
        "tables/costs.csv": pd.DataFrame({"task": cell.task, "model": cell.model, **cell.cost} for cell in cells),
        "tables/rules.csv": pd.DataFrame([asdict(rules)]),
    }


def read_tables(study: Path) -> dict[str, pd.DataFrame]:
    """The tables that `save_tables` wrote."""
    files = (study / "verdicts.csv", *sorted((study / "tables").glob("*.csv")))
    return {file.relative_to(study).as_posix(): pd.read_csv(file) for file in files}


def save_tables(study: Path, tables: dict[str, pd.DataFrame]) -> list[str]:
    """Write the tables, as CSV and LaTeX; returns the CSV files that were there with other contents."""
    (study / "tables").mkdir(exist_ok=True)
    changed = []
    for name, table in tables.items():
        file, text = study / name, table.to_csv(index=False)
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            changed.append(name)
        file.write_text(text, encoding="utf-8")
        table.to_latex(study / "tables" / f"{file.stem}.tex", index=False, escape=True, float_format="%.3f")
    return changed


def recompute(study: Path) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Everything that follows from the predictions, once more, without a model, by the rules it was judged by.

    Returns the study's tables, which are written again, and the files that came out otherwise: of each run's
    metrics.json and contrasts.json, and of the tables.
    """
    runs = finished_runs(study)
    if not runs:
        raise DataError(f"{study} has no finished run; see: medstudy status {study}")
    other = []
    for run in runs:
        found = evaluate(run.predictions(), run.cell[0], run.record["labels"], run.record["positive"])
        for name, value in zip(("metrics", "contrasts"), found, strict=True):
            other += [str(run.folder / f"{name}.json")] if run.saved(name) != value else []
    tables = study_tables(study_cells(runs), rules_of(study))
    return tables, other + [str(study / name) for name in save_tables(study, tables)]


def _refuse_unlike(first: FinishedRun, run: FinishedRun, same_cases: bool) -> None:
    """Seeds may be pooled only if nothing else differs: a run by hand may lie in the same folder."""
    one, two = first.parameters, run.parameters
    names = [name for name in two if one[name] != two[name] and name not in {"seed", "results", "data_root"}]
    other = [f"{name} = {one[name]!r} and {two[name]!r}" for name in names] + ([] if same_cases else ["test cases"])
    if other:
        raise UnlikeRuns(
            f"{', '.join(run.cell)}: seeds {one['seed']} and {two['seed']} differ in {', '.join(other)}; "
            f"move one of {first.folder} and {run.folder} away, or run the study again"
        )
