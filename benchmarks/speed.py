"""The same two trainings by this package, by its peers and by a bare loop, interleaved: ratios of medians.

    python benchmarks/speed.py --rounds 3 [--llamafactory VENV] [--swift VENV]

Work: LoRA of rank 32 on every linear layer of builtin/llama, 800 rows, batches of 8, one epoch; SFT on cases of
synthetic_vignettes, DPO on their pairs, everyone from the same weights and with the same rates. Round k uses seed k.
`loop` is the training loop with the reference, `process` everything from start to exit, `peak` the largest memory;
`loss` is that of the saved adapter over all rows, judged alike for everyone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers

HERE = Path(__file__).parent
ROWS = 800


def main() -> None:
    """Run the rounds and print a table for each training."""
    parser = peers.arguments(__doc__)
    parser.add_argument("--training", nargs="+", choices=("sft", "dpo"), default=["sft", "dpo"])
    parser.add_argument("--only", nargs="+", help="contestants to run; default: all that are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        folder = Path(name)
        peers.prepare(folder, ROWS)
        runners = contestants(args, folder)
        for kind in args.training:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
            for seed in range(args.rounds):
                for name, runner in runners.items():
                    shutil.rmtree(folder / f"{name}-{kind}", ignore_errors=True)
                    result = peers.measured(*runner(kind, seed))
                    result["loop"] = loop_seconds(folder / f"{name}-{kind}", result)
                    result["loss"] = judged(kind, folder, name)
                    found[name].append(result)
                    print(kind, seed, name, json.dumps(result), file=sys.stderr, flush=True)
            print_table(kind, found)


def contestants(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[str, int], peers.Command]]:
    """Everyone who is there: a function from training and seed to a command and its environment."""
    from medstudy.batch.run_notebook import job_environment

    plain = peers.plain(args.threads)

    def ours(name: str) -> Callable[[str, int], peers.Command]:
        # what a notebook job is started with; the floor gets it too
        job = job_environment(folder / "scratch", folder / "private", args.threads, [])
        program = [sys.executable, str(HERE / "contestants.py"), name]
        return lambda kind, seed: ([*program, kind, str(folder), str(seed)], plain if name == "trl" else plain | job)

    def llamafactory(kind: str, seed: int) -> peers.Command:
        asked = {
            "stage": kind,
            "dataset": kind,
            "num_train_epochs": 1,
            "learning_rate": peers.RATES[kind],
            "seed": seed,
        }
        return peers.llamafactory(args.llamafactory, folder, args.threads, f"llamafactory-{kind}", **asked)

    def swift(kind: str, seed: int) -> peers.Command:
        asked = {"dataset": folder / f"swift-{kind}.jsonl", "output_dir": folder / f"swift-{kind}", "seed": seed}
        asked |= {"num_train_epochs": 1, "learning_rate": peers.RATES[kind]}
        verb = ["rlhf", "--rlhf_type", "dpo"] if kind == "dpo" else ["sft"]
        return peers.swift(
            args.swift, folder, args.threads, verb, **asked | ({"beta": peers.BETA} if kind == "dpo" else {})
        )

    found: dict[str, Any] = {name: ours(name) for name in ("floor", "medstudy", "trl")}
    found |= {"llamafactory": llamafactory} if args.llamafactory else {}
    found |= {"swift": swift} if args.swift else {}
    return {name: runner for name, runner in found.items() if name in (args.only or found)}


def loop_seconds(folder: Path, result: dict[str, float]) -> float:
    """The training loop, from what the contestant says or the trainer's own record of it."""
    if "loop" in result:
        return result["loop"]
    if (folder / "train_results.json").is_file():
        return float(json.loads((folder / "train_results.json").read_text())["train_runtime"])
    lines = (folder / "logging.jsonl").read_text().splitlines()
    return float(next(row["train_runtime"] for row in map(json.loads, lines) if "train_runtime" in row))


def judged(kind: str, folder: Path, name: str) -> float:
    """Loss of the adapter that a contestant saved."""
    out = folder / f"{name}-{kind}"
    if name == "medstudy":
        adapter = Path((folder / f"medstudy-{kind}.txt").read_text())
    else:
        adapter = max(out.rglob("adapter_config.json"), key=lambda path: path.stat().st_mtime).parent
    (folder / "judged.txt").write_text(str(adapter), encoding="utf-8")
    command = [sys.executable, str(HERE / "contestants.py"), "evaluate", kind, str(folder), "0"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(asked.stdout.splitlines()[-1])["loss"])


def print_table(kind: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Medians as a Markdown table, in the contestants' order."""
    floor = statistics.median(result["loop"] for result in found["floor"]) if "floor" in found else None
    print(f"\n{kind.upper()}, {ROWS} rows, {len(next(iter(found.values())))} rounds\n")
    print("| contestant | loop s | x floor | process s | CPU s | peak MB | loss, each round |\n|" + 7 * "---|")
    for name, results in found.items():
        m = {key: statistics.median(r[key] for r in results) for key in results[0]}
        cells = [name, f"{m['loop']:.1f}", f"{m['loop'] / floor:.2f}" if floor else "", f"{m['process']:.1f}"]
        cells += [f"{m['cpu']:.0f}", f"{m['peak']:.0f}", ", ".join(f"{r['loss']:.4f}" for r in results)]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
