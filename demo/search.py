"""Settings from validation cases: trains every candidate for a study, and answers no test case.

    python -m demo.search params/demo params/demo/candidates/round3.yaml --seed 100 101 102 --model builtin/llama

As the notebooks do it with ``candidates``, without what they do besides. All but the seed and the candidates (a YAML
file: task -> arm -> settings) is the study's own, so that its test cases are set aside here too. Appends a row a trial
to ``tried.csv`` in ``results/<study>_search``, and prints the means over the seeds, best first: what is best in one
training may be more than another stands.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from trl import DPOTrainer, SFTTrainer

from medstudy.arms import ARMS
from medstudy.data.load import load_card, load_cases
from medstudy.data.splits import split_cases
from medstudy.evaluation.choose import choose
from medstudy.params import RunParams, read_yaml, resolve
from medstudy.runs import Run, Stage, run_folder
from medstudy.studies import load_study
from medstudy.tasks import get_task
from medstudy.training import arguments, preferences, prompts
from medstudy.training.chat import Row, load_chat
from medstudy.training.checks import CONTROLS
from medstudy.training.fit import fit


def search(params: RunParams) -> list[dict[str, object]]:
    """A row a trial of SFT, DPO and the two controls: settings, score and number of validation cases, chosen or not."""
    run, card = Run(params), load_card(params.data)
    task, chat = get_task(params.task, card), load_chat(params)
    loaded = load_cases(card, params.data_root)
    run.keep_source(card, loaded.cases)
    splits = split_cases(prompts.fit_context(loaded.cases, task, chat, params)[0], params)
    run.keep("splits", splits)

    def chosen(arm: str, trainer: type, made_by: Callable[[RunParams], Any], rows: list[Row], start: Any) -> Stage:
        trials = [(tried, fit(run, arm, trainer, made_by(tried), rows, start)) for tried in params.tries(arm)]
        return choose(run, arm, task, splits.validation, trials)[0]

    lora, rows = arguments.lora_config(params), [prompts.sft_row(task, case) for case in splits.train]
    sft = chosen("sft", SFTTrainer, lambda p: arguments.sft_config(p, run), rows, lora)
    pairs = preferences.pairs_of(run, task, splits.prefer, sft).pairs
    dpo = chosen("dpo", DPOTrainer, lambda p: arguments.dpo_config(p, run), [pair.row() for pair in pairs], sft)
    steps = dpo.facts["steps"]
    of_kind = {
        "train": rows,
        "prefer": [prompts.sft_row(task, case, task.target(case)) for case in splits.prefer],
        "chosen": [pair.chosen_row() for pair in pairs],
    }
    for arm in CONTROLS:
        rows, number = of_kind[ARMS[arm].rows], len(of_kind[ARMS[arm].rows])
        chosen(arm, SFTTrainer, lambda p, a=arm, n=number: arguments.control_config(p, run, a, n, steps), rows, sft)
    found = [row for arm in run.tried.values() for row in arm]
    return [{"task": params.task, "model": params.model, "seed": params.seed, **row} for row in found]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.search", description="Settings from validation cases.")
    parser.add_argument("study", type=Path)
    parser.add_argument("candidates", type=Path)
    parser.add_argument("--seed", type=int, nargs="+", required=True, help="some that the study does not use")
    parser.add_argument("--model", help="this model of the study alone")
    args = parser.parse_args()
    study, asked = load_study(args.study), read_yaml(args.candidates)
    if own := set(args.seed) & set(study.seeds):
        parser.error(f"--seed {min(own)} is one of {study.name}'s own ({study.seeds})")
    for task, candidates in asked.items():
        for model in [args.model] if args.model else study.models:
            found = []
            for seed in args.seed:
                own = study.run(task, model, seed).model_dump()
                params = resolve(own | {"study": f"{study.name}_search", "candidates": candidates})
                rows = pd.DataFrame(search(params))
                rows["settings"] = rows["settings"].map(json.dumps)
                file = run_folder(params).parents[2] / "tried.csv"
                rows.to_csv(file, mode="a", header=not file.exists(), index=False)
                found.append(rows)
            means = pd.concat(found).groupby(["task", "model", "arm", "settings"], sort=False)["score"].mean()
            print(means.reset_index().sort_values(["arm", "score"], ascending=False).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
