"""Was DPO worth it? One verdict, in one sentence, for the study, each kind of task, each task and each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medstudy.evaluation.metrics import LOWER_IS_BETTER, metric_name
from medstudy.evaluation.scopes import BETWEEN, KINDS, MEAN, WATCHED, Cell, Scoped, scoped
from medstudy.evaluation.statistics import Estimate
from medstudy.evaluation.views import published as published
from medstudy.params import MARGIN
from medstudy.tasks import TASK_TYPES

if TYPE_CHECKING:
    import pandas as pd

WORTH, ENOUGH, HARMS = "DPO worth it", "SFT with the same labels is enough", "DPO harms"
UNSURE, INVALID, NOTHING = "inconclusive", "not valid", "nothing to compare"
ALPHA = 0.05
COLUMNS = ["scope", "name", "contrast", "outcome", "difference", "low", "high", "p", "n_cases", "n_seeds"]
COLUMNS += ["verdict", "sentence"]
#: A verdict needs both: better than SFT, and than SFT with the same labels.
OVER_SFT, OVER_MORE, OVER_CHOSEN = ("dpo", "sft"), ("dpo", "sft_more"), ("dpo", "sft_chosen")
_SAID = {"sft": "SFT", "sft_more": "SFT with the same labels", "sft_chosen": "SFT on the chosen answers"}
_CLAIM = {
    WORTH: "DPO answered better than SFT and than SFT with the same labels",
    ENOUGH: "SFT with the same labels did as well as DPO or better",
    HARMS: "DPO answered worse",
    UNSURE: "neither a gain from DPO nor its absence is shown",
}
#: Advice is given only where this share of simulated follow-ups decides, with one of these numbers of trainings.
_LIKELY, _SEEDS = 0.8, (3, 5, 7, 10, 15, 20)


@dataclass(frozen=True)
class Rules:
    """What a verdict goes by: the margin below which differences do not matter, and the level of a look.

    ``plan``: hash of the frozen plan; ``note``: what a reader has to know of it.
    """

    margin: float = MARGIN
    alpha: float = ALPHA
    plan: str = ""
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """One outcome of a scope: its estimates by contrast, turned so that more is better, and p values after Holm."""

    name: str
    rows: dict[tuple[str, str], Estimate]
    n_seeds: int
    p_gain: float = 1.0
    p_harm: float = 1.0

    @classmethod
    def of(cls, lines: Sequence[Scoped]) -> Outcome:
        return cls(lines[0].outcome, {line.pair: turned(line) for line in lines}, lines[0].n_seeds)

    @property
    def complete(self) -> bool:
        used = [self.rows.get(pair) for pair in (OVER_SFT, OVER_MORE)]
        return all(row is not None and np.isfinite(row.error) for row in used) and self.n_seeds > 1

    def label(self, rules: Rules) -> str:
        """The order of the questions is the order of what matters to a patient."""
        if not self.complete:
            return UNSURE
        sft, more = self.rows[OVER_SFT], self.rows[OVER_MORE]
        if self.p_harm < rules.alpha:
            return HARMS
        if self.p_gain < rules.alpha:
            return WORTH
        low, high = more.interval(0.9)
        # two one-sided tests; or the same labels do surely better, and DPO is not surely worse than SFT
        surely_better = more.interval(1 - rules.alpha)[1] < 0
        if (-rules.margin < low and high < rules.margin) or (surely_better and sft.value > -rules.margin):
            return ENOUGH
        return UNSURE


def turned(line: Scoped) -> Estimate:
    """The estimate with more being better."""
    e = line.estimate
    value = -e.value if line.outcome in LOWER_IS_BETTER else e.value
    return Estimate(value, e.seed, e.case, e.seed_df, e.case_df, e.pooled_df)


def verdict_table(cells: Sequence[Cell], rules: Rules | float = MARGIN) -> pd.DataFrame:
    """verdicts.csv: one line per scope, outcome and contrast; verdict and sentence are those of scope and name."""
    import pandas as pd

    rules = rules if isinstance(rules, Rules) else Rules(rules)
    lines = scoped(cells)
    judged = _judged(lines, rules)
    rows = []
    for scope, name in _names(cells, lines):
        own = [line for line in lines if (line.scope, line.name) == (scope, name)]
        label, sentence = _said(scope, name, own, judged.get((scope, name), []), cells, rules)
        empty = {"contrast": "dpo-sft_more", "outcome": "", "n_cases": 0, "n_seeds": 0}
        for row in [_row(line) for line in own] or [empty]:
            rows.append({"scope": scope, "name": name, **row, "verdict": label, "sentence": sentence})
    return pd.DataFrame(rows, columns=COLUMNS)


def _names(cells: Sequence[Cell], lines: Sequence[Scoped]) -> list[tuple[str, str]]:
    kinds = {TASK_TYPES[cell.task].kind for cell in cells}
    names = [("study", "study"), *(("kind", kind) for kind in KINDS if kind in kinds)]
    names += [("kind", BETWEEN)] if any(line.name == BETWEEN for line in lines) else []
    names += [("task", task) for task in dict.fromkeys(cell.task for cell in cells)]
    return names + [("cell", cell.name) for cell in cells]


def _row(line: Scoped) -> dict[str, Any]:
    low, high = line.estimate.interval()
    found = {"difference": line.estimate.value, "low": low, "high": high, "p": line.estimate.p}
    row = {"contrast": "-".join(line.pair), "outcome": line.outcome}
    row |= {key: float(f"{value:.6g}") for key, value in found.items()}
    return row | {"n_cases": line.n_cases, "n_seeds": line.n_seeds}


def _judged(lines: Sequence[Scoped], rules: Rules) -> dict[tuple[str, str], list[Outcome]]:
    """Outcomes of every scope and name; p values after Holm over all outcomes of the scope (cells, tasks, kinds).

    A gain has the larger of its two p values (intersection-union): neither is corrected for the other. Every p is
    doubled: there are four scopes, and a claim is of one direction, so that a whole study keeps the level.
    """
    from statsmodels.stats.multitest import multipletests

    found: dict[tuple[str, str], list[Outcome]] = {}
    for scope in ("study", "kind", "task", "cell"):
        groups: dict[tuple[str, str], list[Scoped]] = {}
        for line in lines:
            if line.scope == scope and line.name != BETWEEN and not any(cell.failed_gates for cell in line.cells):
                groups.setdefault((line.name, line.outcome), []).append(line)
        outcomes = {key: Outcome.of(of) for key, of in groups.items()}
        tested = [key for key, outcome in outcomes.items() if outcome.complete]
        if tested:
            raw = [_p_values(outcomes[key].rows, rules.margin) for key in tested]
            gains, harms = (2 * multipletests(p, method="holm")[1] for p in zip(*raw, strict=True))
            for key, gain, harm in zip(tested, gains, harms, strict=True):
                o = outcomes[key]
                outcomes[key] = Outcome(o.name, o.rows, o.n_seeds, float(gain), float(harm))
        for (name, _), outcome in outcomes.items():
            found.setdefault((scope, name), []).append(outcome)
    return found


def _p_values(rows: dict[tuple[str, str], Estimate], margin: float) -> tuple[float, float]:
    """Of a gain over both, and of harm: worse than SFT, or, where it is not better, worse than the same labels."""
    used = rows[OVER_SFT], rows[OVER_MORE]
    gain = max(row.p if row.value > 0 else 1.0 for row in used)
    harm = used[0].p if used[0].value < 0 else 1.0
    if used[0].value <= 0 and used[1].value < -margin:
        harm = min(1.0, 2 * min(harm, used[1].p))
    return gain, harm


def _said(
    scope: str, name: str, lines: list[Scoped], outcomes: list[Outcome], cells: Sequence[Cell], rules: Rules
) -> tuple[str, str]:
    """Verdict and sentence of one scope and name."""
    about = {"study": lambda c: True, "kind": lambda c: TASK_TYPES[c.task].kind == name}
    about |= {"task": lambda c: c.task == name, "cell": lambda c: c.name == name}
    members = [cell for cell in cells if about[scope](cell)]
    if name == BETWEEN:
        return "", _between(lines)
    where = {"study": "Over the whole study", "kind": f"On {name} tasks"}.get(scope, f"On {name.replace('_', ' ')}")
    failed = [cell for cell in members if cell.failed_gates]
    if failed and len(failed) == len(members):
        gates = sorted({gate for cell in failed for gate in cell.failed_gates})
        return INVALID, f"{where}, nothing here may be relied on: failed gates: {', '.join(gates)}."
    if not outcomes:
        sound = [cell for cell in members if not cell.failed_gates]
        why = {reason for c in sound for m in c.judged() if (reason := c.nothing(m.metric.name))}
        return NOTHING, f"{where}, there is nothing to compare: {'; '.join(sorted(why)) or 'arms are missing'}."
    label = _over(outcomes, rules)
    parts = [_evidence(outcome, rules, len(outcomes) > 1) for outcome in outcomes]
    notes = _notes(label, outcomes, members, failed, rules)
    notes += _advised(outcomes, lines[0].n_cases, rules) if label == UNSURE else []
    return label, f"{where}, {_CLAIM[label]}: {'; '.join(parts)}{''.join(notes)}."


def _over(outcomes: Sequence[Outcome], rules: Rules) -> str:
    """Harm in any outcome is harm; else a gain in any is a gain; enough only if it is so in all."""
    labels = [outcome.label(rules) for outcome in outcomes]
    first = next((label for label in (HARMS, WORTH) if label in labels), None)
    return first or (ENOUGH if set(labels) == {ENOUGH} else UNSURE)


def _evidence(outcome: Outcome, rules: Rules, named: bool) -> str:
    texts = []
    for pair in (OVER_MORE, OVER_SFT, OVER_CHOSEN):
        if pair in outcome.rows:
            row = outcome.rows[pair]
            low, high = row.interval()
            texts.append(f"{row.value:+.3f} [{low:+.3f}, {high:+.3f}] against {_SAID[pair[1]]}")
    what = "" if outcome.name == MEAN else metric_name(outcome.name).removesuffix(", lower is better")
    lower = " (+ is better: fewer)" if outcome.name in LOWER_IS_BETTER else ""
    own = f" - {_CLAIM[outcome.label(rules)]}" if named else ""
    return f"{what}{lower}{' ' if what else ''}{', '.join(texts)}{own}"


def _notes(
    label: str, outcomes: Sequence[Outcome], cells: Sequence[Cell], failed: Sequence[Cell], rules: Rules
) -> list[str]:
    notes = []
    by_name = {outcome.name: outcome.rows for outcome in outcomes}
    if any(outcome.n_seeds < 2 for outcome in outcomes):
        notes.append("; one training is no evidence")
    if any(pair not in rows for rows in by_name.values() for pair in (OVER_SFT, OVER_MORE)):
        notes.append("; without the arm sft_more a gain could be that of its labels")
    main = [rows for name, rows in by_name.items() if name != WATCHED]
    if label == WORTH and main and all(rows[OVER_MORE].value < rules.margin for rows in main if OVER_MORE in rows):
        notes.append(f"; the gain is smaller than the margin of {rules.margin:g}")
    rise = [-rows[pair].value for pair in (OVER_SFT, OVER_MORE) if pair in (rows := by_name.get(WATCHED, {}))]
    if rise and max(rise) > rules.margin:
        notes.append(f"; but under-triage rose by {max(rise):.3f}, more than the margin of {rules.margin:g}")
    if rules.note:
        notes.append(f"; {rules.note}")
    if failed:
        notes.append(f"; {len(failed)} of {len(cells)} task x model left out, gates failed")
    if empty := sum(cell not in failed and cell.empty for cell in cells):
        notes.append(f"; {empty} of {len(cells)} task x model left out, nothing to compare")
    poor = [cell for cell in cells if cell not in failed and not cell.empty and _below_majority(cell)]
    if poor:
        which = "DPO" if len(cells) == 1 else f"in {len(poor)} of {len(cells)} task x model DPO"
        notes.append(f"; {which} does not beat a baseline that reads nothing")
    return notes


def _advised(outcomes: Sequence[Outcome], cases: int, rules: Rules) -> list[str]:
    """What would decide the outcomes that are open; nothing where no design is likely to."""
    needed = [advice(outcome, rules) for outcome in outcomes if outcome.label(rules) == UNSURE]
    if not needed or None in needed:
        return []
    seeds, more = (max(of) for of in zip(*needed, strict=True))
    return [f"; {seeds} trainings a cell and {more * cases} test cases would be likely to decide it"]


def advice(outcome: Outcome, rules: Rules) -> tuple[int, int] | None:
    """Trainings a cell, and test cases as multiples of now, that decide in `_LIKELY` of simulated follow-ups.

    In a follow-up the truth is drawn from what the study found, each contrast with its error; the two share SFT's or
    DPO's part, hence a correlation of one half. The smallest such design of `_SEEDS`; else None.
    """
    from scipy.stats import t

    if not outcome.complete:
        return None
    used = [outcome.rows[pair] for pair in (OVER_SFT, OVER_MORE)]
    rng, root = np.random.default_rng(0), np.linalg.cholesky([[1, 0.5], [0.5, 1]])
    drawn, again = (root @ rng.normal(size=(2, 2000)) for _ in range(2))
    truth = np.array([[row.value] for row in used]) + drawn * np.array([[row.error] for row in used])
    designs = sorted(
        ((s, n) for s in _SEEDS for n in (1, 2, 4) if s >= outcome.n_seeds), key=lambda d: d[0] * d[1] ** 0.5
    )
    for seeds, more in designs:
        parts = [(row.seed * outcome.n_seeds / seeds, row.case / more) for row in used]
        error = np.sqrt([[sum(part)] for part in parts])
        found = truth + again * error
        df = used[0].df * seeds / outcome.n_seeds
        sure = t.ppf(1 - rules.alpha / 2, df) * error
        worth, harm = (found > sure).all(axis=0), found[0] < -sure[0]
        enough = np.abs(found[1]) + t.ppf(0.95, df) * error[1] < rules.margin
        if (worth | harm | enough | (found[1] < -sure[1])).mean() >= _LIKELY:
            return seeds, more
    return None


def _below_majority(cell: Cell) -> bool:
    """DPO is no better than the commonest answer, or the first words, in a primary outcome."""
    simple = [cell.baselines.get(name, {}) for name in ("majority", "lead")]
    names = [m.metric.name for m in cell.judged() if m.metric.primary]
    return any(cell.value(name, "dpo") <= of.get(name, -1.0) for name in names for of in simple)


def _between(lines: Sequence[Scoped]) -> str:
    line = next((line for line in lines if line.pair == OVER_MORE), lines[0])
    low, high = line.estimate.interval()
    shown = "no difference is shown" if low <= 0 <= high else "the kinds differ"
    return (
        f"Over {_SAID.get(line.pair[1], line.pair[1])}, open-ended tasks gained {line.estimate.value:+.3f} "
        f"[{low:+.3f}, {high:+.3f}] more from DPO than classification: {shown}."
    )
