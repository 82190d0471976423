"""What a run will take, said before it starts: memory and minutes, from the model's shape and the cases' tokens.

Counted are operations and bytes that the shape fixes: two operations a weight and token forward, as many backward
(frozen weights get no gradient of their own), two more with gradient checkpointing; the adapter with its gradient and
Adam's two moments in fp32; what a layer keeps of each token for the way back; keys and values; the answers' logits.
How near it came to what was measured is told in docs/running.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medstudy.params import RunParams

#: Gigabytes before there is a model: libraries and figures of a process; a CUDA context.
LIBRARIES_GB, CONTEXT_GB = 0.75, 0.6
#: Operations a second: of a core (LoRA on a 135M model, fp32, measured), and of a GPU (supposed).
CPU_RATE, GPU_RATE = 60e9, 100e12
#: Seconds that a step, a new token of a batch and a run cost whatever the model's size (measured, built-ins).
STEP_SECONDS, TOKEN_SECONDS, RUN_SECONDS = 0.08, 0.01, 8.0
#: Bytes kept for the way back, for each token, layer and element of hidden and intermediate size (measured).
KEPT = 24


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: all weights, those of its linear layers, the sum of these layers' ends, and what a token is."""

    weights: int
    linear: int
    ends: int
    layers: int
    hidden: int
    intermediate: int
    keys: int
    vocabulary: int


@dataclass(frozen=True)
class Work:
    """Of a run's cases: mean tokens of prompt and answer, the longest of both together, cases in each split."""

    prompt: float
    answer: float
    longest: int
    trained: int
    preferred: int
    tested: int


def work(prompt: float, answer: float, longest: int, parts: dict[str, list[Any]]) -> Work:
    """Of a run whose splits are ``parts``."""
    return Work(prompt, answer, longest, *(len(parts[name]) for name in ("train", "prefer", "test")))


def read_shape(source: str) -> Shape:
    """Of any model that transformers can lay out, without its weights.

    Raises:
        OSError, ValueError: there is no config.json, or of a kind that is not known.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        weights=sum(parameter.numel() for parameter in model.parameters()),
        linear=sum(layer.weight.numel() for layer in layers),
        ends=sum(layer.in_features + layer.out_features for layer in layers),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        keys=width * (getattr(text, "num_key_value_heads", None) or heads),
        vocabulary=text.vocab_size,
    )


def seconds(params: RunParams, shape: Shape, work: Work, rate: float) -> float:
    """Of one run at ``rate`` operations a second."""
    row, again = work.prompt + work.answer, 1 if params.gradient_checkpointing else 0
    pairs = work.preferred * params.pairs_per_case
    drawn = work.preferred * params.samples_per_case if params.pair_source == "own_errors" else 0
    arms, tries = 6 if params.few_shot_k else 5, len(params.tries("dpo"))
    # chosen and rejected share their prompt; the reference is one more way forward
    after = tries * params.dpo_epochs * pairs
    tokens = (2 + again) * (params.sft_epochs * work.trained + 2 * after) * row
    tokens += (3 + again) * after * (row + work.answer)
    tokens += work.preferred * bool(drawn) * work.prompt + drawn * work.answer + arms * work.tested * row
    rows = params.sft_epochs * work.trained + 3 * after
    steps = rows / (params.batch_size * params.gradient_accumulation)
    batches = (drawn + arms * work.tested) / params.eval_batch_size
    # a batch is done when its longest answer is
    overhead = RUN_SECONDS + STEP_SECONDS * steps + TOKEN_SECONDS * batches * params.max_new_tokens
    return 2 * shape.weights * tokens / rate + overhead


def gigabytes(params: RunParams, shape: Shape, work: Work, gpu: bool) -> float:
    """At the highest point of one run, of GPU or process: DPO's training or the answers."""
    wide = 2 if params.dtype == "bfloat16" or (gpu and params.dtype == "auto") else 4
    held = (shape.weights - shape.linear) * wide + shape.linear * (0.55 if params.quantization == "4bit" else wide)
    held += shape.ends * params.lora_rank * (4 * 4 + 4)  # weight, gradient, two moments; the reference
    layer = KEPT * (shape.hidden + shape.intermediate)
    kept = layer + wide * shape.hidden * shape.layers if params.gradient_checkpointing else layer * shape.layers
    training = params.batch_size * (work.longest + work.answer) * kept
    training += params.batch_size * 2 * work.answer * shape.vocabulary * 4 * 3  # logits, softmax, gradient
    cached = 2 * 2 * shape.keys * shape.layers * wide  # it is copied when it grows
    answering = cached * params.eval_batch_size * (work.longest + params.max_new_tokens)
    return (CONTEXT_GB if gpu else LIBRARIES_GB) + (held + max(training, answering)) / 1e9
