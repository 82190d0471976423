"""A whole cell, SFT -> samples -> DPO -> answers, by this package and by its peer's commands.

    python benchmarks/cell.py --rounds 3 [--llamafactory VENV]

The work is that of the demo's clinical reasoning: 100 cases for 8 epochs, 6 samples of each, DPO on the same pairs for
everybody, 200 test cases. A peer needs a command for each step, which reads files that the step before has written;
here it is one process.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import peers

CASES, EPOCHS, SAMPLES, TESTED = 100, 8, 6, 200
#: A peer's commands, and the training whose adapter each starts from.
STEPS = {"sft": "", "samples": "sft", "dpo": "sft", "test": "dpo"}


def main() -> None:
    """Print the tables."""
    args = peers.arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="cell-") as name:
        folder = Path(name)
        peers.prepare(folder, CASES, pairs_per_case=2, test=TESTED, samples=SAMPLES)
        cells: dict[str, Any] = {"medstudy": ours}
        cells |= {"llamafactory": llamafactory} if args.llamafactory else {}
        found: dict[str, list[float]] = {name: [] for name in cells}
        for number in range(args.rounds):
            for name, commands in cells.items():
                for old in folder.glob(f"{name}-*/"):
                    shutil.rmtree(old)
                steps = [peers.measured(*step)["process"] for step in commands(args, folder, number)]
                found[name].append(sum(steps))
                print(number, name, [round(step, 1) for step in steps], file=sys.stderr, flush=True)
        print("| cell by | commands | seconds, median | x medstudy |\n|---|---|---|---|")
        fastest = statistics.median(found["medstudy"])
        for name, seconds in found.items():
            median, commands = statistics.median(seconds), 1 if name == "medstudy" else len(STEPS)
            print(f"| {name} | {commands} | {median:.1f} | {median / fastest:.2f} |")


def ours(args: argparse.Namespace, folder: Path, number: int) -> list[peers.Command]:
    """One process."""
    command = [sys.executable, __file__, "--cell", str(folder), str(number)]
    return [(command, peers.environment(args.threads, folder))]


def cell(folder: Path, number: int) -> None:
    """What the notebook does between the data and the tables."""
    from contestants import prepared, read
    from trl import DPOTrainer, SFTTrainer

    from medstudy.data.load import load_card, load_cases
    from medstudy.tasks import get_task
    from medstudy.training.arguments import dpo_config, sft_config
    from medstudy.training.fit import fit
    from medstudy.training.generation import answer_cases, sample_cases

    run = prepared(folder, sft_epochs=EPOCHS, seed=number, samples_per_case=SAMPLES, max_new_tokens=peers.NEW)
    card = load_card(run.params.data)
    task, cases = get_task(run.params.task, card), load_cases(card).cases[: CASES + TESTED]
    sft_args, dpo_args = sft_config(run.params, run), dpo_config(run.params, run)
    sft_args.bf16 = dpo_args.bf16 = True  # as the peers; the package's own default on a CPU is fp32
    sft = fit(run, "sft", SFTTrainer, sft_args, read(folder, "sft"))
    sample_cases(run, task, cases[:CASES], sft)
    dpo = fit(run, "dpo", DPOTrainer, dpo_args, read(folder, "dpo"), sft)
    answer_cases(run, "dpo", task, cases[CASES:], dpo)


def llamafactory(args: argparse.Namespace, folder: Path, number: int) -> list[peers.Command]:
    """Four commands."""
    at = {step: folder / f"llamafactory-{step}" for step in peers.RATES}
    epochs = {"sft": EPOCHS}
    return [peers.llamafactory(args, folder, s, number, epochs.get(s, 1), at.get(start)) for s, start in STEPS.items()]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        cell(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
