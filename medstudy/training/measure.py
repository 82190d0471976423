"""What is measured of a trainer before and after it trains: the gates read it, and nothing here trains."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from trl.trainer import utils

from medstudy.files import fingerprint
from medstudy.training.chat import Chat
from medstudy.training.shared_prompt import FIRST_ROWS, row_length, share_prompts_if_equal

#: Rows on which the loss is measured before and after SFT.
LOSS_ROWS = 16


@contextmanager
def measured(trainer: Any, chat: Chat) -> Iterator[dict[str, Any]]:
    """Around ``trainer.train()`` of an SFT or DPO trainer: what the gates need, filled in on the way."""
    score_labels_only()
    adapters_in_fp32(trainer.model)
    facts, unshare = facts_of_rows(trainer, chat) | {"dropout": dropout(trainer)}, None
    pairs = "chosen_ids" in trainer.train_dataset.column_names
    if pairs:
        unshare = share_prompts_if_equal(trainer)
        first, *rewards = means(trainer, FIRST_ROWS, "rewards/chosen", "rewards/rejected")
        # the reference is the model before: a reward without beta is what log p gained over it
        facts |= {"shared_prompts": unshare is not None, "first_log_ratio": max(map(abs, rewards)) / trainer.beta}
    else:
        [first] = means(trainer, LOSS_ROWS)
    facts["first_loss"] = first
    frozen, adapter = weights_now(trainer.model)
    yield facts
    frozen_after, adapter_after = weights_now(trainer.model)
    if unshare:
        unshare()
    if not pairs:
        [facts["last_loss"]] = means(trainer, LOSS_ROWS)
    far = {name: float((adapter_after[name] - value).norm()) for name, value in adapter.items()}
    moved = {name for name, distance in far.items() if distance > 0}
    facts["frozen_changed"] = sum(frozen_after[name] != value for name, value in frozen.items())
    facts |= {"adapter_changed": len(moved), "adapter_tensors": len(far), "moved": math.hypot(*far.values())}
    # names of weights without the number of their layer
    kinds, others = ({re.sub(r"\.\d+(?=\.)", ".*", name) for name in names} for names in (far, moved))
    facts["unmoved"] = sorted(kinds - others)
    trainer.model.eval()


def score_labels_only() -> None:
    """On a CPU, too, score the labelled tokens alone: without Triton TRL 1.16 scores all; the losses are the same."""
    if hasattr(utils, "_use_triton"):
        utils._use_triton = lambda device: device.type in {"cpu", "cuda", "xpu"}


def adapters_in_fp32(model: Any) -> None:
    """On quantized weights TRL 1.16 rounds the adapter to bf16, and not its frozen copy, the reference."""
    weights = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    for name, weight in weights.items():
        if weight.dtype.itemsize < 4:
            weight.data = weights.get(name.replace(".default.", ".ref."), weight).data.float().clone()


def facts_of_rows(trainer: Any, chat: Chat) -> dict[str, Any]:
    """What the trainer will learn from, by its own collator; ``learnt``: fingerprint of a prompt, and what follows."""
    bos, found = chat.tokenizer.bos_token_id, list(_sequences(trainer))
    longest = max(map(row_length, trainer.train_dataset))
    return {
        "rows": len(trainer.train_dataset),
        "tokens": sum(len(prompt) + len(completion) for prompt, completion in found),
        "longest": longest,
        "max_length": trainer.args.max_length or longest,
        "bos_at_start": max(len(list(takewhile(lambda i: i == bos, prompt))) for prompt, _ in found),
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
    """Kinds of dropout layers; ``function`` where the model drops without a layer, as seen by two passes over a row."""
    model = trainer.model.train()
    layers = {type(m).__name__ for m in model.modules() if "Dropout" in type(m).__name__ and getattr(m, "p", 0) > 0}
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        first, second = (model(**given, use_cache=False).logits for _ in range(2))
    # kernels of a GPU may add in another order the next time
    same = torch.equal(first, second) if first.device.type == "cpu" else torch.allclose(first, second, 0.1, 0.1)
    return sorted(layers) or ([] if same else ["function"])


def means(trainer: Any, rows: int, *metrics: str) -> list[float]:
    """Loss and ``metrics`` over the first ``rows`` rows, as the model is now; of pairs the loss is plain DPO's."""
    size, data = trainer.args.per_device_train_batch_size, list(trainer.train_dataset)[:rows]
    trained = getattr(trainer, "loss_types", None), getattr(trainer, "loss_weights", None)
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    total = [0.0] * (1 + len(metrics))
    for start in range(0, len(data), size):
        batch = data[start : start + size]
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss = float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(batch))))
        found = [loss, *(trainer._metrics["train"][name][-1] for name in metrics)]
        total = [old + len(batch) / len(data) * new for old, new in zip(total, found, strict=True)]
    trainer.loss_types, trainer.loss_weights, trainer._total_train_tokens = *trained, 0
    trainer._metrics["train"].clear()
    return total


def weights_now(model: Any) -> tuple[dict[str, int], dict[str, Any]]:
    """Exact hashes of the frozen weights (also of one left trainable), and a copy of the trained adapter's."""
    frozen, adapter = {}, {}
    for name, weight in model.named_parameters():
        if "lora_" in name and ".default." in name:
            adapter[name] = weight.detach().float().cpu().clone()
        else:
            frozen[name] = torch.hash_tensor(weight.detach()).item()
    return frozen, adapter


def save_probe(trainer: Any, folder: Path) -> None:
    """Keep the logits of one prompt, to see later that the saved adapter reloads to the same model."""
    row = trainer.train_dataset[0]
    ids = torch.tensor([row.get("prompt_ids") or row["input_ids"]], device=trainer.model.device)
    # without the trainer's bf16 autocast, as the model will run when it answers
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1].float()
    torch.save({"input_ids": ids.cpu(), "logits": logits.cpu()}, folder / "probe.pt")
