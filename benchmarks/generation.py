"""Answers: 8 samples of each of 300 prompts, and one greedy answer, against one prompt at a time.

    python benchmarks/generation.py --rounds 3

The model is `builtin/llama` after SFT on 800 rows, as in the notebooks: the base itself hardly says a word.
Seconds a token, interleaved; how many greedy answers are the same in fp32; and how time and memory grow with
the number of prompts (x1, x2, x4), each in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contestants import medstudy_loop
from speed import prepare

NEW = 48


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64, help="answers at once; a run's eval_batch_size")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--grow", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.grow:
        print(json.dumps(sampled(args, *ready(args.folder, args.grow)) | memory()))
        return
    with tempfile.TemporaryDirectory(prefix="generation-") as name:
        args.folder = Path(name)
        prepare(args.folder)
        with contextlib.redirect_stdout(sys.stderr):  # its progress
            medstudy_loop("sft", json.loads((args.folder / "sft.json").read_text()), args.folder, 0)
        tables(args)


def tables(args: argparse.Namespace) -> None:
    """Against one at a time, then growth."""
    against_one_by_one(args)
    print("\n| prompts | seconds | tokens/s | peak MB |\n|---|---|---|---|")
    for prompts in (75, 150, 300):
        command = [sys.executable, __file__, "--grow", str(prompts), "--samples", str(args.samples)]
        command += ["--folder", str(args.folder), "--batch", str(args.batch)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
        found = json.loads(said.splitlines()[-1])
        speed = found["tokens"] / found["seconds"]
        print(f"| {prompts} | {found['seconds']:.1f} | {speed:.0f} | {found['peak']:.0f} |")


def ready(folder: Path, prompts: int) -> tuple[Any, Any, list[Any]]:
    """The model after SFT, its tokenizer and the prompts of that many cases."""
    from medstudy.data.load import load_card, load_cases
    from medstudy.params import resolve
    from medstudy.tasks import get_task
    from medstudy.training.models import load_model, load_tokenizer

    params = resolve({"task": "clinical_reasoning", "data": "synthetic_vignettes"})
    card = load_card(params.data)
    task, cases = get_task(params.task, card), load_cases(card).cases[:prompts]
    model = load_model(params, Path((folder / "medstudy-sft.txt").read_text()), merged=True)
    return model, load_tokenizer(params), [task.messages(case) for case in cases]


def sampled(args: argparse.Namespace, model: Any, tokenizer: Any, messages: list[Any]) -> dict[str, float]:
    """Samples as the notebooks draw them."""
    from medstudy.training.generation import Decoding, decode

    begun = time.monotonic()
    made = decode(model, tokenizer, messages, Decoding(NEW, args.batch, args.samples, 1.0))
    seconds = time.monotonic() - begun
    return {"seconds": seconds, "tokens": sum(len(ids) for several in made.ids for ids in several)}


def memory() -> dict[str, float]:
    """Of this process at its highest point."""
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def against_one_by_one(args: argparse.Namespace) -> None:
    """Interleaved rounds; medians."""
    import torch

    from medstudy.training.generation import Decoding, decode
    from medstudy.training.models import stop_tokens
    from medstudy.training.prompts import prompt_ids

    model, tokenizer, messages = ready(args.folder, args.prompts)
    times: dict[str, list[float]] = {"one by one, greedy": [], "batched, greedy": [], "samples": []}
    for _ in range(args.rounds):
        begun, alone = time.monotonic(), []
        for one in messages:
            ids = torch.tensor([prompt_ids(tokenizer, one)])
            with torch.inference_mode():
                made = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=NEW,
                    do_sample=False,
                    eos_token_id=stop_tokens(model, tokenizer),
                    pad_token_id=tokenizer.pad_token_id,
                )
            alone.append(made[0, ids.shape[1] :].tolist())
        times["one by one, greedy"].append((time.monotonic() - begun) / sum(map(len, alone)))
        begun = time.monotonic()
        greedy = decode(model, tokenizer, messages, Decoding(NEW, args.batch))
        times["batched, greedy"].append((time.monotonic() - begun) / sum(len(ids) for (ids,) in greedy.ids))
        same = sum(ids == other for (ids,), other in zip(greedy.ids, alone, strict=True))
        found = sampled(args, model, tokenizer, messages)
        times["samples"].append(found["seconds"] / found["tokens"])
    slow = statistics.median(times["one by one, greedy"])
    print(f"{args.prompts} prompts, {same} greedy answers the same token for token\n")
    print("| way | microseconds a token | x one by one |\n|---|---|---|")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        label = f"{args.samples} samples a prompt" if name == "samples" else name
        print(f"| {label} | {1e6 * median:.0f} | {slow / median:.1f} |")


if __name__ == "__main__":
    main()
