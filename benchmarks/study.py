"""A task of a study by `medstudy run`, against plain papermill in a loop; the same notebooks and parameters.

    python benchmarks/study.py params/demo numeric_classification --rounds 3

Everything is run anew in a temporary folder. The loop gives each notebook all cores, one after the other;
`medstudy run` runs several at once, and then the comparison and the report, which the loop does not have.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

BIN = Path(sys.executable).parent


def main() -> None:
    """Interleaved rounds; medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("task")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {"medstudy run": [], "papermill in a loop": []}
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="study-") as name:
            study, folder = only(args, Path(name)), Path(name)
            begun = time.monotonic()
            silent([BIN / "medstudy", "run", folder / "speed"])
            seconds["medstudy run"].append(time.monotonic() - begun)
            begun = time.monotonic()
            loop(args, study, folder)
            seconds["papermill in a loop"].append(time.monotonic() - begun)
        print(number, {way: round(found[-1]) for way, found in seconds.items()}, file=sys.stderr, flush=True)
    runs = len(study["models"]) * len(study["seeds"])
    ours = statistics.median(seconds["medstudy run"])
    print(f"| {runs} runs of {args.task} by | seconds | x medstudy |\n|---|---|---|")
    for way, found in seconds.items():
        print(f"| {way} | {statistics.median(found):.0f} | {statistics.median(found) / ours:.2f} |")


def only(args: argparse.Namespace, folder: Path) -> dict[str, list]:
    """Write a study of the one task, whose results go to the same folder; return its study file."""
    study = yaml.safe_load((args.study / "study.yaml").read_text(encoding="utf-8"))
    study["tasks"] = {args.task: study["tasks"][args.task]}
    shared = yaml.safe_load((args.study / "shared.yaml").read_text(encoding="utf-8"))
    shared |= {"study": "speed", "results": str(folder / "results")}
    (folder / "speed").mkdir()
    for file, values in {"study": study, "shared": shared}.items():
        (folder / "speed" / f"{file}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    shutil.copy(args.study / f"{args.task}.yaml", folder / "speed")
    return study


def loop(args: argparse.Namespace, study: dict[str, list], folder: Path) -> None:
    """One notebook after the other, results apart from those before."""
    given = ["-f", folder / "speed" / "shared.yaml", "-f", folder / "speed" / f"{args.task}.yaml"]
    for model in study["models"]:
        for seed in study["seeds"]:
            values = {"model": model, "seed": seed, "results": folder / "loop"}
            named = [word for name, value in values.items() for word in ("-p", name, value)]
            silent(
                [BIN / "papermill", f"notebooks/{args.task}.ipynb", folder / "out.ipynb", *given, *named],
                {"OMP_NUM_THREADS": str(os.cpu_count())},
            )


def silent(command: list[object], env: dict[str, str] | None = None) -> None:
    """Run a command; its output is shown if it fails."""
    made = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | (env or {}))
    if made.returncode:
        sys.exit(f"{command}: exit {made.returncode}\n{made.stdout[-2000:]}{made.stderr[-2000:]}")


if __name__ == "__main__":
    main()
