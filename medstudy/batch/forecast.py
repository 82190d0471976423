"""What a run will take, said before it starts: work, memory and time, from the model's shape. Loads no model.

Counted are operations and bytes that the shape fixes: two operations a weight and token forward, as many
backward (frozen weights get no gradient of their own), two more with gradient checkpointing; the adapter with
its gradient and Adam's two moments in fp32; what a layer keeps of each token for the way back; keys and
values. How fast a processor does it was measured once (docs/running.md); a forecast is right within a factor
of two, which is enough to choose a setting.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medstudy.params import BUILTIN, RunParams
from medstudy.runs import from_root

#: Gigabytes before there is a model: libraries and figures of a process; a CUDA context.
LIBRARIES_GB, CONTEXT_GB = 0.75, 0.6
#: Share of an fp32 matrix product's speed that SFT reached on a CPU (135M shape, two threads).
REACHED = 0.8
#: Seconds that a step, a new token of a batch and a run cost whatever the model's size (measured, built-ins).
STEP_SECONDS, TOKEN_SECONDS, RUN_SECONDS = 0.08, 0.01, 8.0
#: Bytes kept for the way back, for each token, layer and element of hidden and intermediate size (measured).
KEPT = 24
#: Of logits, for a vocabulary of ten thousands.
LOGITS_GB = 0.3


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with gated feed-forward layers, as Llama's, Mistral's and Qwen's are."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    queries: int  # width of all heads together
    keys: int  # width of keys, and of values
    tied: bool

    @property
    def linear(self) -> list[tuple[int, int]]:
        """Ends of the linear layers of one block."""
        hidden, wide = self.hidden, self.intermediate
        attention = [(hidden, self.queries), (hidden, self.keys), (hidden, self.keys), (self.queries, hidden)]
        return [*attention, (hidden, wide), (hidden, wide), (wide, hidden)]

    @property
    def embeddings(self) -> int:
        """Weights of input and output embedding."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """All weights, norms left out."""
        return self.embeddings + self.layers * sum(a * b for a, b in self.linear)

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA of this rank on every linear layer."""
        return rank * self.layers * sum(a + b for a, b in self.linear)


@dataclass(frozen=True)
class Tokens:
    """Of a run's cases: mean tokens of prompt and answer, and of the longest of both together."""

    prompt: float
    answer: float
    longest: int


@dataclass(frozen=True)
class Forecast:
    """Of one run: gigabytes at its highest point, of GPU or process; operations; seconds on a core."""

    gigabytes: float
    operations: float
    seconds: float


@cache
def read_shape(model: str) -> Shape | None:
    """From the `config.json` of a built-in model, a local folder or the hub; None if it cannot be had."""
    try:
        said = json.loads(_config_file(model).read_text(encoding="utf-8"))
        said = said.get("text_config", said)
        if said.get("num_local_experts") or said.get("num_experts"):
            return None  # of a mixture only some weights are at work
        heads = said["num_attention_heads"]
        width = said.get("head_dim") or said["hidden_size"] // heads
        return Shape(
            vocabulary=said["vocab_size"],
            hidden=said["hidden_size"],
            intermediate=said["intermediate_size"],
            layers=said["num_hidden_layers"],
            queries=width * heads,
            keys=width * (said.get("num_key_value_heads") or heads),
            tied=bool(said.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _config_file(model: str) -> Path:
    if model in BUILTIN:
        return Path(__file__).parents[1] / "base_models" / model.replace("/", "-") / "config.json"
    if from_root(model).is_dir():
        return from_root(model) / "config.json"
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, "config.json"))


def forecast(
    params: RunParams, shape: Shape, tokens: Tokens, cases: tuple[int, int], rate: float, gpu: bool
) -> Forecast:
    """Of one run.

    Args:
        params: of the run.
        shape: the model's.
        tokens: of its cases.
        cases: how many train and are tested.
        rate: operations a second of a large matrix product on a core, see `processor_rate`.
        gpu: whether the run is given one.
    """
    trained, tested = cases
    row = tokens.prompt + tokens.answer
    pairs = trained * params.pairs_per_case
    again = 2 if params.gradient_checkpointing else 0
    dpo_rows = params.dpo_epochs * pairs
    weights = 2 * shape.weights
    trainings = (2 + again / 2) * weights * params.sft_epochs * trained * row
    trainings += (2 + again / 2) * weights * params.dpo_epochs * pairs * row
    # chosen and rejected share their prompt; the reference is one more way forward
    trainings += (3 + again / 2) * weights * dpo_rows * (row + tokens.answer)
    drawn = trained * params.samples_per_case if params.pair_source == "own_errors" else 0
    # of the few-shot arm the examples are read once
    arms = 5 if params.few_shot_k else 4
    said = arms * tested * row
    reading = weights * (trained * bool(drawn) * tokens.prompt + drawn * tokens.answer + said)
    step = params.batch_size * params.gradient_accumulation
    more = params.dpo_epochs * pairs
    steps = (params.sft_epochs * trained + dpo_rows + more) / step
    batches = (drawn + arms * tested) / params.eval_batch_size
    # a batch is done when its longest answer is
    overhead = RUN_SECONDS + STEP_SECONDS * steps + TOKEN_SECONDS * batches * params.max_new_tokens
    operations = trainings + reading
    seconds = operations / (REACHED * rate) + overhead
    return Forecast(_gigabytes(params, shape, tokens, gpu), operations, seconds)


def _gigabytes(params: RunParams, shape: Shape, tokens: Tokens, gpu: bool) -> float:
    """At the highest point: DPO's training or the answers."""
    wide = 2 if params.dtype == "bfloat16" or (gpu and params.dtype == "auto") else 4
    linear = shape.weights - shape.embeddings
    held = shape.embeddings * wide + linear * (0.55 if params.quantization == "4bit" else wide)
    held += shape.adapter(params.lora_rank) * (4 * 4 + 4)  # weight, gradient, two moments; the reference
    batch = params.batch_size * (tokens.longest + tokens.answer)
    layer = KEPT * (shape.hidden + shape.intermediate)
    kept = layer * shape.layers
    if params.gradient_checkpointing:
        kept = layer + wide * shape.hidden * shape.layers
    cache = 2 * shape.keys * shape.layers * wide  # it is copied when it grows
    answering = 2 * cache * params.eval_batch_size * (tokens.longest + params.max_new_tokens)
    base = CONTEXT_GB if gpu else LIBRARIES_GB
    return base + LOGITS_GB * (shape.vocabulary > 10_000) + (held + max(batch * kept, answering)) / 1e9


@cache
def processor_rate(tries: int = 20) -> float:
    """Operations a second of an fp32 matrix product on one core; the best try, as others may be at work."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    size, best = 512, float("inf")
    a = np.ones((size, size), dtype=np.float32)
    with threadpool_limits(1):
        for _ in range(tries):
            begun = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
