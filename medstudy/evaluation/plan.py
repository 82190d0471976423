"""Before anything runs: what a design can show; and the plan that is frozen before the test set is read."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medstudy.data.card import load_card
from medstudy.data.cases import DataError
from medstudy.data.load import load_cases
from medstudy.data.splits import split_cases
from medstudy.evaluation.scopes import MEAN, WATCHED, places
from medstudy.evaluation.statistics import PRIOR_DF, Estimate, combined, smallest_detectable
from medstudy.evaluation.verdict import ALPHA, RULES
from medstudy.files import fingerprint, read_json, write_whole
from medstudy.studies import StudyParams

#: Pocock's constant: the level of each of so many equally spaced looks, so that all together keep .05.
POCOCK = {1: ALPHA, 2: 0.0294, 3: 0.0221, 4: 0.0182, 5: 0.0158}
#: Both contrasts have to be found: each with this power, so that both are with 80 %, were they independent.
_POWER = 0.8**0.5


def earlier_variances(results: Path | None = None) -> pd.DataFrame:
    """tables/variances.csv of an earlier study; by default that of the demo, which comes with the package."""
    file = (results / "tables" if results else Path(__file__).parent) / "variances.csv"
    if not file.is_file():
        raise DataError(f"{file} does not exist; give the results folder of a study that was compared")
    return pd.read_csv(file)


def test_cases(study: StudyParams) -> dict[str, int]:
    """Task -> test cases that its parameters ask for; for all there are (0), the groups that the source gives."""
    found = {}
    for task in study.tasks:
        run = study.run(task, study.models[0], study.seeds[0])
        found[task] = run.n_test
        if not run.n_test:
            loaded = load_cases(load_card(run.data), run.data_root)
            found[task] = len({case.group_id for case in split_cases(loaded.cases, run).test})
    return found


def shows(
    variances: pd.DataFrame, cases: dict[str, int], models: int, seeds: int, alpha: float = ALPHA
) -> pd.DataFrame:
    """What a design can show of DPO minus SFT with the same labels, for the study, kinds, tasks and cells.

    ``variances`` as tables/variances.csv (a task that is not in it takes the mean of the others), ``cases`` of each
    task, ``seeds``: trainings a cell. Columns scope, name, cases, seeds, half_width (of the 95 % interval) and gain
    (found with 80 % power against both SFT and SFT with the same labels, after correction for the names of its scope).
    """
    known = variances[(variances["contrast"] == "dpo-sft_more") & (variances["outcome"] != WATCHED)]
    rows = []
    for scope in ("study", "kind", "task", "cell"):
        # the mean over the earlier study's models varies less than one model does
        like = known[known["scope"] == ("cell" if scope == "cell" or models == 1 else "task")]
        times, names = models if scope == "cell" else 1, {}
        for task in cases:
            names.setdefault(places(f"{task}, one model")[scope], []).append(task)
        for name, members in names.items():
            parts = [_expected(like, task, cases[task], seeds, len(cases) * times) for task in members]
            of, level = combined(parts, [1 / len(parts)] * len(parts)), alpha / 2 / (len(names) * times)
            gain = smallest_detectable(of.error, level, _POWER, of.df) if seeds > 1 else np.nan
            row = {"scope": scope, "name": name, "cases": sum(cases[task] for task in members), "seeds": seeds}
            rows.append(row | {"half_width": round(np.ptp(of.interval()) / 2, 3), "gain": round(gain, 3)})
    return pd.DataFrame(rows)


def _expected(known: pd.DataFrame, task: str, cases: int, seeds: int, lines: int) -> Estimate:
    """The error of a task or cell, one of ``lines`` that are moderated together."""
    used = known[known["task"] == task] if (known["task"] == task).any() else known
    if (used["outcome"] == MEAN).any():
        used = used[used["outcome"] == MEAN]
    alone, case = (float((used[name] ** 2 * used["n_cases"]).mean()) / cases for name in ("own_sd", "case_sd"))
    # few trainings tell little of their variance: it is drawn towards that of all tasks, as in the verdicts in units
    # of what cases change in one training
    units = [float((rows["own_sd"] ** 2 * rows["n_cases"]).mean()) for rows in (known, used)]
    trainings = [float((rows["seed_sd"] ** 2 - rows["own_sd"] ** 2).mean()) for rows in (known, used)]
    trainings[0] *= units[1] / units[0] if all(units) else 1.0  # 0: too few to be told
    weight = PRIOR_DF / (PRIOR_DF + used["n_seeds"].mean() - 1)
    seed = (max(0.0, weight * trainings[0] + (1 - weight) * trainings[1]) + alone) / seeds
    pooled = max(1.0, lines * (seeds - 1))
    return Estimate(0.0, seed, case, min(PRIOR_DF + seeds - 1, pooled), cases - 1, pooled)


def freeze(study: StudyParams, results: Path) -> dict[str, Any]:
    """Write ``plan.json``: rules, looks, margin and every parameter, with a hash of them all.

    Refused (`DataError`) where a run was evaluated, so the test set has been read, or another plan was frozen.
    """
    looks, file = study.all_looks, results / "plan.json"
    plan: dict[str, Any] = {"study": study.name, "question": study.question, "rules": RULES, "margin": study.margin}
    plan |= {"looks": looks, "alpha": POCOCK[len(looks)], "models": study.models}
    runs = [study.run(task, model, study.seeds[0]) for task in study.tasks for model in study.models]
    plan["runs"] = [run.model_dump(exclude={"seed", "results", "data_root"}) for run in runs]
    plan["hash"] = fingerprint(plan)
    if frozen := read_json(file):
        if frozen["hash"] != plan["hash"]:
            raise DataError(
                f"{file} was frozen with hash {frozen['hash']}, now it would be {plan['hash']}: undo changes"
            )
        return frozen
    if done := sorted(str(path.parent) for path in results.glob("*/*/seed*/metrics.json")):
        raise DataError(f"{done[0]} has been evaluated: the test set is read, so a plan frozen now would prove nothing")
    plan["frozen"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_whole(file, json.dumps(plan, indent=1, ensure_ascii=False))
    return plan
