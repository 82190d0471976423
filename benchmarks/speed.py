"""The same two trainings by this package, by its peers and by a bare loop, interleaved: ratios of medians.

    python benchmarks/speed.py --rounds 3 [--llamafactory VENV]

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
from pathlib import Path

import peers

ROWS = 800


def main() -> None:
    """Run the rounds and print a table for each training."""
    parser = peers.arguments(__doc__)
    parser.add_argument("--training", nargs="+", choices=("sft", "dpo"), default=["sft", "dpo"])
    parser.add_argument("--only", nargs="+", help="contestants to run; default: all that are there")
    args = parser.parse_args()
    names = ["floor", "medstudy", "trl", *["llamafactory"] * bool(args.llamafactory)]
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        folder = Path(name)
        peers.prepare(folder, ROWS)
        for kind in args.training:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in args.only or names}
            for seed in range(args.rounds):
                for name, results in found.items():
                    shutil.rmtree(folder / f"{name}-{kind}", ignore_errors=True)
                    result = peers.measured(*command(args, folder, name, kind, seed))
                    result["loop"] = loop_seconds(folder / f"{name}-{kind}", result)
                    result["loss"] = judged(folder / f"{name}-{kind}", kind)
                    results.append(result)
                    print(kind, seed, name, json.dumps(result), file=sys.stderr, flush=True)
            print_table(kind, found)


def contestant(name: str, kind: str, folder: Path, last: str | int) -> list[str]:
    """The command of one that is written in `contestants.py`."""
    return [sys.executable, str(Path(__file__).with_name("contestants.py")), name, kind, str(folder), str(last)]


def command(args: argparse.Namespace, folder: Path, name: str, kind: str, seed: int) -> peers.Command:
    """A training by ``name`` and its environment; the floor gets that of a notebook job too."""
    if name == "llamafactory":
        return peers.llamafactory(args, folder, kind, seed)
    env = peers.environment(args.threads, None if name == "trl" else folder)
    return contestant(name, kind, folder, seed), env


def loop_seconds(out: Path, result: dict[str, float]) -> float:
    """The training loop, from what the contestant says or the trainer's own record of it."""
    if "loop" in result:
        return result["loop"]
    return float(json.loads((out / "train_results.json").read_text())["train_runtime"])


def judged(out: Path, kind: str) -> float:
    """Loss of the adapter that a contestant saved."""
    adapter = max(out.rglob("adapter_config.json"), key=lambda path: path.stat().st_mtime).parent
    asked = contestant("evaluate", kind, out.parent, adapter.relative_to(out.parent))
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["loss"])


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
