"""An 8B-shaped model with random weights through SFT, samples, DPO and answers: memory and speed.

    python benchmarks/gpu.py --shape 8b          # a GPU of 80 GB or more; --quantization 4bit for 24 GB
    python benchmarks/gpu.py --shape tiny        # on a CPU, to see that it runs

The weights are random, so what the model says means nothing; the work is that of a real one. The share of
the card counts 4 operations a weight and trained token (the frozen weights have no gradient of their own),
6 for DPO with its reference, over the rate of a large bf16 matrix product measured in the same process.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 14336, "vocab_size": 128256},
    "135m": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
             "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 128, "vocab_size": 4096},
}  # fmt: skip


def main() -> int:
    """Run the stages and print a line of JSON each."""
    import torch
    from trl import DPOTrainer, SFTTrainer

    from medstudy.data.load import load_card, load_cases
    from medstudy.params import resolve
    from medstudy.runs import Run
    from medstudy.tasks import get_task
    from medstudy.training.arguments import dpo_config, sft_config
    from medstudy.training.fit import fit
    from medstudy.training.generation import answer_cases, sample_cases
    from medstudy.training.preferences import make_pairs
    from medstudy.training.prompts import sft_row

    args = arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        weights = save_model(args.shape, Path(folder) / "model")
        asked = {"task": "clinical_reasoning", "model": f"{folder}/model", "results": f"{folder}/results"}
        asked |= {"quantization": args.quantization, "batch_size": args.batch_size, "lora_rank": 16, "sft_epochs": 1}
        asked |= {"gradient_checkpointing": args.checkpointing, "max_new_tokens": 64, "samples_per_case": 4}
        params = resolve(asked | {"eval_batch_size": 32, "pair_source": "labels", "pairs_per_case": 1})
        run, card = Run(params), load_card(params.data)
        task, cases = get_task(params.task, card), load_cases(card).cases[: args.rows]
        rate = matmul_rate()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        say("machine", device=device, weights=weights, matmul_tflops=round(rate / 1e12, 1))
        sft = fit(run, "sft", SFTTrainer, sft_config(params, run), [sft_row(task, case) for case in cases])
        say("sft", **trained(sft, weights, rate))
        begun = time.monotonic()
        sample_cases(run, task, cases[:32], sft)
        new = run.stages["samples"].facts["new_tokens"]
        say("samples", tokens_per_s=round(new / (time.monotonic() - begun)), **memory())
        rows = [pair.row() for pair in make_pairs(params, task, cases).pairs]
        dpo = fit(run, "dpo", DPOTrainer, dpo_config(params, run), rows, sft)
        say("dpo", **trained(dpo, weights, rate))
        begun = time.monotonic()
        answer_cases(run, "dpo", task, cases[:32], dpo)
        say("answers", seconds=round(time.monotonic() - begun, 1), **memory())
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--quantization", choices=("none", "4bit"), default="none")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--folder", help="where the weights go for the time being (16 GB for 8b)")
    return parser.parse_args()


def save_model(shape: str, folder: Path) -> int:
    """Random weights in bf16 with the built-in tokenizer; returns how many."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from medstudy.training.checkpoint import BASE_MODELS

    tokenizer = AutoTokenizer.from_pretrained(BASE_MODELS / "builtin-llama")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**{"tie_word_embeddings": False} | SHAPES[shape], **ends, max_position_embeddings=8192)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def trained(stage: Any, weights: int, rate: float) -> dict[str, Any]:
    """Speed and memory of a training. Frozen weights: forward and backward of activations, 4 a weight."""
    seconds, tokens = stage.facts["train_seconds"], stage.facts["tokens"]
    passes = 6 if stage.name == "dpo" else 4  # DPO also runs its reference forward: 2 more
    share = passes * weights * tokens / seconds / rate
    return {"tokens_per_s": round(tokens / seconds), "share_of_matmul": round(share, 3), **memory()}


def matmul_rate() -> float:
    """Operations a second of a large bf16 matrix product."""
    import torch
    from torch.utils.benchmark import Timer

    size, device = (8192, "cuda") if torch.cuda.is_available() else (1024, "cpu")
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())  # warms up and waits for the GPU
    return 2 * size**3 / timer.timeit(20).mean


def memory() -> dict[str, Any]:
    """Peak memory in GB: of the GPU since the last question; without one, of the process so far."""
    import torch

    if not torch.cuda.is_available():
        return {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 1)}
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gb": round(peak, 1)}


def say(what: str, **facts: Any) -> None:
    """A line of JSON."""
    print(json.dumps({"stage": what} | facts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
