"""Memory and minutes of a run, said before it starts, from the model's shape and the cases' tokens.

Two operations a weight and token forward, as many backward (frozen weights get no gradient of their own), two more with
gradient checkpointing. How near it came to what was measured is told in docs/running.md.
"""

import statistics
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from medstudy.arms import ARMS, TRAINED
from medstudy.params import RunParams
from medstudy.training.checkpoint import locate
from medstudy.training.checks import CONTROLS
from medstudy.training.models import EAGER_GB, eager_gb
from medstudy.training.prompts import Lengths


def needs(run: RunParams, lengths: Lengths, cases: dict[str, int], gpus: int) -> str:
    """A line; ``cases`` in each split."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(locate(run)))
        weights = model.num_parameters()
        gb = gigabytes(run, model.config, weights, lengths, gpus > 0) / max(1, gpus)
    except (OSError, ValueError, AttributeError) as error:
        return f"memory and time are not foretold for a model of this kind ({type(error).__name__})"
    # operations a second: of a core measured (LoRA on a 135M model, fp32), of a GPU supposed
    minutes = max(1, seconds(run, weights, lengths, cases, rate=100e12 if gpus else 60e9) / 60)
    time = f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"
    where = f"GPU memory and {time} at 100 TFLOP/s" if gpus else f"memory and {time} on one idle core"
    millions = f"{weights / 1e6:,.{int(weights < 1e7)}f}"
    return f"{millions} million weights; a run takes about {gb:.1f} GB of {where} (up to twice that)"


def seconds(run: RunParams, weights: int, lengths: Lengths, cases: dict[str, int], rate: float) -> float:
    """Of one run at ``rate`` operations a second."""
    prompt, answer = statistics.mean(lengths.prompt), statistics.mean(lengths.answer)
    row, backward = prompt + answer, 3 if run.gradient_checkpointing else 2
    drawn = cases["prefer"] * run.samples_per_case if run.pair_source == "own_errors" else 0
    answered = drawn + cases["test"] * (len(ARMS) - (not run.few_shot_k))
    made = cases["prefer"] * run.pairs_per_case
    rows = {"train": cases["train"], "prefer": cases["prefer"], "chosen": made, "pairs": made}
    least = min(tried.dpo_epochs for tried in run.tries("dpo")) * made  # a control has DPO's steps, or more
    trained = dict.fromkeys(TRAINED, 0.0)
    for arm in TRAINED:
        tries = run.tries(arm)
        answered += cases["validation"] * len(tries) * (len(tries) > 1)
        for tried in tries:
            own = getattr(tried, f"{arm}_epochs", tried.dpo_epochs) * rows[ARMS[arm].rows]
            trained[arm] += max(own, least) if arm in CONTROLS else own
    pairs = sum(n for arm, n in trained.items() if ARMS[arm].rows == "pairs")
    sft = sum(trained.values()) - pairs
    # chosen and rejected share their prompt; the reference is one more way forward
    tokens = backward * sft * row + (backward + 1) * pairs * (row + answer) + answered * row
    steps = (sft + pairs) / (run.batch_size * run.gradient_accumulation)
    # measured, whatever the model's size: a run 8 s, a step 80 ms, a new token of a batch 10 ms
    overhead = 8 + 0.08 * steps + 0.01 * run.max_new_tokens * answered / run.eval_batch_size
    return 2 * weights * tokens / rate + overhead


def gigabytes(run: RunParams, config: Any, weights: int, lengths: Lengths, gpu: bool) -> float:
    """At the highest point of one run, of GPU or process: DPO's training or the answers."""
    text, longest, answer = config.get_text_config(), lengths.longest, statistics.mean(lengths.answer)
    depth, hidden, heads = text.num_hidden_layers, text.hidden_size, text.num_attention_heads
    wide = 2 if run.dtype == "bfloat16" or (gpu and run.dtype == "auto") else 4
    embedded = text.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    held = embedded * wide + (weights - embedded) * (0.55 if run.quantization == "4bit" else wide)
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    # the adapter of a layer's 7 matrices: its weights, gradient and two moments, and the reference
    held += depth * run.lora_rank * (11 * hidden + 3 * inner) * 5 * 4
    layer = 24 * (hidden + inner)  # bytes kept for the way back, for each token (measured)
    kept = layer + wide * hidden * depth if run.gradient_checkpointing else layer * depth
    logits = 2 * answer * text.vocab_size * 4 * 3  # logits, softmax, gradient
    training = run.batch_size * ((longest + answer) * kept + logits)
    if not gpu and wide == 4 and (eager := eager_gb(run, config, longest)) <= EAGER_GB:
        training += eager * 1e9
    keys = hidden / heads * (getattr(text, "num_key_value_heads", None) or heads)
    # keys and values, copied when the cache grows
    answering = 2 * 2 * keys * depth * wide * run.eval_batch_size * (longest + run.max_new_tokens)
    # libraries of a process, or a CUDA context
    return (0.6 if gpu else 0.75) + (held + max(training, answering)) / 1e9
