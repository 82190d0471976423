"""Kill a study at random moments, start it again each time, and see that nothing is lost or half-done.

    python benchmarks/kill.py params/demo --times 20 --reference ../undisturbed/results/demo

Run in a checkout without results of that study. Prints what was killed and when, then one line a check: the
study ends well; a stage that had finished was never written again; metrics and contrasts of every run are
byte for byte those of an undisturbed run (on the same kind of machine).
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

COMPARED = ("metrics.json", "contrasts.json", "gates.json", "baselines.json")


def main() -> int:
    """Kill, start again, compare; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--between", type=float, nargs=2, default=(15, 75), help="seconds from start to kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, help="results of the same study, undisturbed")
    args = parser.parse_args()
    results = Path("results") / args.study.name
    if results.exists():
        sys.exit(f"{results} exists: start where the study has not run")
    rng, finished = random.Random(args.seed), {}
    for number in range(1, args.times + 1):
        seconds = rng.uniform(*args.between)
        killed_after(args.study, seconds)
        markers = results.glob("*/*/seed*/private/stages/*/*/stage.json")  # of stages that have finished
        finished |= {f: f.stat().st_mtime_ns for f in markers if f not in finished}
        runs = len(list(results.glob("*/*/seed*/run.json")))
        print(f"kill {number}: after {seconds:.0f} s; {len(finished)} stages, {runs} runs finished", flush=True)
    begun = time.monotonic()
    code = subprocess.run(command(args.study), stdout=subprocess.DEVNULL).returncode
    print(f"last start: exit {code}, {time.monotonic() - begun:.0f} s")
    again = [f for f, written in finished.items() if f.stat().st_mtime_ns != written]
    print(f"finished stages written again: {len(again)} of {len(finished)}")
    other = different(results, args.reference) if args.reference else []
    print("\n".join(f"differs: {name}" for name in other) or "all runs as undisturbed")
    left = [str(p) for p in results.rglob("checkpoint-*")]
    return int(bool(code or again or other or left))


def command(study: Path) -> list[str]:
    """What a user types."""
    return [sys.executable, "-m", "medstudy.batch.cli", "run", str(study)]


def killed_after(study: Path, seconds: float) -> None:
    """Start the study, and kill the command that was started: its jobs must die with it."""
    job = subprocess.Popen(command(study), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        job.wait(seconds)
        sys.exit("the study ended before it was killed: give it less time")
    except subprocess.TimeoutExpired:
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    time.sleep(4)  # what the kill leaves behind is to be gone by now


def different(results: Path, reference: Path) -> list[str]:
    """Files of the contract that are not as in the undisturbed study, or missing on one side."""
    names = {f.relative_to(folder) for folder in (results, reference) for n in COMPARED for f in folder.rglob(n)}
    both = [n for n in names if (results / n).is_file() and (reference / n).is_file()]
    same = {n for n in both if filecmp.cmp(results / n, reference / n, shallow=False)}
    return sorted(map(str, names - same))


if __name__ == "__main__":
    sys.exit(main())
