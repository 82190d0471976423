"""What a study estimates: contrasts of each cell (task x model), each task, each kind of task, and the study.

A task is the mean over its models, seed by seed, on its test cases; a kind and the study are means over tasks. Triage
enters these with the mean of its two F1 values. Cells that failed a gate or have nothing to compare are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medstudy.arms import CONTRASTS
from medstudy.evaluation.evaluate import Measured, values
from medstudy.evaluation.metrics import FEWEST_READ, value_of
from medstudy.evaluation.predictions import Pair
from medstudy.evaluation.statistics import Estimate, Line, combined, estimates, mean_of
from medstudy.tasks import TASK_TYPES

if TYPE_CHECKING:
    import pandas as pd

#: Beside the primary outcomes: an error that harms, so that a verdict looks at it.
WATCHED = "under_triage"
#: The outcome of a kind and of the study: of every task the mean of its primary outcomes.
MEAN = "mean"
KINDS = ("classification", "open-ended")
BETWEEN = "open-ended minus classification"
#: All of SFT, its control and DPO below the first or above the second: there is nothing to compare.
FLOOR, CEILING = 0.02, 0.98
#: Arms that have to be there and above the floor.
_COMPARED = ("sft", "sft_more", "dpo")


@dataclass(frozen=True)
class Cell:
    """One task x model of a study: what was measured over its runs, and what is known of them.

    ``failed_gates`` names every gate that failed in any seed, or that was not checked. ``baselines``: values of
    each baseline by metric, means over seeds. ``cost``: means over seeds of pairs, their tokens, and seconds.
    """

    task: str
    model: str
    measured: list[Measured]
    seeds: tuple[int, ...]
    failed_gates: Sequence[str] = ()
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task}, {self.model}"

    @property
    def n_cases(self) -> int:
        return self.measured[0].answers.n_cases

    def judged(self) -> list[Measured]:
        return [m for m in self.measured if m.metric.primary or m.metric.name == WATCHED]

    def value(self, metric: str, arm: str) -> float:
        """NaN where it has none, or the arm was not run."""
        of = next((m for m in self.measured if m.metric.name == metric and arm in m.sums), None)
        return float(value_of(of.metric, of.sums[arm].sum(axis=0)).mean()) if of else float("nan")

    @property
    def empty(self) -> bool:
        """None of its primary outcomes can be compared."""
        return all(self.nothing(m.metric.name) for m in self.judged() if m.metric.primary)

    def nothing(self, metric: str) -> str:
        """Why this outcome cannot be compared; empty where it can."""
        one = next(m for m in self.measured if m.metric.name == metric)
        arms = [arm for arm in _COMPARED if arm in one.sums]
        if "sft" not in arms:
            return "the arm sft is missing"
        for arm in ("sft", "sft_more"):
            if self.value("unparsed", arm) > 1 - FEWEST_READ:
                return f"most answers of {arm} could not be read"
        if one.metric.kind == "f1":
            present = one.sums[arms[0]].sum(axis=(0, 1))[:, [0, 2]].sum(axis=1) > 0
            if present.sum() < min(2, len(present)):
                return f"no test case of {one.metric.label or 'more than one class'}"
        found = [self.value(metric, arm) for arm in arms]
        if one.metric.name == WATCHED:
            return "" if np.isfinite(found).all() else "too few answers of an arm could be read"
        if self.value(metric, "sft") <= FLOOR or max(found) <= FLOOR:
            return "SFT answers next to nothing right"
        return "every arm answers nearly everything right" if min(found) >= CEILING else ""


@dataclass(frozen=True)
class Scoped:
    """One line of verdicts.csv before it is judged."""

    scope: str
    name: str
    outcome: str
    pair: Pair
    estimate: Estimate
    n_cases: int
    n_seeds: int
    cells: tuple[Cell, ...]


def scoped(cells: Sequence[Cell]) -> list[Scoped]:
    """Every estimate, in the order study, kinds and their difference, tasks, cells."""
    sound = [cell for cell in cells if not cell.failed_gates]
    of_tasks = _tasks(sound)
    main = _means(of_tasks)
    lines = [line for of in (_study, _kinds) for line in of(main)]
    lines += [Scoped("task", task, outcome, pair, *rest) for (task, outcome, pair), rest in of_tasks.items()]
    for members in (sound, [cell for cell in cells if cell.failed_gates]):
        lines += _cells(members)
    return lines


def cell_estimates(cells: Sequence[Cell], judged: bool = True) -> dict[tuple[int, str, Pair], Estimate]:
    """(number of the cell, metric, contrast) -> estimate, moderated over the cells of a contrast.

    ``judged``: of the outcomes that a verdict looks at, else of all others, metric by metric.
    """
    groups: dict[str, dict[tuple[int, str, Pair], Line]] = {}
    for number, cell in enumerate(cells):
        for one in cell.measured:
            if (one in cell.judged()) == judged:
                group = groups.setdefault("" if judged else one.metric.name, {})
                usable = not judged or not cell.nothing(one.metric.name)
                group |= {(number, one.metric.name, pair): one.line(pair) for pair in one.pairs if usable}
    found: dict[tuple[int, str, Pair], Estimate] = {}
    for group in groups.values():
        of_group = estimates([*group.values()], ["-".join(key[2]) for key in group])
        shown = (_fit_to_be_seen(e, [cells[key[0]]]) for key, e in zip(group, of_group, strict=True))
        found |= zip(group, shown, strict=True)
    return found


def _fit_to_be_seen(estimate: Estimate, cells: Sequence[Cell]) -> Estimate:
    """From the exact error of one training the answers that differ could be counted, which may be few patients."""
    private = any(not cell.measured[0].answers.shareable and len(cell.seeds) == 1 for cell in cells)
    return estimate.coarse() if private else estimate


def _cells(cells: Sequence[Cell]) -> Iterator[Scoped]:
    for (number, metric, pair), estimate in cell_estimates(cells).items():
        cell = cells[number]
        yield Scoped("cell", cell.name, metric, pair, estimate, cell.n_cases, len(cell.seeds), (cell,))


_Task = tuple[Estimate, int, int, tuple[Cell, ...]]


def _task_lines(cells: Sequence[Cell]) -> dict[tuple[str, str, Pair], tuple[Line, tuple[Cell, ...]]]:
    """(task, outcome, contrast) -> the mean over models, on the seeds that all of them have; MEAN comes last."""
    members: dict[tuple[str, str, Pair], list[Cell]] = {}
    for cell in cells:
        for one in cell.judged():
            if not cell.nothing(one.metric.name):
                for pair in one.pairs:
                    members.setdefault((cell.task, one.metric.name, pair), []).append(cell)
    lines = {key: (_over_models(*key[1:], of), tuple(of)) for key, of in members.items()}
    lines = {key: (line, of) for key, (line, of) in lines.items() if len(line.by_seed)}
    for task in dict.fromkeys(cell.task for cell in cells):
        for pair in CONTRASTS:
            parts = [v for (t, outcome, p), v in lines.items() if (t, p) == (task, pair) and outcome != WATCHED]
            if parts and len({part[0].influence.shape for part in parts}) == 1:
                lines[task, MEAN, pair] = mean_of([part[0] for part in parts]), parts[0][1]
    return lines


def _over_models(metric: str, pair: Pair, cells: Sequence[Cell]) -> Line:
    common = set.intersection(*(set(cell.seeds) for cell in cells))
    lines = []
    for cell in cells:
        line = next(m for m in cell.measured if m.metric.name == metric).line(pair)
        kept = [i for i, seed in enumerate(cell.seeds) if seed in common]
        lines.append(Line(line.by_seed[kept], line.influence[kept]))
    return mean_of(lines)


def _tasks(cells: Sequence[Cell]) -> dict[tuple[str, str, Pair], _Task]:
    found = {}
    lines = _task_lines(cells)
    for mean in (False, True):  # a mean of outcomes varies less than they do: a family of its own
        part = {key: value for key, value in lines.items() if (key[1] == MEAN) == mean}
        names = ["-".join(pair) for _, _, pair in part]
        for (key, (line, of)), estimate in zip(
            part.items(), estimates([v[0] for v in part.values()], names), strict=True
        ):
            found[key] = (_fit_to_be_seen(estimate, of), of[0].n_cases, len(line.by_seed), of)
    return found


def _means(tasks: dict[tuple[str, str, Pair], _Task]) -> dict[Pair, dict[str, _Task]]:
    """Takes the lines of MEAN out of ``tasks``: contrast -> task -> its mean."""
    found: dict[Pair, dict[str, _Task]] = {}
    for task, outcome, pair in [key for key in tasks if key[1] == MEAN]:
        found.setdefault(pair, {})[task] = tasks.pop((task, outcome, pair))
    return found


def _study(main: dict[Pair, dict[str, _Task]]) -> Iterator[Scoped]:
    for pair, tasks in main.items():
        yield _mean("study", "study", pair, list(tasks.values()), [1 / len(tasks)] * len(tasks))


def _kinds(main: dict[Pair, dict[str, _Task]]) -> Iterator[Scoped]:
    for name in (*KINDS, BETWEEN):
        for pair, tasks in main.items():
            by_kind = [[part for task, part in tasks.items() if TASK_TYPES[task].kind == kind] for kind in KINDS]
            if name != BETWEEN and (parts := by_kind[KINDS.index(name)]):
                yield _mean("kind", name, pair, parts, [1 / len(parts)] * len(parts))
            elif name == BETWEEN and all(by_kind):
                weights = [sign / len(parts) for sign, parts in zip((-1, 1), by_kind, strict=True) for _ in parts]
                yield _mean("kind", name, pair, [*by_kind[0], *by_kind[1]], weights)


def _mean(scope: str, name: str, pair: Pair, parts: Sequence[_Task], weights: Sequence[float]) -> Scoped:
    estimate = combined([part[0] for part in parts], weights)
    cells = tuple(cell for part in parts for cell in part[3])
    return Scoped(
        scope, name, MEAN, pair, estimate, sum(part[1] for part in parts), min(part[2] for part in parts), cells
    )


def variances_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """tables/variances.csv: what trainings and what cases add to the error of a contrast, for `medstudy plan`.

    The squared error of a mean over seeds is ``seed_sd``² / seeds + ``case_sd``². Of the first, ``own_sd``² comes from
    other cases in one training alone; it and the second fall with the number of test cases. Lines of scope "cell" are
    means over the models; "task": of the mean over the models.
    """
    import pandas as pd

    sound = [cell for cell in cells if not cell.failed_gates]
    rows = []
    for (task, outcome, pair), (line, of) in _task_lines(sound).items():
        single = [line]
        if outcome != MEAN:
            single = [_over_models(outcome, pair, [cell]) for cell in of]
        for scope, lines in (("task", [line]), ("cell", single if outcome != MEAN else [])):
            of_lines = [_fit_to_be_seen(estimates([x])[0], of) for x in lines]
            spread = {"seed_sd": [x.seed_variance for x in lines]}
            spread |= {"own_sd": [x.own_variance for x in lines], "case_sd": [x.case for x in of_lines]}
            row = {"scope": scope, "task": task, "outcome": outcome, "contrast": "-".join(pair)}
            row |= {name: round(float(np.sqrt(np.mean(found))), 5) for name, found in spread.items() if found}
            row |= {"n_cases": of[0].n_cases, "n_seeds": len(line.by_seed), "n_models": len(of)}
            rows += [row] if lines else []
    columns = ["scope", "task", "outcome", "contrast", "seed_sd", "own_sd", "case_sd", "n_cases", "n_seeds", "n_models"]
    return pd.DataFrame(rows, columns=columns)  # with a header also where every cell failed its gates


def metrics_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """tables/metrics.csv: one line per task, model, arm or baseline, and metric."""
    import pandas as pd

    rows = []
    for cell in cells:
        found = values(cell.measured)
        # baselines have their intervals in baselines.json, run by run
        found |= {
            arm: {name: {"value": x, "n": cell.n_cases} for name, x in of.items()} for arm, of in cell.baselines.items()
        }
        for arm, entries in found.items():
            where = {"task": cell.task, "model": cell.model, "arm": arm, "seeds": len(cell.seeds)}
            rows += [where | {"metric": name, **entry} for name, entry in entries.items()]
    return pd.DataFrame(rows)


def contrasts_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """tables/contrasts.csv: one line per task, model, metric and contrast; p is not corrected for their number."""
    import pandas as pd

    found = cell_estimates(cells) | cell_estimates(cells, judged=False)
    rows = []
    for number, cell in enumerate(cells):
        for one in cell.measured:
            for pair in one.pairs:
                estimate = found.get((number, one.metric.name, pair))
                rows.append({"task": cell.task, "model": cell.model, **one.row(pair, estimate)})
    return pd.DataFrame(rows)
