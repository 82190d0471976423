"""A whole cell, SFT -> samples -> DPO -> answers, by this package and by its peers' commands; two at once.

    python benchmarks/cell.py --rounds 3 [--llamafactory VENV] [--swift VENV]

The work is that of the demo's clinical reasoning: 100 cases for 8 epochs, 6 samples of each, DPO on the same pairs for
everybody, 200 test cases. A peer needs a command for each step, which reads files that the step before has written;
here it is one process. Then two cells at once with a thread each, against one after the other with all threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
from peers import BATCH, BETA, RATES

CASES, EPOCHS, SAMPLES, TESTED, NEW = 100, 8, 6, 200, 48


def main() -> None:
    """Print the tables."""
    args = peers.arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="cell-") as name:
        folder = Path(name)
        peers.prepare(folder, CASES, 2, TESTED)
        for form in ("lf-sft.json", "swift-sft.jsonl"):  # the same prompts, several times
            text = (folder / form).read_text()
            rows = json.loads(text) * SAMPLES if form.endswith("json") else None
            (folder / form.replace("sft", "samples")).write_text(json.dumps(rows) if rows else text * SAMPLES)
        info = json.loads((folder / "dataset_info.json").read_text())
        peers.write(folder / "dataset_info.json", info | {"samples": info["sft"] | {"file_name": "lf-samples.json"}})
        cells: dict[str, Any] = {"medstudy": ours}
        cells |= {"llamafactory": llamafactory} if args.llamafactory else {}
        cells |= {"swift": swift} if args.swift else {}
        found: dict[str, list[float]] = {name: [] for name in cells}
        for number in range(args.rounds):
            for name, cell in cells.items():
                steps = [peers.measured(*step)["process"] for step in cell(args, folder, number)]
                found[name].append(sum(steps))
                print(number, name, [round(step, 1) for step in steps], file=sys.stderr, flush=True)
        print("| cell by | commands | seconds, median | x medstudy |\n|---|---|---|---|")
        fastest = statistics.median(found["medstudy"])
        for name, seconds in found.items():
            median = statistics.median(seconds)
            print(f"| {name} | {len(cells[name](args, folder, 0))} | {median:.1f} | {median / fastest:.2f} |")
        side_by_side(args, folder)


def ours(args: argparse.Namespace, folder: Path, number: int) -> list[peers.Command]:
    """One process."""
    from medstudy.batch.run_notebook import job_environment

    env = peers.plain(args.threads) | job_environment(folder / "scratch", folder / "private", args.threads, [])
    return [([sys.executable, __file__, "--cell", str(folder), str(number)], env)]


def cell(folder: Path, number: int) -> None:
    """What the notebook does between the data and the tables."""
    from contestants import prepared
    from trl import DPOTrainer, SFTTrainer

    from medstudy.data.load import load_card, load_cases
    from medstudy.tasks import get_task
    from medstudy.training.arguments import dpo_config, sft_config
    from medstudy.training.fit import fit
    from medstudy.training.generation import answer_cases, sample_cases

    asked = {"results": str(folder / f"results{number}-{time.time()}"), "sft_epochs": EPOCHS, "seed": number}
    run, rows = prepared(folder, **asked, samples_per_case=SAMPLES, max_new_tokens=NEW)
    card = load_card(run.params.data)
    task, cases = get_task(run.params.task, card), load_cases(card).cases[: CASES + TESTED]
    sft = fit(run, "sft", SFTTrainer, sft_config(run.params, run), rows("sft"))
    sample_cases(run, task, cases[:CASES], sft)
    dpo = fit(run, "dpo", DPOTrainer, dpo_config(run.params, run), rows("dpo"), sft)
    answer_cases(run, "dpo", task, cases[CASES:], dpo)


def llamafactory(args: argparse.Namespace, folder: Path, number: int) -> list[peers.Command]:
    """Four commands."""
    say = {"stage": "sft", "do_predict": True, "predict_with_generate": True, "max_new_tokens": NEW}
    say |= {"per_device_eval_batch_size": 64}
    sft, dpo = str(folder / "lf-out-sft"), str(folder / "lf-out-dpo")
    steps: dict[str, dict[str, Any]] = {
        "sft": {"stage": "sft", "dataset": "sft", "num_train_epochs": EPOCHS, "learning_rate": RATES["sft"]},
        "samples": say | {"eval_dataset": "samples", "adapter_name_or_path": sft, "temperature": 1.0},
        "dpo": {"stage": "dpo", "dataset": "dpo", "num_train_epochs": 1, "learning_rate": RATES["dpo"]},
        "answers": say | {"eval_dataset": "test", "adapter_name_or_path": dpo, "do_sample": False},
    }
    steps["dpo"]["adapter_name_or_path"] = sft
    made = []
    for name, asked in steps.items():
        step = peers.llamafactory(args.llamafactory, folder, args.threads, f"lf-out-{name}", seed=number, **asked)
        made.append(step)
    return made


def swift(args: argparse.Namespace, folder: Path, number: int) -> list[peers.Command]:
    """Four commands."""
    say = {"infer_backend": "transformers", "max_batch_size": 64, "max_new_tokens": NEW, "stream": "false"}
    say |= {"load_data_args": "false", "write_batch_size": 1000}
    out = {name: folder / f"swift-out{number}-{name}" for name in ("sft", "dpo")}
    last = {"sft": -(-CASES // BATCH) * EPOCHS, "dpo": -(-2 * CASES // BATCH)}
    at = {name: out[name] / f"checkpoint-{last[name]}" for name in out}
    file = {name: folder / f"swift-{name}.jsonl" for name in ("sft", "samples", "dpo", "test")}
    sft = {"dataset": file["sft"], "output_dir": out["sft"], "num_train_epochs": EPOCHS, "learning_rate": RATES["sft"]}
    dpo = {"dataset": file["dpo"], "output_dir": out["dpo"], "num_train_epochs": 1, "learning_rate": RATES["dpo"]}
    steps: list[tuple[list[str], dict[str, Any]]] = [
        (["sft"], sft),
        (["infer"], say | {"val_dataset": file["samples"], "adapters": at["sft"], "temperature": 1}),
        (["rlhf", "--rlhf_type", "dpo"], dpo | {"beta": BETA, "adapters": at["sft"]}),
        (["infer"], say | {"val_dataset": file["test"], "adapters": at["dpo"], "temperature": 0}),
    ]
    return [peers.swift(args.swift, folder, args.threads, verb, seed=number, **asked) for verb, asked in steps]


def side_by_side(args: argparse.Namespace, folder: Path) -> None:
    """Two cells in turn with all threads, or at once with a thread each."""
    turns = [pair_of_cells(args, folder, at_once) for _ in range(args.rounds) for at_once in (False, True)]
    one, both = statistics.median(turns[::2]), statistics.median(turns[1::2])
    print("\n| two cells | seconds | throughput |\n|---|---|---|")
    print(f"| one after the other | {one:.1f} | 1.00 |\n| at once | {both:.1f} | {one / both:.2f} |")


def pair_of_cells(args: argparse.Namespace, folder: Path, at_once: bool) -> float:
    """Seconds for two cells."""
    shared = argparse.Namespace(**vars(args) | {"threads": max(1, args.threads // 2) if at_once else args.threads})
    begun, running = time.monotonic(), []
    for number in (0, 1):
        [(command, env)] = ours(shared, folder, number)
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        if not at_once:
            running[-1].wait()
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"cells ended with {codes}")
    return time.monotonic() - begun


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        cell(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
