"""How time and memory of this package's trainings grow with rows, tokens and weights.

    python benchmarks/growth.py

From the work of `speed.py` (builtin/llama, 800 rows, one epoch) one thing at a time is changed: a quarter and
a half of the rows; each prompt said twice and four times; a model twice and four times as wide, whose weights
are random (its losses mean nothing).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from speed import ROWS, contestants, measured, prepare, write

#: What is changed: share of the rows, times the prompt, times the width.
CHANGES = [(1, 1, 1), (0.5, 1, 1), (0.25, 1, 1), (1, 2, 1), (1, 4, 1), (1, 1, 2), (1, 1, 4)]


def main() -> None:
    """Print a table for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--changes", nargs="+", type=int, default=range(len(CHANGES)), help="which lines")
    parser.set_defaults(only=["medstudy"], llamafactory=None, swift=None)
    args = parser.parse_args()
    for kind in ("sft", "dpo"):
        print(f"\n{kind.upper()}\n\n| rows | tokens a prompt | weights | loop s | x first | peak MB |")
        print("|---|---|---|---|---|---|")
        first = 0.0
        for number in args.changes:
            share, times, width = CHANGES[number]
            with tempfile.TemporaryDirectory(prefix="growth-") as name:
                folder = Path(name)
                prepare(folder, round(share * ROWS))
                tokens = lengthen(folder, kind, times)
                weights = widen(folder, width)
                command, env = contestants(args)["medstudy"](kind, folder, 0)
                found = measured(command, env)
            first = first or found["loop"]
            print(
                f"| {round(share * ROWS)} | {tokens:.0f} | {weights / 1e6:.1f} million | {found['loop']:.1f} "
                f"| {found['loop'] / first:.2f} | {found['peak']:.0f} |",
                flush=True,
            )


def lengthen(folder: Path, kind: str, times: int) -> float:
    """Say what the user says several times; returns the mean tokens of a prompt."""
    from transformers import AutoTokenizer

    rows = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
    for row in rows:
        row["prompt"][-1]["content"] = "\n".join([row["prompt"][-1]["content"]] * times)
    write(folder / f"{kind}.json", rows)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return statistics.mean(
        len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)) for row in rows
    )


def widen(folder: Path, width: int) -> int:
    """Put a wider model into the place of the built-in one, and an adapter for it; returns its weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    if width == 1:
        return AutoModelForCausalLM.from_pretrained(folder / "model").num_parameters()
    config = AutoConfig.from_pretrained(folder / "model")
    config.hidden_size *= width
    config.intermediate_size *= width
    config.num_attention_heads *= width
    config.num_key_value_heads *= width
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "model")
    (folder / "model" / "recipe.json").unlink()  # which names the weights that were there
    lora = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    weights = model.num_parameters()
    get_peft_model(model, lora).save_pretrained(folder / "untrained")
    return weights


if __name__ == "__main__":
    main()
