"""Was DPO worth it? One verdict, in one sentence, for the study, each kind of task, each task and each cell."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from medstudy.arms import ARMS
from medstudy.evaluation.metrics import LOWER_IS_BETTER, metric_name
from medstudy.evaluation.predictions import Pair
from medstudy.evaluation.scopes import BETWEEN, MEAN, WATCHED, Cell, Scoped, on_same_cases, scoped
from medstudy.evaluation.statistics import Estimate
from medstudy.params import MARGIN

WORTH, ENOUGH, HARMS = "DPO worth it", "SFT with the same labels is enough", "DPO harms"
UNSURE, INVALID, NOTHING = "inconclusive", "not valid", "nothing to compare"
ALPHA = 0.05
#: What `Outcome.label` and `judge` do, in words: a frozen plan holds them, so that a later change of them is said.
RULES = (
    "DPO worth it: dpo-sft and dpo-sft_more above 0, the larger p below half the level of the look, Holm over a scope; "
    "not by under-triage, which over-triage may pay for. "
    "DPO harms: dpo-sft below 0, Holm over a scope. "
    "SFT with the same labels is enough: dpo-sft_more below the margin, one-sided at the level of the look, "
    "Holm over a scope. "
    "Scopes: study, kinds, tasks, cells (hence half the level: four scopes, one direction); every task counts alike. "
    "Of one task, study and kind have its verdict. "
    "Variances between trainings: shared over lines, relative to what is expected of each."
)
COLUMNS = ["scope", "name", "contrast", "outcome", "difference", "low", "high", "p", "n_cases", "n_seeds"]
COLUMNS += ["verdict", "sentence"]
#: Baselines that read nothing of a case.
BLIND = ("majority", "always_positive", "lead")
#: A verdict needs both: better than SFT, and than SFT with the same labels.
OVER_SFT, OVER_MORE = ("dpo", "sft"), ("dpo", "sft_more")
#: In the order of a sentence; an arm that has no words here bears its label.
_EVIDENCE = (OVER_MORE, *(("dpo", arm) for arm in ARMS["dpo"].against if arm != "sft_more"))
_SAID = {name: arm.label for name, arm in ARMS.items()}
_SAID |= {"sft_more": "SFT with the same labels", "sft_chosen": "SFT on the chosen answers"}
_CLAIM = {
    WORTH: "DPO answered better than SFT and than SFT with the same labels",
    ENOUGH: "DPO gained nothing that matters over SFT with the same labels",
    HARMS: "DPO answered worse",
    UNSURE: "neither a gain from DPO nor its absence is shown",
}
_ONE = "of one training of each arm nothing is concluded, as trainings differ"
_SOME = "as a part was trained only once, nothing is concluded (the interval does not hold how its trainings differ)"


@dataclass(frozen=True)
class Rules:
    """The margin below which differences do not matter, the level of a look, a frozen plan's hash, and a note on it."""

    margin: float = MARGIN
    alpha: float = ALPHA
    plan: str = ""
    note: str = ""


@dataclass
class Outcome:
    """One outcome of a scope: estimates by contrast, turned so that more is better, and p after Holm by verdict."""

    name: str
    rows: dict[Pair, Estimate]
    n_seeds: int
    p: dict[str, float] = field(default_factory=dict)  # none where it is not complete

    @property
    def complete(self) -> bool:
        used = [self.rows.get(pair) for pair in (OVER_SFT, OVER_MORE)]
        return all(row is not None and np.isfinite(row.error) for row in used) and self.n_seeds > 1

    def label(self, rules: Rules) -> str:
        """The order of the questions is the order of what matters to a patient."""
        return next((said for said in (HARMS, WORTH, ENOUGH) if self.p.get(said, 1.0) < rules.alpha), UNSURE)


def verdict_table(cells: Sequence[Cell], rules: Rules) -> pd.DataFrame:
    """verdicts.csv: one line per scope, outcome and contrast; verdict and sentence are those of scope and name."""
    lines = scoped(cells)
    judged, rows = judge(lines, rules), []
    scopes = ("study", "kind", "task", "cell")
    names = {scope: [*dict.fromkeys(cell.places[scope] for cell in cells)] for scope in scopes}
    names["kind"] += [BETWEEN] if any(line.name == BETWEEN for line in lines) else []
    for scope, name in ((scope, name) for scope, of in names.items() for name in of):
        own = [line for line in lines if (line.scope, line.name) == (scope, name)]
        if name == BETWEEN:
            label, sentence = "", _between(own)
        else:
            where = {"study": "Over the whole study", "kind": f"On {name} tasks"}.get(scope, f"On {name}")
            members = [cell for cell in cells if cell.places[scope] == name]
            outcomes = judged.get((scope, name), [])
            # study and kinds are judged by means of F1 and the like, in which harm to the urgent would drown
            tasks = dict.fromkeys(cell.places["task"] for cell in members) if scope in ("study", "kind") else ()
            of_tasks = [outcome for task in tasks for outcome in judged.get(("task", task), [])]
            # of one task alone a mean of its outcomes would be judged less strictly than the task
            label, said = _said(outcomes, of_tasks, members, rules, of_tasks if len(tasks) == 1 else outcomes)
            where += f" (here {next(iter(tasks))} alone)" if scope == "kind" and len(tasks) == 1 else ""
            sentence = f"{where.replace('_', ' ')}, {said}."
        same = {"scope": scope, "name": name, "verdict": label, "sentence": sentence}
        for line in own:
            e = line.estimate
            numbers = (e.value, *_limits(e, 1 + (name == BETWEEN)), e.p)
            found = zip(("difference", "low", "high", "p"), numbers, strict=True)
            row = same | {"contrast": "-".join(line.pair), "outcome": line.outcome}
            row |= {key: float(f"{value:.6g}") for key, value in found}
            rows.append(row | {"n_cases": line.n_cases, "n_seeds": line.n_seeds})
        if not own:
            rows.append(same | {"contrast": "dpo-sft_more", "outcome": "", "n_cases": 0, "n_seeds": 0})
    return pd.DataFrame(rows, columns=COLUMNS)


def _limits(estimate: Estimate, most: float = 1.0) -> tuple[float, float]:
    """The 95 % interval, as far as a difference of two shares can go; of two differences it is twice that."""
    low, high = np.clip(estimate.interval(), -most, most)
    return float(low), float(high)


def _numbers(estimate: Estimate, most: float = 1.0) -> str:
    low, high = _limits(estimate, most)
    return f"{estimate.value:+.3f} [{low:+.3f}, {high:+.3f}]"


def judge(lines: Sequence[Scoped], rules: Rules) -> dict[tuple[str, str], list[Outcome]]:
    """Outcomes of every scope and name; p values after Holm over all outcomes of the scope (cells, tasks, kinds).

    A gain has the larger of its two p values (intersection-union): neither is corrected for the other. Harm is to be
    worse than SFT: labels that help more than DPO do not make it harmful. Enough: what DPO gains over the same labels
    is less than the margin, one-sided. The other p are doubled: there are four scopes, and a claim is of one direction,
    so that a whole study keeps the level.
    """
    found: dict[tuple[str, str], dict[str, Outcome]] = {}
    for line in lines:
        if line.name != BETWEEN and not any(cell.failed_gates for cell in line.cells):
            outcomes = found.setdefault((line.scope, line.name), {})
            outcome = outcomes.setdefault(line.outcome, Outcome(line.outcome, {}, line.n_seeds))
            outcome.n_seeds = min(outcome.n_seeds, line.n_seeds)  # some contrasts are of some tasks alone
            sign = -1 if line.outcome in LOWER_IS_BETTER else 1
            outcome.rows[line.pair] = replace(line.estimate, value=sign * line.estimate.value)
    for scope in dict.fromkeys(scope for scope, _ in found):
        of_scope = (outcome for key, outcomes in found.items() if key[0] == scope for outcome in outcomes.values())
        if tested := [outcome for outcome in of_scope if outcome.complete]:
            raw = zip(*(_p_values(outcome, rules.margin) for outcome in tested), strict=True)
            corrected = [by * multipletests(p, method="holm")[1] for by, p in zip((2, 2, 0.5), raw, strict=True)]
            for outcome, *p in zip(tested, *corrected, strict=True):
                outcome.p = dict(zip((WORTH, HARMS, ENOUGH), p, strict=True))
    return {key: list(outcomes.values()) for key, outcomes in found.items()}


def _p_values(outcome: Outcome, margin: float) -> list[float]:
    """Of a gain over both, of harm, and of no gain over the same labels that matters.

    A fall in under-triage is no gain by itself: over-triage may pay for it.
    """
    over_sft, over_more = outcome.rows[OVER_SFT], outcome.rows[OVER_MORE]
    worse, less = replace(over_sft, value=-over_sft.value), replace(over_more, value=margin - over_more.value)
    claims = (over_sft, over_more), (worse,), (less,)
    found = [max(part.p if part.value > 0 else 1.0 for part in claim) for claim in claims]
    return [1.0, *found[1:]] if outcome.name == WATCHED else found


def over(outcomes: Sequence[Outcome], rules: Rules) -> str:
    """Harm in any outcome is harm; else a gain in any is a gain; enough only if it is so in all."""
    labels = [outcome.label(rules) for outcome in outcomes]
    first = next((label for label in (HARMS, WORTH) if label in labels), None)
    return first or (ENOUGH if set(labels) == {ENOUGH} else UNSURE)


def _said(
    outcomes: list[Outcome], of_tasks: list[Outcome], members: Sequence[Cell], rules: Rules, judged: list[Outcome]
) -> tuple[str, str]:
    """Verdict by ``judged``, and its sentence on the ``outcomes`` without the place; ``of_tasks`` may add an alarm."""
    sound = [cell for cell in members if not cell.failed_gates]
    if members and not sound:
        gates = sorted({gate for cell in members for gate in cell.failed_gates})
        return INVALID, f"nothing here may be relied on: failed gates: {', '.join(gates)}"
    if not outcomes:
        why = {reason for cell in sound for m in cell.judged() if (reason := cell.nothing(m))}
        return NOTHING, f"there is nothing to compare: {'; '.join(sorted(why)) or 'arms are missing'}"
    label = over(judged, rules)
    parts = [_evidence(outcome, rules, label) for outcome in outcomes]
    notes = [*_notes(label, outcomes, rules), *_left_out(members, rules)]
    claim = _claim(label, judged)
    if any(outcome.n_seeds < 2 for outcome in outcomes):
        claim = _ONE if all(len(cell.seeds) < 2 for cell in sound) else _SOME
    alarm = _alarm([*outcomes, *of_tasks], sound, rules)
    return label, "; ".join([f"{claim}{alarm and f'. {alarm}. In numbers'}: {'; '.join(parts)}", *notes])


def _claim(label: str, outcomes: Sequence[Outcome]) -> str:
    """What a verdict says in words; the same labels that are surely better are told from those that are as good."""
    found = [outcome.rows[OVER_MORE] for outcome in outcomes if outcome.name != WATCHED]
    if label == ENOUGH and found and all(_limits(estimate)[1] < 0 for estimate in found):
        return "SFT with the same labels did better than DPO"
    return _CLAIM[label]


def _evidence(outcome: Outcome, rules: Rules, said: str) -> str:
    """Differences of an outcome, and its own claim where that is another than the one ``said`` of all."""
    label, fewer = outcome.label(rules), outcome.name in LOWER_IS_BETTER  # in the sentence as they are, not turned
    rows = {pair: replace(e, value=-e.value) if fewer else e for pair, e in outcome.rows.items()}
    texts = [f"minus {_SAID[pair[1]]} {_numbers(rows[pair])}" for pair in _EVIDENCE if pair in rows]
    what = "" if outcome.name == MEAN else metric_name(outcome.name).removesuffix(", lower is better")
    what += " (more is worse)" if fewer else ""
    own = f" - {_claim(label, [outcome])}" if label != said and outcome.name != WATCHED else ""
    return f"{what}{what and ', '}DPO {', '.join(texts)}{own}"


def _alarm(outcomes: Sequence[Outcome], cells: Sequence[Cell], rules: Rules) -> str:
    """A sentence right behind the claim, whatever it is: that urgent patients were sent home more often."""
    watched = next((outcome.rows for outcome in outcomes if outcome.name == WATCHED), {})
    rises = {pair: -watched[pair].value for pair in (OVER_SFT, OVER_MORE) if pair in watched}
    pair = max(rises, key=rises.__getitem__, default=OVER_SFT)
    if rises.get(pair, 0.0) <= rules.margin:
        return ""
    found = {arm: np.array([cell.value(WATCHED, arm) for cell in cells]) for arm in ("dpo", "sft_more", "sft")}
    known = {arm: of[np.isfinite(of)] for arm, of in found.items()}
    levels = ", ".join(f"{of.mean():.3f} after {_SAID[arm]}" for arm, of in known.items() if len(of))
    more = f"{_numbers(replace(watched[pair], value=rises[pair]))} against {_SAID[pair[1]]}"
    return f"Watch under-triage: {levels}; {more} is more than the margin of {rules.margin:g}"


def _notes(label: str, outcomes: Sequence[Outcome], rules: Rules) -> list[str]:
    notes = []
    by_name = {outcome.name: outcome.rows for outcome in outcomes if outcome.name != WATCHED}
    if any(pair not in rows for rows in by_name.values() for pair in (OVER_SFT, OVER_MORE)):
        notes.append("without the arm sft_more a gain could be that of its labels")
    gains = [rows[OVER_MORE].value for rows in by_name.values() if OVER_MORE in rows]
    if label == WORTH and by_name and all(gain < rules.margin for gain in gains):
        notes.append(f"the gain is smaller than the margin of {rules.margin:g}")
    controls = [(rows.get(OVER_MORE), rows.get(("dpo", "sft_chosen"))) for rows in by_name.values()]
    if controls and all(a and b and (a.value, a.case) == (b.value, b.case) for a, b in controls):
        notes.append("the two controls answered alike: the better side of each pair is its label")
    return notes + ([rules.note] if rules.note else [])


def _left_out(cells: Sequence[Cell], rules: Rules) -> list[str]:
    """Which cells do not count, and how those that do stand beside baselines (means over seeds, no test)."""
    sound = [cell for cell in cells if not cell.failed_gates]
    used = [cell for cell in sound if any(m.metric.primary for m in cell.comparable())]
    counts = {"gates failed": len(cells) - len(sound), "nothing to compare": len(sound) - len(used)}
    counts["other test cases than the first model's"] = len(used) - len(on_same_cases(used))
    of = f"of {len(cells)} {'tasks' if len({cell.model for cell in cells}) == 1 else 'task x model'}"
    notes = [f"{n} {of} left out, {why}" for why, n in counts.items() if n]
    poor = rather = 0
    for cell in used:
        names = [m.metric.name for m in cell.judged() if m.metric.primary]
        best = {name: np.nanmax([cell.value(name, arm) for arm in ARMS]) for name in names}
        read, blind = ([x for name, x in cell.baselines.items() if (name in BLIND) == same] for same in (False, True))
        poor += any(cell.value(name, "dpo") <= simple.get(name, -1.0) for name in names for simple in blind)
        rather += any(all(simple.get(name, -1.0) > best[name] + rules.margin for name in names) for simple in read)
    where = f"in {{}} {of} " if len(cells) > 1 else ""
    if poor:
        notes.append(f"{where.format(poor)}DPO is no better than an answer without reading (commonest, or first words)")
    if rather:
        notes.append(f"{where.format(rather)}a classifier without a language model did better than every arm")
    return notes


def _between(lines: list[Scoped]) -> str:
    """What open-ended tasks gained more or less than classification, over the same labels and over SFT alone."""
    said = []
    for line in (line for pair in (OVER_MORE, OVER_SFT) for line in lines if line.pair == pair):
        value, (low, high) = line.estimate.value, _limits(line.estimate, 2)
        shown = "no difference is shown" if low <= 0 <= high else "the kinds differ"
        gained = f"{abs(value):.3f} {'less' if value < 0 else 'more'}"
        said.append(f"over {_SAID[line.pair[1]]} {gained} ({_numbers(line.estimate, 2)}: {shown})")
    told = " and ".join(said) or "nothing that was compared"
    return f"Open-ended tasks gained from DPO, compared with classification, {told}."
