"""What is measured of a trainer before and after it trains: the gates read it, and nothing here trains."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from medstudy.runs import fingerprint
from medstudy.training.chat import Chat
from medstudy.training.shared_prompt import FIRST_ROWS, row_length, share_prompts_if_equal

REWARDS = ("rewards/chosen", "rewards/rejected")
#: Rows on which the loss is measured before and after SFT.
LOSS_ROWS = 16


@contextmanager
def measured(trainer: Any, chat: Chat) -> Iterator[dict[str, Any]]:
    """Around ``trainer.train()``: what the gates need, in a dictionary that is filled on the way.

    Args:
        trainer: an `SFTTrainer` or `DPOTrainer` that has not trained yet.
        chat: of its model.
    """
    score_labels_only()
    adapters_in_fp32(trainer.model)
    facts, unshare = facts_of_rows(trainer, chat) | {"dropout": dropout(trainer)}, None
    pairs = "chosen_ids" in trainer.train_dataset.column_names
    if pairs:
        unshare = share_prompts_if_equal(trainer)
        first = means(trainer, FIRST_ROWS, REWARDS)
        largest = max(abs(first["rewards/chosen"]), abs(first["rewards/rejected"])) / trainer.beta
        facts |= {"shared_prompts": unshare is not None, "first_loss": first["loss"], "first_log_ratio": largest}
    else:
        facts["first_loss"] = means(trainer, LOSS_ROWS)["loss"]
    frozen, adapter = weights_now(trainer.model)
    yield facts
    frozen_after, adapter_after = weights_now(trainer.model)
    if not pairs:
        facts["last_loss"] = means(trainer, LOSS_ROWS)["loss"]
    if unshare:
        unshare()
    changed = [name for name, value in frozen.items() if frozen_after[name] != value]
    far = {name: float((adapter_after[name] - value).norm()) for name, value in adapter.items()}
    moved = {name for name, distance in far.items() if distance > 0}
    still = set(_kinds(set(far) - moved)) - set(_kinds(moved))
    facts |= {"frozen_changed": len(changed), "adapter_changed": len(moved), "adapter_tensors": len(far)}
    facts |= {"moved": math.hypot(*far.values()), "unmoved": sorted(still), "not_adapted": _not_adapted(trainer.model)}
    trainer.model.eval()


def score_labels_only() -> None:
    """On a CPU as on a GPU, compute log-probabilities of the labelled tokens alone.

    Without Triton, TRL 1.16 scores every prompt and padding token against the whole vocabulary and drops
    the result. The losses are the same to the last bit. It is a private name: where it is gone, TRL decides.
    """
    from trl.trainer import utils

    if hasattr(utils, "_use_triton"):
        utils._use_triton = lambda device: device.type in {"cpu", "cuda", "xpu"}


def adapters_in_fp32(model: Any) -> None:
    """Whatever the weights below them are.

    On quantized weights TRL 1.16 rounds the adapter to bf16, and not its frozen copy, the reference: the two
    would differ from the start, and of a step of 1e-5 most would be rounded away.
    """
    import torch

    weights = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    for name, weight in weights.items():
        if weight.dtype != torch.float32:
            weight.data = weights.get(name.replace(".default.", ".ref."), weight).data.float().clone()


def facts_of_rows(trainer: Any, chat: Chat) -> dict[str, Any]:
    """What the trainer will learn from, read from the batches that its own collator makes of its rows.

    ``learnt`` holds a sequence's prompt, as a fingerprint of its tokens, and what is said behind it.
    """
    data, bos, found = list(trainer.train_dataset), chat.tokenizer.bos_token_id, list(_sequences(trainer))
    longest = max(map(row_length, data))
    return {
        "rows": len(data),
        "tokens": sum(len(prompt) + len(completion) for prompt, completion in found),
        "longest": longest,
        "max_length": trainer.args.max_length or longest,
        "bos_at_start": max(sum(1 for _ in takewhile(lambda i: i == bos, prompt)) for prompt, _ in found),
        "rows_ending_with_stop": sum(completion[-1:] == [chat.end] for _, completion in found),
        "sequences": len(found),
        "learnt": [[fingerprint(prompt), chat.read(completion)] for prompt, completion in found],
    }


def _sequences(trainer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens without and with loss, of a pair the chosen side first; both empty where the loss has gaps or no end."""
    for row in trainer.train_dataset:
        batch = trainer.data_collator([row])
        ids_in, labels = batch["input_ids"], batch.get("labels")
        in_loss = batch["completion_mask"].bool() if labels is None else labels == ids_in
        for ids, seen, loss in zip(ids_in, batch["attention_mask"].bool(), in_loss, strict=True):
            tokens, loss = ids[seen].tolist(), loss[seen]
            start = len(tokens) - int(loss.sum())
            yield (tokens[:start], tokens[start:]) if loss[start:].all() else ([], [])


def dropout(trainer: Any) -> list[str]:
    """What makes two passes over the same row differ in training; the reference has none of it.

    Layers by their kind; ``function`` where the model's code drops without a layer, as seen by two passes.
    """
    import torch

    model = trainer.model.train()
    layers = {type(m).__name__ for m in model.modules() if "Dropout" in type(m).__name__ and getattr(m, "p", 0) > 0}
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        first, second = (model(**given, use_cache=False).logits for _ in range(2))
    # kernels of a GPU may add in another order the next time
    same = torch.equal(first, second) if first.device.type == "cpu" else torch.allclose(first, second, 0.1, 0.1)
    return sorted(layers) or ([] if same else ["function"])


def _kinds(names: Iterable[str]) -> list[str]:
    """Names of weights without the numbers of their layers: what kinds of weights they are."""
    return sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in names})


def _not_adapted(model: Any) -> list[str]:
    """Matrices of the layers that carry no adapter, such as fused experts."""
    own = [(name, p) for name, p in model.named_parameters() if "lora_" not in name and ".base_layer." not in name]
    layers = [name for name, p in own if p.dim() >= 2 and re.search(r"\.\d+\.", name)]
    return _kinds(name.removeprefix("base_model.model.") for name in layers)[:5]


def means(trainer: Any, rows: int, metrics: Sequence[str] = ()) -> dict[str, float]:
    """Loss and ``metrics`` of the trainer over its first ``rows`` rows, as the model is now.

    Of pairs the loss is plain DPO's, whatever loss they are trained with.
    """
    import torch

    rows = min(rows, len(trainer.train_dataset))
    size = trainer.args.per_device_train_batch_size
    trained = getattr(trainer, "loss_types", None), getattr(trainer, "loss_weights", None)
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    total = dict.fromkeys(("loss", *metrics), 0.0)
    try:
        for start in range(0, rows, size):
            batch = [trainer.train_dataset[i] for i in range(start, min(start + size, rows))]
            inputs, share = trainer._prepare_inputs(trainer.data_collator(batch)), len(batch) / rows
            with torch.no_grad(), trainer.compute_loss_context_manager():
                total["loss"] += share * float(trainer.compute_loss(trainer.model, inputs))
            for name in metrics:
                total[name] += share * trainer._metrics["train"][name][-1]
    finally:
        trainer.loss_types, trainer.loss_weights = trained
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = 0
    return total


def weights_now(model: Any) -> tuple[dict[str, int], dict[str, Any]]:
    """Exact hashes of the frozen weights, and a copy of the trained adapter's."""
    import torch

    frozen, adapter = {}, {}
    for name, weight in model.named_parameters():
        # by name, not by requires_grad: a base weight left trainable must be seen; so must the reference adapter
        if "lora_" in name and ".default." in name:
            adapter[name] = weight.detach().float().cpu().clone()
        else:
            frozen[name] = torch.hash_tensor(weight.detach()).item()
    return frozen, adapter


def save_probe(trainer: Any, folder: Path) -> None:
    """Keep the logits of one prompt, to see later that the saved adapter reloads to the same model."""
    import torch

    row = trainer.train_dataset[0]
    ids = torch.tensor([row.get("prompt_ids") or row["input_ids"]], device=trainer.model.device)
    # without the trainer's bf16 autocast, as the model will run when it answers
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1].float()
    torch.save({"input_ids": ids.cpu(), "logits": logits.cpu()}, folder / "probe.pt")
