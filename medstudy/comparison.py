"""From the finished runs of a study to one cell per task and model: what the comparison notebook draws."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from medstudy.data.sources import load_card
from medstudy.evaluation import pooled
from medstudy.gates import GATES
from medstudy.params import TASKS
from medstudy.verdict import Cell


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


def _cell(task: str, model: str, runs: list[FinishedRun]) -> Cell:
    import pandas as pd

    card = load_card(runs[0].parameters["data"])
    predictions = {
        r.parameters["seed"]: pd.read_parquet(r.folder / "private" / "predictions.parquet") for r in runs
    }
    metrics, contrasts = pooled(predictions, task, card.labels, card.positive)
    return Cell(
        task=task,
        model=model,
        metrics=metrics,
        contrasts=contrasts,
        seeds=len(runs),
        failed_gates=sorted({name for run in runs for name in run.failed_gates}),
        pairs=mean(run.record["pairs"] for run in runs),
        dpo_seconds=mean(run.record["seconds"]["dpo"] for run in runs),
    )


def _order(parameters: dict[str, Any]) -> tuple[int, str, int]:
    return TASKS.index(parameters["task"]), parameters["model"], parameters["seed"]
