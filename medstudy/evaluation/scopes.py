"""What a study estimates: contrasts of each cell (task x model), each task, each kind of task, and the study.

A task is the mean over its models, seed by seed, on its test cases; a kind and the study are means over tasks. Triage
enters these with the mean of its two F1 values. Cells that failed a gate or have nothing to compare are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from medstudy.arms import CONTRASTS
from medstudy.evaluation.evaluate import Measured, values
from medstudy.evaluation.metrics import FEWEST_READ, value_of
from medstudy.evaluation.predictions import Pair
from medstudy.evaluation.statistics import Estimate, Line, combined, estimates, mean_of
from medstudy.tasks import TASK_TYPES

#: Beside the primary outcomes: an error that harms, so that a verdict looks at it.
WATCHED = "under_triage"
#: The outcome of a kind and of the study: of every task the mean of its primary outcomes.
MEAN = "mean"
KINDS = ("classification", "open-ended")
BETWEEN = "open-ended minus classification"
#: SFT below the first, or it, its control and DPO all above the second: there is nothing to compare.
FLOOR, CEILING = 0.02, 0.98


def places(cell: str) -> dict[str, str]:
    """Scope -> the name that a cell, called "task, model", is part of."""
    task = cell.partition(", ")[0]
    return {"study": "study", "kind": TASK_TYPES[task].kind, "task": task, "cell": cell}


@dataclass(frozen=True)
class Cell:
    """One task x model of a study: what was measured over its runs, and gates that failed in any of them.

    ``baselines`` (by metric) and ``cost`` (pairs, their tokens, seconds) are means over seeds.
    """

    task: str
    model: str
    measured: list[Measured]
    seeds: tuple[int, ...]
    failed_gates: Sequence[str] = ()
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)

    @property
    def places(self) -> dict[str, str]:
        """Scope -> the name that this cell is part of."""
        return places(f"{self.task}, {self.model}")

    @property
    def n_cases(self) -> int:
        return self.measured[0].answers.n_cases

    def judged(self) -> list[Measured]:
        return [m for m in self.measured if _is_judged(m)]

    def comparable(self) -> list[Measured]:
        return [m for m in self.judged() if not self.nothing(m)]

    def value(self, metric: str, arm: str) -> float:
        """NaN where it has none, or the arm was not run."""
        of = next((m for m in self.measured if m.metric.name == metric and arm in m.sums), None)
        return float(value_of(of.metric, of.sums[arm].sum(axis=0)).mean()) if of else float("nan")

    def nothing(self, one: Measured) -> str:
        """Why this outcome cannot be compared; empty where it can."""
        arms = [arm for arm in ("sft", "sft_more", "dpo") if arm in one.sums]
        if "sft" not in arms:
            return "the arm sft is missing"
        for arm in ("sft", "sft_more"):
            if self.value("unparsed", arm) > 1 - FEWEST_READ:
                remedy = "train it longer, or give labels that the model can write"
                return f"most answers of {arm} could not be read ({remedy})"
        if one.metric.kind == "f1":
            present = one.sums[arms[0]].sum(axis=(0, 1))[:, [0, 2]].sum(axis=1) > 0
            if present.sum() < min(2, len(present)):
                return f"no test case of {one.metric.label or 'more than one class'}"
        found = [self.value(one.metric.name, arm) for arm in arms]
        if one.metric.name == WATCHED:
            return "" if np.isfinite(found).all() else "too few answers of an arm could be read"
        if found[0] <= FLOOR:
            return "SFT answers next to nothing right"
        return "every arm answers nearly everything right" if min(found) >= CEILING else ""


def on_same_cases(cells: Sequence[Cell]) -> list[Cell]:
    """Of each task the models that answered the test cases of its first one; only these have a mean.

    With ``overlong: exclude`` a tokenizer of its own leaves out cases of its own.
    """
    first: dict[str, tuple[list[str], int]] = {}
    asked = [(cell, (cell.measured[0].answers.groups, cell.n_cases)) for cell in cells if cell.comparable()]
    return [cell for cell, cases in asked if first.setdefault(cell.task, cases) == cases]


def _is_judged(one: Measured) -> bool:
    return one.metric.primary or one.metric.name == WATCHED


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
    sound, failed = ([cell for cell in cells if bool(cell.failed_gates) == bad] for bad in (False, True))
    tasks, means = (_tasks(on_same_cases(sound), mean) for mean in (False, True))
    lines = [*_means(means), *tasks]
    for members in (sound, failed):
        for (i, metric, pair), estimate in cell_estimates(members).items():
            cell, place = members[i], members[i].places["cell"]
            lines.append(Scoped("cell", place, metric, pair, estimate, cell.n_cases, len(cell.seeds), (cell,)))
    return lines


def cell_estimates(cells: Sequence[Cell], judged: bool = True) -> dict[tuple[int, str, Pair], Estimate]:
    """(number of the cell, metric, contrast) -> estimate, moderated over the cells of a contrast.

    ``judged``: of the outcomes that a verdict looks at, else of all others, metric by metric.
    """
    groups: dict[str, dict[tuple[int, str, Pair], Line]] = {}
    for number, cell in enumerate(cells):
        for one in cell.comparable() if judged else [m for m in cell.measured if not _is_judged(m)]:
            group = groups.setdefault("" if judged else one.metric.name, {})
            group |= {(number, one.metric.name, pair): one.line(pair) for pair in one.pairs}
    found: dict[tuple[int, str, Pair], Estimate] = {}
    for group in groups.values():
        told = {k: _tells([cells[k[0]]], *k[1:]) for k in group}
        of_group = estimates([*group.values()], ["-".join(pair) for _, _, pair in group], [*told.values()])
        found |= {k: e.coarse() if told[k] else e for k, e in zip(group, of_group, strict=True)}
    return found


def _tells(cells: Sequence[Cell], metric: str, pair: Pair) -> bool:
    """Whether from an exact error the answers that differ could be counted, which may be few patients (`row`)."""
    alone = any(not cell.measured[0].answers.shareable and len(cell.seeds) == 1 for cell in cells)
    of = (
        m for cell in cells for m in cell.measured if metric == m.metric.name or (metric == MEAN and m.metric.primary)
    )
    return alone or any(m.few_differ(pair) for m in of)


def _task_lines(cells: Sequence[Cell]) -> dict[tuple[str, str, Pair], tuple[Line, tuple[Cell, ...]]]:
    """(task, outcome, contrast) -> the mean over models, on the seeds that all of them have; MEAN comes last."""
    members: dict[tuple[str, str, Pair], list[Cell]] = {}
    for cell in cells:
        for one in cell.comparable():
            for pair in one.pairs:
                members.setdefault((cell.task, one.metric.name, pair), []).append(cell)
    lines = {key: (_over_models(*key[1:], of), tuple(of)) for key, of in members.items()}
    lines = {key: (line, of) for key, (line, of) in lines.items() if len(line.by_seed)}
    for task in dict.fromkeys(cell.task for cell in cells):
        for pair in CONTRASTS:
            parts = [v for (t, outcome, p), v in lines.items() if (t, p) == (task, pair) and outcome != WATCHED]
            if parts and len({line.influence.shape for line, _ in parts}) == 1:
                lines[task, MEAN, pair] = mean_of([line for line, _ in parts]), parts[0][1]
    return lines


def _over_models(metric: str, pair: Pair, cells: Sequence[Cell]) -> Line:
    common, lines = set.intersection(*(set(cell.seeds) for cell in cells)), []
    for cell in cells:
        line = next(m for m in cell.measured if m.metric.name == metric).line(pair)
        kept = [i for i, seed in enumerate(cell.seeds) if seed in common]
        lines.append(Line(line.by_seed[kept], line.influence[kept]))
    return mean_of(lines)


def _tasks(cells: Sequence[Cell], mean: bool) -> list[Scoped]:
    """Outcomes of every task, or their means, which vary less and so are a family of their own."""
    lines = {key: of for key, of in _task_lines(cells).items() if (key[1] == MEAN) == mean}
    told = [_tells(of, *key[1:]) for key, (_, of) in lines.items()]
    found = estimates([line for line, _ in lines.values()], ["-".join(pair) for _, _, pair in lines], told)
    shown = [estimate.coarse() if few else estimate for estimate, few in zip(found, told, strict=True)]
    return [
        Scoped("task", *key, estimate, of[0].n_cases, len(line.by_seed), of)
        for (key, (line, of)), estimate in zip(lines.items(), shown, strict=True)
    ]


def _means(tasks: Sequence[Scoped]) -> Iterator[Scoped]:
    """The study, the kinds, and their difference: every task counts alike."""
    for scope, name in (("study", "study"), *(("kind", kind) for kind in (*KINDS, BETWEEN))):
        for pair in dict.fromkeys(line.pair for line in tasks):
            kinds = [[x for x in tasks if x.pair == pair and TASK_TYPES[x.name].kind == kind] for kind in KINDS]
            of = [x for x in tasks if x.pair == pair and name in ("study", TASK_TYPES[x.name].kind)]
            weights = [1 / len(of)] * len(of) if of else []
            if name == BETWEEN and all(kinds):
                of = kinds[0] + kinds[1]
                weights = [sign / len(kind) for sign, kind in zip((-1, 1), kinds, strict=True) for _ in kind]
            if of:
                estimate = combined([x.estimate for x in of], weights)
                cases, seeds = sum(x.n_cases for x in of), min(x.n_seeds for x in of)
                yield Scoped(scope, name, MEAN, pair, estimate, cases, seeds, sum((x.cells for x in of), ()))


def variances_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """tables/variances.csv: what trainings and what cases add to the error of a contrast, for `medstudy plan`.

    The squared error of a mean over seeds is ``seed_sd``² / seeds + ``case_sd``². Of the first, ``own_sd``² comes from
    other cases in one training alone (0: not told); it and the second fall with the number of test cases. Lines of
    scope "cell" are means over the models; "task": of the mean over the models.
    """
    columns = ["scope", "task", "outcome", "contrast", "seed_sd", "own_sd", "case_sd", "n_cases", "n_seeds", "n_models"]
    rows = []
    sound = on_same_cases([cell for cell in cells if not cell.failed_gates])
    for (task, outcome, pair), (line, of) in _task_lines(sound).items():
        by_model = [_over_models(outcome, pair, [cell]) for cell in of] if outcome != MEAN else []
        for scope, lines in (("task", [line]), ("cell", by_model)):
            if lines:
                told = _tells(of, outcome, pair)
                spread = [[x.seed_variance for x in lines], [0.0 if told else x.own_variance for x in lines]]
                found = [estimates([x], hidden=[told])[0] for x in lines]
                spread.append([x.coarse().case if told else x.case for x in found])
                digits = 2 if told else 5
                deviations = [round(float(np.sqrt(np.mean(part))), digits) for part in spread]
                sizes = of[0].n_cases, len(line.by_seed), len(of)
                rows.append((scope, task, outcome, "-".join(pair), *deviations, *sizes))
    return pd.DataFrame(rows, columns=columns)  # with a header also where every cell failed its gates


def metrics_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """tables/metrics.csv: a line a task, model, arm or baseline (intervals: baselines.json of a run), and metric."""
    rows = []
    for cell in cells:
        found = values(cell.measured)
        for arm, of in cell.baselines.items():
            found[arm] = {name: {"value": x, "n": cell.n_cases} for name, x in of.items()}
        for arm, entries in found.items():
            where = {"task": cell.task, "model": cell.model, "arm": arm, "seeds": len(cell.seeds)}
            rows += [where | {"metric": name, **entry} for name, entry in entries.items()]
    return pd.DataFrame(rows)


def contrasts_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """tables/contrasts.csv: one line per task, model, metric and contrast; p is not corrected for their number."""
    found = cell_estimates(cells) | cell_estimates(cells, judged=False)
    return pd.DataFrame(
        {"task": cell.task, "model": cell.model, **one.row(pair, found.get((number, one.metric.name, pair)))}
        for number, cell in enumerate(cells)
        for one in cell.measured
        for pair in one.pairs
    )
