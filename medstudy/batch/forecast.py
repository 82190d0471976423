"""What a run will take, said before it starts: memory and minutes, from the model's shape and the cases' tokens.

Two operations a weight and token forward, as many backward (frozen weights get no gradient of their own), two more with
gradient checkpointing. How near it came to what was measured is told in docs/running.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medstudy.params import RunParams
from medstudy.training.models import EAGER_GB, eager_gb

#: Gigabytes before there is a model: libraries and figures of a process; a CUDA context.
LIBRARIES_GB, CONTEXT_GB = 0.75, 0.6
#: Operations a second: of a core (LoRA on a 135M model, fp32, measured), and of a GPU (supposed).
CPU_RATE, GPU_RATE = 60e9, 100e12
#: Seconds that a step, a new token of a batch and a run cost whatever the model's size (measured, built-ins).
STEP_SECONDS, TOKEN_SECONDS, RUN_SECONDS = 0.08, 0.01, 8.0
#: Bytes kept for the way back, for each token, layer and element of hidden and intermediate size (measured).
KEPT = 24


@dataclass(frozen=True)
class Work:
    """Of a run's cases: mean tokens of prompt and answer, the longest of both together, cases in each split."""

    prompt: float
    answer: float
    longest: int
    trained: int
    preferred: int
    tested: int


def model_without_weights(source: str) -> Any:
    """Any model that transformers can lay out; OSError or ValueError where config.json is missing or not known."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))


def seconds(run: RunParams, model: Any, work: Work, rate: float) -> float:
    """Of one run at ``rate`` operations a second."""
    row, again = work.prompt + work.answer, 1 if run.gradient_checkpointing else 0
    drawn = work.preferred * run.samples_per_case if run.pair_source == "own_errors" else 0
    tested = work.tested * (6 if run.few_shot_k else 5)
    # chosen and rejected share their prompt; the reference is one more way forward
    pairs = len(run.tries("dpo")) * run.dpo_epochs * work.preferred * run.pairs_per_case
    tokens = (2 + again) * (run.sft_epochs * work.trained + 2 * pairs) * row + (3 + again) * pairs * (row + work.answer)
    tokens += work.preferred * bool(drawn) * work.prompt + drawn * work.answer + tested * row
    steps = (run.sft_epochs * work.trained + 3 * pairs) / (run.batch_size * run.gradient_accumulation)
    # a batch is done when its longest answer is
    answering = TOKEN_SECONDS * (drawn + tested) / run.eval_batch_size * run.max_new_tokens
    return 2 * model.num_parameters() * tokens / rate + RUN_SECONDS + STEP_SECONDS * steps + answering


def gigabytes(run: RunParams, model: Any, work: Work, gpu: bool) -> float:
    """At the highest point of one run, of GPU or process: DPO's training or the answers."""
    from torch.nn import Linear

    text, head = model.config.get_text_config(), model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, Linear) and m is not head]
    linear = sum(layer.weight.numel() for layer in layers)
    wide = 2 if run.dtype == "bfloat16" or (gpu and run.dtype == "auto") else 4
    held = (model.num_parameters() - linear) * wide + linear * (0.55 if run.quantization == "4bit" else wide)
    # the adapter's weight, gradient and two moments; the reference
    held += sum(layer.in_features + layer.out_features for layer in layers) * run.lora_rank * (4 * 4 + 4)
    depth, hidden, heads = text.num_hidden_layers, text.hidden_size, text.num_attention_heads
    layer = KEPT * (hidden + (getattr(text, "intermediate_size", None) or 4 * hidden))
    kept = layer + wide * hidden * depth if run.gradient_checkpointing else layer * depth
    logits = 2 * work.answer * text.vocab_size * 4 * 3  # logits, softmax, gradient
    training = run.batch_size * ((work.longest + work.answer) * kept + logits)
    if not gpu and wide == 4 and (eager := eager_gb(run, model.config, work.longest)) <= EAGER_GB:
        training += eager * 1e9
    keys = (getattr(text, "head_dim", None) or hidden // heads) * (getattr(text, "num_key_value_heads", None) or heads)
    # keys and values, copied when the cache grows
    answering = 2 * 2 * keys * depth * wide * run.eval_batch_size * (work.longest + run.max_new_tokens)
    return (CONTEXT_GB if gpu else LIBRARIES_GB) + (held + max(training, answering)) / 1e9
