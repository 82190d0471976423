"""Answers: 8 samples of each of 300 prompts, and one greedy answer, against one prompt at a time.

    python benchmarks/generation.py --rounds 3

The model is `builtin/llama` after SFT on 800 rows: the base itself hardly says a word. Microseconds
a token, interleaved, and how many greedy answers are the same in fp32.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
from contestants import medstudy_loop, read

ROWS, SAMPLES, PROMPTS, AT_ONCE = 800, 8, 300, 64


def main() -> None:
    """Interleaved rounds; medians."""
    from medstudy.params import resolve
    from medstudy.training.chat import load_chat
    from medstudy.training.models import load_model

    args = peers.arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="generation-") as name:
        folder = Path(name)
        peers.prepare(folder, ROWS)
        with contextlib.redirect_stdout(sys.stderr):  # its progress
            medstudy_loop("sft", folder, 0)
        messages = [row["prompt"] for row in read(folder, "sft")[:PROMPTS]]
        params = resolve({"task": "clinical_reasoning"})
        model, chat = load_model(params, folder / "medstudy-sft", merged=True), load_chat(params)
    times: dict[str, list[float]] = {"one by one, greedy": [], "batched, greedy": [], "8 samples a prompt": []}
    for _ in range(args.rounds):
        found = [one_by_one(model, chat, messages)]
        found += [batched(model, chat, messages, 1), batched(model, chat, messages, SAMPLES)]
        for (seconds, ids), kept in zip(found, times.values(), strict=True):
            kept.append(seconds / sum(map(len, ids)))
        same = sum(alone == other for alone, other in zip(found[0][1], found[1][1], strict=True))
    print(f"{PROMPTS} prompts, {same} greedy answers the same token for token\n")
    print("| way | microseconds a token | x one by one |\n|---|---|---|")
    slow = statistics.median(times["one by one, greedy"])
    for way, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {way} | {1e6 * median:.0f} | {slow / median:.1f} |")


def batched(model: Any, chat: Any, messages: list[Any], samples: int) -> tuple[float, list[list[int]]]:
    """As the notebooks do: seconds, and the tokens of each answer."""
    from medstudy.training.decoding import Decoding, decode

    begun = time.monotonic()
    made = decode(model, chat, messages, Decoding(peers.NEW, AT_ONCE, samples, 1.0 if samples > 1 else 0.0))
    return time.monotonic() - begun, [ids for several in made.ids for ids in several]


def one_by_one(model: Any, chat: Any, messages: list[Any]) -> tuple[float, list[list[int]]]:
    """By the library's own generate: seconds, and the tokens of each answer."""
    import torch

    begun, answers, tokenizer = time.monotonic(), [], chat.tokenizer
    how = {"max_new_tokens": peers.NEW, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    for one in messages:
        asked = tokenizer.apply_chat_template(one, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            made = model.generate(**asked, **how, eos_token_id=tokenizer.eos_token_id)
        answers.append(made[0, asked["input_ids"].shape[1] :].tolist())
    return time.monotonic() - begun, answers


if __name__ == "__main__":
    main()
