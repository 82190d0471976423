"""From the predictions of a study's finished runs to its verdicts, tables and figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from medstudy.data.cases import DataError
from medstudy.evaluation.evaluate import evaluate, pooled
from medstudy.evaluation.verdict import Cell, contrasts_table, metrics_table, verdict_table
from medstudy.params import MARGIN
from medstudy.tasks import TASK_TYPES
from medstudy.training.gates import GATES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FinishedRun:
    """A run whose end marker says ok: its folder, its run.json and its gates.json."""

    folder: Path
    record: dict[str, Any]
    gates: list[dict[str, Any]]

    @property
    def parameters(self) -> dict[str, Any]:
        return self.record["parameters"]

    @property
    def failed_gates(self) -> list[str]:
        """Names of failed gates; a gate that was never checked has failed too."""
        failed = [gate["gate"] for gate in self.gates if not gate["passed"]]
        unchecked = GATES - len(self.gates)
        return failed + ([f"{unchecked} gates not checked"] if unchecked else [])

    def predictions(self) -> pd.DataFrame:
        """The answers of every arm; holds case text."""
        import pandas as pd

        return pd.read_parquet(self.folder / "private" / "predictions.parquet")

    def saved(self, name: str) -> Any:
        """One of the run's JSON files."""
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))


def finished_runs(study: Path) -> list[FinishedRun]:
    """Runs under ``results/<study>`` that ended well, in the order task, model, seed."""
    runs = []
    for marker in study.glob("*/*/seed*/run.json"):
        record = json.loads(marker.read_text(encoding="utf-8"))
        if record.get("status") == "ok":
            gates = json.loads((marker.parent / "gates.json").read_text(encoding="utf-8"))
            runs.append(FinishedRun(marker.parent, record, gates))
    return sorted(runs, key=lambda run: _order(run.parameters))


def study_cells(runs: list[FinishedRun]) -> list[Cell]:
    """One cell per task and model, pooled over seeds, computed from the predictions alone."""
    by_cell: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        by_cell.setdefault((run.parameters["task"], run.parameters["model"]), []).append(run)
    return [_cell(task, model, members) for (task, model), members in by_cell.items()]


def margin_of(study: Path) -> float:
    """The margin that the study was judged by; the default where it has not been judged."""
    import pandas as pd

    file = study / "verdicts.csv"
    judged = pd.read_csv(file).get("margin") if file.is_file() else None
    return MARGIN if judged is None else float(judged[0])


def study_tables(cells: list[Cell], margin: float) -> dict[str, pd.DataFrame]:
    """The study's CSV files: path from its folder -> table."""
    return {
        "verdicts.csv": verdict_table(cells, margin),
        "tables/metrics.csv": metrics_table(cells),
        "tables/contrasts.csv": contrasts_table(cells),
    }


def save_tables(study: Path, tables: dict[str, pd.DataFrame]) -> list[str]:
    """Write the tables, as CSV and LaTeX; returns the CSV files that were there with other contents."""
    changed = []
    for name, table in tables.items():
        file, text = study / name, table.to_csv(index=False)
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            changed.append(name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        latex = study / "tables" / Path(name).with_suffix(".tex").name
        latex.parent.mkdir(exist_ok=True)
        latex.write_text(table.to_latex(index=False, escape=True, float_format="%.3f"), encoding="utf-8")
    return changed


def save_figures(study: Path, tables: dict[str, pd.DataFrame], margin: float) -> dict[str, Figure]:
    """Draw and write the study's figures, ``figures/study`` and ``figures/forest``."""
    from medstudy.report import figures

    contrasts = tables["tables/contrasts.csv"]
    primary = contrasts[contrasts["primary"]]
    main = tables["tables/metrics.csv"].merge(primary[["task", "metric"]].drop_duplicates())
    drawn = {"study": figures.study_figure(main), "forest": figures.forest_figure(primary, margin)}
    for name, figure in drawn.items():
        figures.save(figure, study / "figures" / name)
    return drawn


def recompute(study: Path, margin: float = MARGIN) -> list[str]:
    """Everything that follows from the predictions, once more, without a model.

    Returns the files that came out otherwise. Compared are each run's metrics.json and contrasts.json, and
    the study's tables; figures and tables are written again.

    Raises:
        DataError: there is no finished run.
    """
    runs = finished_runs(study)
    if not runs:
        raise DataError(f"{study} has no finished run; see: medstudy status {study}")
    other = []
    for run in runs:
        task, labels, positive = (run.parameters["task"], run.record["labels"], run.record["positive"])
        found = dict(zip(("metrics", "contrasts"), evaluate(run.predictions(), task, labels, positive), strict=True))
        other += [f"{run.folder / name}.json" for name, value in found.items() if run.saved(name) != value]
    tables = study_tables(study_cells(runs), margin)
    other += [str(study / name) for name in save_tables(study, tables)]
    save_figures(study, tables, margin)
    return other


def baselines(runs: list[FinishedRun]) -> pd.DataFrame:
    """Values of the classical baselines, means over seeds: a line a task and baseline, with n and seeds."""
    import pandas as pd

    rows = [
        {"task": run.parameters["task"], "baseline": name, "metric": metric, "value": cell["value"]}
        | {"n": cell["n"], "seed": run.parameters["seed"]}
        for run in runs
        if (run.folder / "baselines.json").is_file()
        for name, cells in run.saved("baselines").items()
        for metric, cell in cells.items()
    ]
    if not rows:
        return pd.DataFrame()
    # no model has a part in them: of the same seed, all models' runs hold the same
    table = pd.DataFrame(rows).drop_duplicates(["task", "baseline", "metric", "seed"])
    by = table.groupby(["task", "baseline"], sort=False)
    wide = table.groupby(["task", "baseline", "metric"], sort=False)["value"].mean().unstack("metric")
    shown = wide[[m for m in ("f1", "macro_f1", "accuracy", "auroc") if m in wide]]
    return shown.join(by.agg(n=("n", "first"), seeds=("seed", "nunique")))


def training_logs(runs: list[FinishedRun], arm: str = "dpo") -> pd.DataFrame:
    """The training logs of one arm of every run, with columns task, model and seed."""
    import pandas as pd

    logs = []
    for run in runs:
        file = run.folder / "training" / f"{arm}.csv"
        names = {name: run.parameters[name] for name in ("task", "model", "seed")}
        logs += [pd.read_csv(file).assign(**names)] if file.is_file() else []
    return pd.concat(logs, ignore_index=True) if logs else pd.DataFrame()


def learning_curves(runs: list[FinishedRun]) -> pd.DataFrame:
    """`learning_curve.csv` of every run that has one, with columns task, model and seed."""
    import pandas as pd

    parts = []
    for run in runs:
        names = {name: run.parameters[name] for name in ("task", "model", "seed")}
        file = run.folder / "learning_curve.csv"
        parts += [pd.read_csv(file).assign(**names)] if file.is_file() else []
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _cell(task: str, model: str, runs: list[FinishedRun]) -> Cell:
    predictions = {run.parameters["seed"]: run.predictions() for run in runs}
    _alike(task, model, runs, predictions)
    metrics, contrasts = pooled(predictions, task, runs[0].record["labels"], runs[0].record["positive"])
    return Cell(
        task=task,
        model=model,
        metrics=metrics,
        contrasts=contrasts,
        seeds=len(runs),
        failed_gates=sorted({name for run in runs for name in run.failed_gates}),
        pairs=mean(run.record["pairs"] for run in runs),
        pair_tokens=mean(run.record["stages"]["dpo"].get("tokens", 0) for run in runs),
        dpo_seconds=mean(run.record["seconds"]["dpo"] for run in runs),
    )


def _alike(task: str, model: str, runs: list[FinishedRun], predictions: dict[int, pd.DataFrame]) -> None:
    """Seeds may be pooled only if nothing else differs: a run by hand may lie in the same folder.

    Raises:
        DataError: names what differs.
    """
    own = {"seed", "results", "data_root"}
    for run in runs[1:]:
        pairs = {k: (runs[0].parameters[k], v) for k, v in run.parameters.items() if k not in own}
        other = ", ".join(f"{k} = {a!r} and {b!r}" for k, (a, b) in pairs.items() if a != b)
        if not other and set(predictions[run.parameters["seed"]]["case_id"]) != set(
            predictions[runs[0].parameters["seed"]]["case_id"]
        ):
            other = "their test cases"
        if other:
            raise DataError(
                f"{task}, {model}: seeds {runs[0].parameters['seed']} and {run.parameters['seed']} differ in "
                f"{other}; move one of {runs[0].folder} and {run.folder} away, or run the study again"
            )


def _order(parameters: dict[str, Any]) -> tuple[int, str, int]:
    return list(TASK_TYPES).index(parameters["task"]), parameters["model"], parameters["seed"]
