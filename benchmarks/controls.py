"""Controls on the method itself: does it find what is there, and claim nothing that is not?

    python benchmarks/controls.py simulate                 # known effects, no model
    python benchmarks/controls.py swapped results/demo     # DPO on pairs swapped at random, real trainings

Simulated predictions follow a logistic model: a case has a hardness that all arms and seeds share, a
training (arm and seed) is better or worse than another by chance, DPO may have an effect. So the true
difference is known, and with it whether an interval holds it and whether a verdict is false.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from medstudy.evaluation.evaluate import pooled
from medstudy.evaluation.statistics import smallest_detectable
from medstudy.evaluation.verdict import HARMS, WORTH, Cell, verdict_table

ARMS = ("base", "sft", "sft_more", "dpo")
#: Spread of the cases' hardness on the logit scale.
HARDNESS = 1.5
SFT_LOGIT = 0.5


def simulated(
    rng: np.random.Generator, cases: int, seeds: int, effect: float, retraining: float
) -> dict[int, pd.DataFrame]:
    """Predictions of all arms for every seed; ``effect`` and ``retraining`` (a SD) are in logits."""
    hardness = rng.normal(0, HARDNESS, cases)
    logit = {"base": -2.0, "sft": SFT_LOGIT, "sft_more": SFT_LOGIT, "dpo": SFT_LOGIT + effect}
    tables = {}
    for seed in range(seeds):
        parts = []
        for arm in ARMS:
            spread = 0.0 if arm == "base" else retraining
            p = 1 / (1 + np.exp(-(logit[arm] + rng.normal(0, spread) + hardness)))
            right = rng.random(cases) < p
            parts.append(_rows(arm, right))
        tables[seed] = pd.concat(parts, ignore_index=True)
    return tables


def _rows(arm: str, right: np.ndarray) -> pd.DataFrame:
    ids = [f"case-{i}" for i in range(len(right))]
    gold, wrong = json.dumps({"diagnosis": "a"}), json.dumps({"diagnosis": "b"})
    return pd.DataFrame(
        {
            "case_id": ids,
            "group_id": ids,
            "arm": arm,
            "output": "",
            "status": "parsed",
            "answer": np.where(right, gold, wrong),
            "gold": gold,
            "score_correct": right.astype(float),
        }
    )


def true_difference(effect: float, retraining: float) -> float:
    """Accuracy of DPO minus SFT over all cases and all trainings, by quadrature of the normal mixture."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    spread = np.hypot(HARDNESS, retraining)
    sft, dpo = (
        float(weights @ (1 / (1 + np.exp(-(SFT_LOGIT + b + spread * nodes)))) / weights.sum()) for b in (0, effect)
    )
    return dpo - sft


def simulate(studies: int, resamples: int, seed_counts: list[int]) -> pd.DataFrame:
    """One row a scenario: coverage, rates of verdicts, power seen against power by formula."""
    lines = []
    for seeds in seed_counts:
        for retraining in (0.0, 0.1, 0.2):
            for effect in (0.0, 0.3, 0.6):
                lines.append(_scenario(studies, resamples, 200, seeds, effect, retraining))
                print(lines[-1], flush=True)
    return pd.DataFrame(lines)


def _scenario(
    studies: int, resamples: int, cases: int, seeds: int, effect: float, retraining: float
) -> dict[str, float]:
    truth = true_difference(effect, retraining)
    verdicts: Counter[str] = Counter()
    covered = found = 0
    detectable = []
    for study in range(studies):
        rng = np.random.default_rng([study, seeds, int(100 * effect), int(100 * retraining)])
        tables = simulated(rng, cases, seeds, effect, retraining)
        metrics, contrasts = pooled(tables, "clinical_reasoning", {}, None, seed=study, resamples=resamples)
        table = verdict_table([Cell("clinical_reasoning", "simulated", metrics, contrasts, seeds)])
        verdicts[table["verdict"][0].split(":")[0]] += 1
        row = next(r for r in contrasts if r["contrast"] == "dpo-sft" and r["metric"] == "accuracy")
        covered += row["low"] <= truth <= row["high"]
        found += row["p"] < 0.05
        detectable.append(row["error"])
    error = float(np.sqrt(np.mean(np.square(detectable))))
    from scipy.stats import norm

    return {
        "seeds": seeds,
        "retraining SD (accuracy points)": round(100 * _points(retraining), 1),
        "true difference": round(truth, 3),
        "coverage of 95 % interval": covered / studies,
        "dpo-sft: p < 0.05": found / studies,
        "power by formula": round(float(norm.sf(1.96 - truth / error) + norm.cdf(-1.96 - truth / error)), 3),
        WORTH: verdicts[WORTH] / studies,
        HARMS: verdicts[HARMS] / studies,
        "SFT is enough": verdicts["SFT is enough"] / studies,
        "inconclusive": verdicts["inconclusive"] / studies,
        "smallest detectable": round(smallest_detectable(error), 3),
        "studies": studies,
    }


def _points(retraining: float) -> float:
    """SD of an arm's accuracy over trainings: the slope of the marginal mean times the logit SD."""
    return retraining * true_difference(0.01, 0.0) / 0.01


def swapped(study: Path) -> pd.DataFrame:
    """Train DPO of every finished run again, each pair turned round with probability 1/2; verdict a cell."""
    from trl import DPOTrainer

    from medstudy.data.load import load_card, load_cases
    from medstudy.data.splits import split_cases
    from medstudy.evaluation.comparison import finished_runs
    from medstudy.evaluation.predictions import predictions_table
    from medstudy.params import RunParams
    from medstudy.runs import Run
    from medstudy.tasks import get_task
    from medstudy.training.arguments import dpo_config
    from medstudy.training.chat import load_chat
    from medstudy.training.fit import fit
    from medstudy.training.generation import answer_cases
    from medstudy.training.prompts import fit_context

    by_cell: dict[tuple[str, str], dict[int, pd.DataFrame]] = {}
    labels = {}
    for finished in finished_runs(study):
        asked = RunParams(**finished.parameters)
        run = Run(asked.model_copy(update={"study": f"{asked.study}-swapped"}))
        card = load_card(asked.data)
        task, chat = get_task(asked.task, card), load_chat(asked)
        cases, _ = fit_context(load_cases(card, asked.data_root).cases, task, chat, asked)
        test = split_cases(cases, asked.n_train, asked.n_valid, asked.n_test, asked.seed, asked.split_seed).test
        rng = np.random.default_rng(asked.seed)
        rows = []
        for line in (finished.folder / "private" / "pairs.jsonl").read_text().splitlines():
            pair = json.loads(line)
            sides = [pair["chosen"], pair["rejected"]]
            chosen, rejected = sides if rng.random() < 0.5 else reversed(sides)
            rows.append(
                {
                    "prompt": pair["prompt"],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                }
            )
        if not rows:
            continue
        key = finished.record["stages"]["sft"]["key"]
        start = run.stage("sft", (), copied=key)
        kept = finished.folder / "private" / "stages" / "sft" / key
        shutil.copytree(kept, start.folder, dirs_exist_ok=True)
        stage = fit(run, "dpo", DPOTrainer, dpo_config(asked, run), rows, start=start)
        answers = {"dpo": answer_cases(run, "dpo", task, test, stage)}
        table = predictions_table(task, test, answers)
        # the arm trained here has no label probabilities
        old = finished.predictions().drop(columns=["score_p_positive", "score_brier"], errors="ignore")
        table = pd.concat([old[old["arm"] != "dpo"], table], ignore_index=True)
        by_cell.setdefault((asked.task, asked.model), {})[asked.seed] = table
        labels[asked.task] = (card.labels, card.positive)
        print(asked.task, asked.model, asked.seed, len(rows), "pairs", flush=True)
    cells = [
        Cell(task, model, *pooled(tables, task, *labels[task]), seeds=len(tables))
        for (task, model), tables in by_cell.items()
    ]
    return verdict_table(cells)


def main() -> None:
    """Run a control and print its table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("control", choices=["simulate", "swapped"])
    parser.add_argument("study", nargs="?", type=Path)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3, 5])
    args = parser.parse_args()
    known = args.control == "simulate"
    table = simulate(args.studies, args.resamples, args.seeds) if known else swapped(args.study)
    print(table.to_csv(index=False))


if __name__ == "__main__":
    main()
