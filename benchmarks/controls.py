"""Controls on the method itself: does it find what is there, and claim nothing that is not?

    python benchmarks/controls.py     # studies with known effects, no model

A simulated study is five tasks on two models. Right answers follow a logistic model: a case has a hardness that all
arms and seeds share, trainings differ by chance and unequally much from cell to cell, and the labels or DPO have an
effect. So the true difference is known; intervals and verdicts come from the functions that `medstudy compare` calls.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medstudy.evaluation.evaluate import Measured
from medstudy.evaluation.plan import POCOCK
from medstudy.evaluation.predictions import Answers
from medstudy.evaluation.scopes import Cell
from medstudy.evaluation.verdict import ENOUGH, HARMS, WORTH, Rules, verdict_table
from medstudy.tasks import TASK_TYPES
from medstudy.tasks.base import UNPARSED, Metric

#: Spread of the cases' hardness on the logit scale.
HARDNESS = 1.5
SCOPES = ("study", "kind", "task", "cell")
ACCURACY = Metric("accuracy", "share", "score_correct", primary=True)


@dataclass(frozen=True)
class Design:
    """A study that is simulated many times; effects are in logits (about a fifth is .04 of accuracy)."""

    name: str
    seeds: int = 3
    cases: int = 200
    labels: float = 0.0  # what the same labels bring over SFT
    preferences: float = 0.0  # what DPO brings over these
    tasks: int = 5  # how many of the five DPO gains in
    spread: float = 0.1  # SD of a training
    unlike: float = 0.4  # how much that differs from cell to cell (SD of its logarithm)
    alike: float = 0.0  # share of cases that all trainings answer by one draw, right or wrong alike
    sizes: tuple[int, ...] = ()  # cases of each task, where they are not the same
    group: int = 1  # cases of a template
    level: float = 0.5  # of SFT
    looks: tuple[int, ...] = ()  # numbers of seeds at which a claim may be made

    def effect(self, task: int) -> float:
        return self.preferences if task < self.tasks else 0.0


def simulated(rng: np.random.Generator, design: Design) -> list[Cell]:
    """The cells of one study; arms sft, sft_more and dpo."""
    cells = []
    for number, task in enumerate(TASK_TYPES):
        cases = design.sizes[number] if design.sizes else design.cases
        units = np.arange(cases) // design.group
        groups = [f"g{i:04d}" for i in range(units[-1] + 1)]
        hardness = np.sqrt(0.75) * HARDNESS * _clustered(rng, units)
        for model in ("a", "b"):
            own = hardness + np.sqrt(0.25) * HARDNESS * _clustered(rng, units)
            spread = design.spread * np.exp(rng.normal(0, design.unlike))
            sft = design.level + rng.normal(0, spread, design.seeds)
            more = sft + design.labels + rng.normal(0, spread, design.seeds)
            dpo = sft + design.labels + design.effect(number) + rng.normal(0, spread, design.seeds)
            same, luck = rng.random(cases) < design.alike, rng.random(cases)
            right = {
                arm: [(np.where(same, luck, rng.random(cases)) < _share(at + own)).astype(float) for at in logits]
                for arm, logits in (("sft", sft), ("sft_more", more), ("dpo", dpo))
            }
            answers = Answers([{}] * design.seeds, [units] * design.seeds, list(right), groups, cases, True)
            measured = [_measured(ACCURACY, answers, right)]
            measured.append(_measured(UNPARSED, answers, {arm: [0 * x for x in of] for arm, of in right.items()}))
            cells.append(Cell(task, model, measured, tuple(range(design.seeds))))
    return cells


def _first(cell: Cell, seeds: int) -> Cell:
    """The cell as it was at a look, with its first trainings."""
    measured = []
    for m in cell.measured:
        answers = replace(m.answers, frames=m.answers.frames[:seeds], units=m.answers.units[:seeds])
        measured.append(Measured(m.metric, answers, {arm: x[:seeds] for arm, x in m.terms.items()}))
    return replace(cell, measured=measured, seeds=cell.seeds[:seeds])


def _clustered(rng: np.random.Generator, units: np.ndarray) -> np.ndarray:
    """Standard normal; half of the variance belongs to the unit, where units hold several cases."""
    if units[-1] + 1 == len(units):
        return rng.normal(size=len(units))
    return np.sqrt(0.5) * (rng.normal(size=units[-1] + 1)[units] + rng.normal(size=len(units)))


def _share(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _measured(metric: Metric, answers: Answers, values: dict[str, list[np.ndarray]]) -> Measured:
    terms = {arm: [np.stack([x, np.ones_like(x)], axis=-1)[:, None] for x in of] for arm, of in values.items()}
    return Measured(metric, answers, terms)


def truth(design: Design, over: str, task: int) -> float:
    """DPO minus ``over`` in accuracy, over all cases and trainings, by quadrature of the normal mixture."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def mean(logit: float, trainings: int) -> float:
        # the spread of a training is log-normal: a second quadrature
        spreads = design.spread * np.exp(design.unlike * nodes)
        total = np.sqrt(HARDNESS**2 + trainings * spreads**2)
        inner = _share(logit + total[:, None] * nodes) @ weights
        return float(weights @ inner / weights.sum() ** 2)

    more = design.level + design.labels
    return mean(more + design.effect(task), 2) - (mean(design.level, 1) if over == "sft" else mean(more, 2))


def truths(design: Design, over: str) -> dict[tuple[str, str], float]:
    """(scope, name) -> true difference."""
    by_task = {task: truth(design, over, i) for i, task in enumerate(TASK_TYPES)}
    found = {("study", "study"): float(np.mean([*by_task.values()]))}
    for kind in {task.kind for task in TASK_TYPES.values()}:
        found["kind", kind] = float(np.mean([v for task, v in by_task.items() if TASK_TYPES[task].kind == kind]))
    found |= {("task", task): value for task, value in by_task.items()}
    return found | {("cell", f"{task}, {model}"): value for task, value in by_task.items() for model in "ab"}


def scenario(design: Design, studies: int) -> dict[str, float | str]:
    """Coverage of both contrasts, and shares of studies with a verdict, scope by scope."""
    true = {f"dpo-{over}": truths(design, over) for over in ("sft", "sft_more")}
    tables = []
    for number in range(studies):
        rng = np.random.default_rng([number, design.seeds, design.cases, design.group])
        cells = simulated(rng, design)
        for look in design.looks or (design.seeds,):
            rules = Rules(alpha=POCOCK[len(design.looks) or 1])
            table = verdict_table([_first(cell, look) for cell in cells], rules)
            tables.append(table[table["contrast"].isin(true)].assign(study=number, look=look))
    whole = pd.concat(tables)
    at = zip(whole["contrast"], whole["scope"], whole["name"], strict=True)
    whole["truth"] = [true[contrast].get((scope, name), np.nan) for contrast, scope, name in at]
    known = whole.dropna(subset="truth")
    covered = (known["low"] <= known["truth"]) & (known["truth"] <= known["high"])
    line: dict[str, float | str] = {"design": design.name, "studies": studies}
    line |= {f"true {o}": round(true[f"dpo-{o}"]["task", "text_classification"], 3) for o in ("sft", "sft_more")}
    line |= {f"cover {scope}": round(covered[known["scope"] == scope].mean(), 3) for scope in SCOPES}
    names = known.drop_duplicates(["study", "look", "scope", "name"])
    for label in (WORTH, HARMS, ENOUGH):
        line[f"any {label}"] = round(names["study"][names["verdict"] == label].nunique() / studies, 3)
    # of tasks and cells those in which DPO gains
    gains = names["name"].str.split(", ").str[0].isin(list(TASK_TYPES)[: design.tasks])
    asked = names[gains | names["scope"].isin(["study", "kind"])]
    for label in (WORTH, ENOUGH):
        shares = (asked["verdict"] == label).groupby(asked["scope"]).mean()
        line |= {f"{label} {scope}": round(float(shares[scope]), 3) for scope in SCOPES}
    return line | {"half-width": round((known["high"] - known["low"])[known["scope"] == "study"].mean() / 2, 4)}


DESIGNS = [
    Design("no effect, 3 x 200"),
    Design("no effect, 5 x 400", seeds=5, cases=400),
    Design("labels +.10, DPO no more, 3 x 200", labels=0.55),
    Design("labels +.10, DPO no more, 10 x 200", labels=0.55, seeds=10),
    Design("the same, looks at 3 and 5", labels=0.55, seeds=5, looks=(3, 5)),
    Design("the same, trainings alike, 3 x 200", labels=0.55, spread=0.0),
    Design("the same, trainings very unlike (SD .07), 3 x 200", labels=0.55, spread=0.35),
    Design("the same, trainings of one cell ten times as unlike as of another, 3 x 200", labels=0.55, unlike=1.0),
    Design("the same, nine of ten cases answered alike, 3 x 200", labels=0.55, alike=0.9),
    Design(
        "the same, test sets of 50 to 1,000, trainings very unlike",
        labels=0.55,
        spread=0.25,
        sizes=(50, 1000, 200, 50, 1000),
    ),
    Design("the same, 50 templates x 4, 3 seeds", labels=0.55, group=4),
    Design("SFT at .07, no effect, 3 x 200", level=-3.3),
    Design("SFT at .95, no effect, 3 x 200", level=3.7),
    Design("DPO +.03, the margin, 3 x 200", preferences=0.177),
    Design("DPO +.05, 3 x 200", preferences=0.27),
    Design("DPO +.05, 5 x 400", preferences=0.27, seeds=5, cases=400),
    Design("DPO +.10, 3 x 200", preferences=0.55),
    Design("DPO +.10, 5 x 400", preferences=0.55, seeds=5, cases=400),
    Design("DPO +.10 in one task, 5 x 400", preferences=0.55, seeds=5, cases=400, tasks=1),
]


def main() -> None:
    """Simulate the designs and print a table as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--only", type=int, nargs="+", default=range(len(DESIGNS)), help="numbers of designs")
    args = parser.parse_args()
    gc.freeze()  # statsmodels collects garbage in every correction for many tests
    lines = []
    for number in args.only:
        lines.append(scenario(DESIGNS[number], args.studies))
        print(pd.DataFrame(lines[-1:]).T.to_string(header=False), flush=True)
    print(pd.DataFrame(lines).to_csv(index=False))


if __name__ == "__main__":
    main()
