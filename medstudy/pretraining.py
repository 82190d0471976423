"""The two built-in base models: a tokenizer and 2 million parameters each, pretrained on synthetic text.

They make the offline default possible and are no medical models. `notebooks/base_model.ipynb` shows the
same steps one by one.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.runs import code_fingerprint, fingerprint, slug, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

#: Modules whose text decides what the models read.
CORPUS_SOURCES = tuple(
    f"data.synthetic.{name}" for name in ("corpus", "chats", "scenes", "medicine", "writing")
)
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
    intermediate: int = 512
    context: int = 2048
    block: int = 128
    batch: int = 16
    tokens: int = 2_000_000
    learning_rate: float = 0.02
    tokenizer_documents: int = 6000


RECIPES = {
    "builtin/llama": Recipe("llama", corpus_seed=1, key_value_heads=3),
    "builtin/mistral": Recipe("mistral", corpus_seed=2, key_value_heads=1),
}


def builtin_path(name: str, results: Path) -> Path:
    """Where a built-in model lies; ``recipe.json`` in it is written last and says that it is whole."""
    return results / "base_models" / slug(name)


def recipe_key(name: str) -> str:
    """Changes when the recipe, the corpus or a library that trains does."""
    return fingerprint([RECIPES[name], code_fingerprint(("pretraining", *CORPUS_SOURCES))])


def is_built(name: str, results: Path) -> bool:
    """Whether the model on disk is the one that today's recipe makes."""
    import json

    marker = builtin_path(name, results) / "recipe.json"
    return marker.is_file() and json.loads(marker.read_text(encoding="utf-8"))["key"] == recipe_key(name)


def ensure_built(name: str, results: Path) -> Path:
    """The model's folder; pretrains it, once, when it is not there. Two runs may call this at once."""
    folder = builtin_path(name, results)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_built(name, results):
            print(f"{name} is not built yet: pretraining it now, once; this takes a few minutes on two cores")
            tokenizer = train_tokenizer(RECIPES[name])
            model = new_model(RECIPES[name], tokenizer)
            log = list(pretrain(model, tokenizer, RECIPES[name]))
            save(name, model, tokenizer, log, results)
    return folder


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
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.corpus_seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def blocks(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """Batches of token ids, int64 (batch, block): documents one after the other, cut into equal blocks."""
    import torch

    need, waiting = recipe.batch * recipe.block, []
    texts = _texts(recipe)
    while True:
        while len(waiting) < need:
            for ids in tokenizer(list(itertools.islice(texts, 256)), add_special_tokens=False)["input_ids"]:
                waiting += ids
        yield torch.tensor(waiting[:need]).view(recipe.batch, recipe.block)
        waiting = waiting[need:]


def pretrain(model: Any, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[dict[str, float]]:
    """Train in place; yields one row a step (step, tokens, loss, seconds).

    Muon for the matrices inside the layers (it needs about half of AdamW's tokens here), AdamW for the
    embedding and the norms; warm-up, then linear decay to zero.
    """
    import torch

    from medstudy.models import cpu_multiplies_bf16

    steps = max(1, recipe.tokens // (recipe.batch * recipe.block))
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(inside, lr=recipe.learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.learning_rate / 4, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: _schedule(s, steps)) for o in optimizers]
    started = time.monotonic()
    model.train()
    for step, ids in zip(range(1, steps + 1), blocks(recipe, tokenizer), strict=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16()):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        row = {"step": step, "tokens": step * ids.numel(), "loss": loss.item()}
        yield row | {"seconds": round(time.monotonic() - started, 2)}
    model.eval()


def save(name: str, model: Any, tokenizer: PreTrainedTokenizerFast, log: list[dict], results: Path) -> Path:
    """Write the model's folder whole: weights, tokenizer, loss curve and, last, its recipe."""
    import pandas as pd

    folder = builtin_path(name, results)
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    pd.DataFrame(log).to_csv(part / "pretraining.csv", index=False)
    write_json(part / "recipe.json", {"key": recipe_key(name), "recipe": RECIPES[name].__dict__, **log[-1]})
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def _texts(recipe: Recipe) -> Iterator[str]:
    """Corpus documents as the strings that the model sees, chat turns in its own template."""
    from medstudy.data.synthetic.corpus import documents

    for document in documents(recipe.corpus_seed):
        if isinstance(document, str):
            yield f"{BOS}{document}{END}"
        else:
            yield BOS + "".join(f"<|{turn['role']}|>{turn['content']}{END}" for turn in document)


def _schedule(step: int, steps: int, warm_up: int = 20) -> float:
    return min((step + 1) / warm_up, 1.0) * max(0.0, 1 - step / steps)
