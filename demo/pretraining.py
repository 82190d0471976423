"""The two built-in base models: a tokenizer and 2 million parameters each, pretrained on synthetic text.

They make the offline default possible and are no medical models. Their weights ship with the package
(medstudy/base_models). `notebooks/base_model.ipynb` made them; it shows every step, repeats the first ones,
and makes them anew when asked.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.files import write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

WEIGHTS = "model.safetensors"
#: Documents read ahead, so that a batch holds rows of similar length.
POOL = 512
BOS, PAD, USER, ASSISTANT, END = "<s>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a built-in model's weights, beside the corpus and this file."""

    architecture: str
    corpus_seed: int
    key_value_heads: int
    vocabulary: int = 2048
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    head_size: int = 64
    intermediate: int = 512
    context: int = 2048
    tokens_per_batch: int = 3072
    user_weight: float = 0.1
    tokens: int = 8_000_000
    learning_rate: float = 0.02
    tokenizer_documents: int = 6000


RECIPES = {
    "builtin/llama": Recipe("llama", corpus_seed=1, key_value_heads=3),
    "builtin/mistral": Recipe("mistral", corpus_seed=2, heads=4, key_value_heads=2),
}


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the corpus, digits one by one, with a chat template that ends every turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, BOS, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(itertools.islice(_texts(recipe), recipe.tokenizer_documents), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT]})
    return tokenizer


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An untrained Llama or Mistral of the recipe's size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        recipe.architecture,
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.head_size,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.corpus_seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of token ids, int64 (rows, length), and of loss weights of the same shape.

    A row is one document, so that every token sees its own beginning; rows of similar length come together.
    A user's turn counts little: what a user says is mostly chance, and what to make of it is to be learnt.
    """
    import torch

    texts, shuffle = _texts(recipe), random.Random(f"batches {recipe.corpus_seed}")
    user, end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (USER, END, PAD))
    while True:
        rows = tokenizer(list(itertools.islice(texts, POOL)), add_special_tokens=False)["input_ids"]
        for members in shuffle.sample(cut := _cut(sorted(rows, key=len), recipe.tokens_per_batch), len(cut)):
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in members], True, pad)
            turns, ends = (ids == user).cumsum(1), (ids == end).cumsum(1)
            # inside a user's turn: as many turns of both roles have ended as this user's turn has before it
            spoken = (turns > 0) & (ends == 2 * (turns - 1))
            weights = torch.where(spoken, recipe.user_weight, 1.0)
            yield ids, weights.masked_fill(ids == pad, 0.0)


def _cut(rows: list[list[int]], tokens: int) -> list[list[list[int]]]:
    """Rows in order of length, cut where the padded batch would grow beyond ``tokens``."""
    batches: list[list[list[int]]] = [[]]
    for row in rows:
        if batches[-1] and (len(batches[-1]) + 1) * len(row) > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def cpu_multiplies_bf16() -> bool:
    """Whether bf16 pays on this processor. Measured gains: with AMX 2.5, AMD 1.9 to 2.6, Intel without AMX .6."""
    import torch

    known = getattr(torch.cpu, "get_capabilities", dict)()  # older versions do not say
    return known.get("amx_bf16", False) or (known.get("avx512_bf16", False) and "Intel" not in known["cpu_name"])


def pretrain(model: Any, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[dict[str, float]]:
    """Train in place; yields one row a step (step, tokens, loss, seconds).

    Muon for the matrices inside the layers (it needs about half of AdamW's tokens here), AdamW for the
    embedding and the norms; warm-up, then linear decay to zero.
    """
    import torch

    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(inside, lr=recipe.learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.learning_rate / 4, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    started, tokens = time.monotonic(), 0
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda _: _rate(tokens / recipe.tokens)) for o in optimizers]
    model.train()
    for step, (ids, weights) in enumerate(batches(recipe, tokenizer), 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16()):
            logits = model(input_ids=ids, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        counts = weights[:, 1:].flatten()
        loss = (losses * counts).sum() / counts.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        tokens += int((weights > 0).sum())
        row = {"step": step, "tokens": tokens, "loss": loss.item()}
        yield row | {"seconds": round(time.monotonic() - started, 2)}
        if tokens >= recipe.tokens:
            break
    model.eval()


def save(name: str, model: Any, tokenizer: PreTrainedTokenizerFast, log: list[dict], folder: Path) -> Path:
    """Write a model's folder anew: weights in bf16, tokenizer, loss curve and, last, its recipe."""
    import pandas as pd
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pd.DataFrame(log).round(4).to_csv(folder / "pretraining.csv", index=False)
    sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    write_json(folder / "recipe.json", {"recipe": vars(RECIPES[name]), "sha256": sha256} | log[-1])
    return folder


def _texts(recipe: Recipe) -> Iterator[str]:
    """Corpus documents as the strings that the model sees, chat turns in its own template."""
    from demo.corpus import documents

    for document in documents(recipe.corpus_seed):
        if isinstance(document, str):
            yield f"{BOS}{document}{END}"
        else:
            yield BOS + "".join(f"<|{turn['role']}|>{turn['content']}{END}" for turn in document)


def _rate(done: float, warm_up: float = 0.02) -> float:
    """Share of the learning rate after a share of the tokens: up, then linearly down to zero."""
    return min(max(done, 1e-3) / warm_up, 1.0) * max(0.0, 1 - done)
