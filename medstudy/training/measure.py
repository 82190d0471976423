"""What is measured of a trainer before and after it trains: the gates read it, and nothing here trains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.training.chat import Chat, Row
from medstudy.training.shared_prompt import FIRST_ROWS, share_prompts_if_equal

if TYPE_CHECKING:
    pass

#: Pairs on which the reward margin is measured after DPO.
MARGIN_ROWS = 64


@contextmanager
def measured(trainer: Any, chat: Chat, rows: list[Row]) -> Iterator[dict[str, Any]]:
    """Around ``trainer.train()``: what the gates need, in a dictionary that is filled on the way.

    Args:
        trainer: an `SFTTrainer` or `DPOTrainer` that has not trained yet.
        chat: of its model.
        rows: the chat messages that its rows were made of.
    """
    score_labels_only()
    adapters_in_fp32(trainer.model)
    facts, unshare = facts_of_rows(trainer, chat, rows), None
    pairs = "chosen_ids" in trainer.train_dataset.column_names
    if pairs:
        unshare = share_prompts_if_equal(trainer)
        first = rewards(trainer, FIRST_ROWS)
        facts |= {"shared_prompts": unshare is not None, "first_loss": first["loss"], "first_reward": first["reward"]}
    frozen, adapter = weight_hashes(trainer.model)
    yield facts
    frozen_after, adapter_after = weight_hashes(trainer.model)
    if pairs:
        last = rewards(trainer, MARGIN_ROWS)
        # the reference is the model before: what an answer gained over it is the reward without beta
        before = last["log_p"] - last["chosen"] / trainer.beta
        facts |= {"last_margin": last["margin"], "last_log_p": last["log_p"], "first_log_p": before}
    if unshare:
        unshare()
    still = [name for name, value in adapter.items() if adapter_after[name] == value]
    changed = [name for name, value in frozen.items() if frozen_after[name] != value]
    facts |= {"frozen_changed": len(changed), "adapter_changed": len(adapter) - len(still)}
    facts |= {"adapter_tensors": len(adapter), "unmoved": _kinds(still), "not_adapted": _not_adapted(trainer.model)}
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


def facts_of_rows(trainer: Any, chat: Chat, rows: list[Row]) -> dict[str, Any]:
    """What the trainer will learn from, seen in its own data and held against what is asked when it answers."""
    data, bos = list(trainer.train_dataset), chat.tokenizer.bos_token_id
    sides = ("chosen_ids", "rejected_ids")
    pairs = [(r["prompt_ids"], r[side]) for r in data if sides[0] in r for side in sides]
    pairs += [_split(r) for r in data if "input_ids" in r]
    asked = [chat.prompt(row["prompt"]) for row in rows for _ in (sides if "chosen" in row else sides[:1])]
    begun = [sum(1 for _ in takewhile(lambda token: token == bos, prompt)) for prompt, _ in pairs]
    whole = [len(prompt) + len(completion) for prompt, completion in pairs]
    return {
        "rows": len(data),
        "tokens": sum(whole),
        "longest": max(whole),
        "max_length": trainer.args.max_length or max(whole),
        "bos_at_start": sorted(set(begun)),
        "rows_ending_with_stop": sum(c[-1:] == [chat.end] for _, c in pairs),
        "rows_begun_as_asked": sum(p == a for (p, _), a in zip(pairs, asked, strict=False)),
        "sequences": len(pairs),
        "texts": [chat.read(completion) for _, completion in pairs],
    }


def _split(row: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """An SFT row where its loss begins; both sides are empty where the loss has gaps or no end."""
    ids, labels = row["input_ids"], row["labels"]
    start = next((i for i, label in enumerate(labels) if label != -100), len(ids))
    return (ids[:start], ids[start:]) if labels[start:] == ids[start:] else ([], [])


def _kinds(names: list[str]) -> list[str]:
    """Names of weights without the numbers of their layers: what kinds of weights they are, five at most."""
    return sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})[:5]


def _not_adapted(model: Any) -> list[str]:
    """Matrices of the layers that carry no adapter, such as fused experts."""
    own = [(name, p) for name, p in model.named_parameters() if "lora_" not in name and ".base_layer." not in name]
    layers = [name for name, p in own if p.dim() >= 2 and re.search(r"\.\d+\.", name)]
    return _kinds([name.removeprefix("base_model.model.") for name in layers])


def rewards(trainer: Any, rows: int) -> dict[str, float]:
    """Sigmoid DPO loss, rewards, margin and log p(chosen): means over the first ``rows`` pairs, as it is now.

    The loss does not depend on the one that is trained, so it is computed apart from it.
    """
    import torch

    rows = min(rows, len(trainer.train_dataset))
    size = trainer.args.per_device_train_batch_size
    batches = [range(start, min(start + size, rows)) for start in range(0, rows, size)]
    trained = trainer.loss_types, trainer.loss_weights
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    names = {"chosen": "rewards/chosen", "rejected": "rewards/rejected", "log_p": "logps/chosen"}
    seen: dict[str, list[float]] = {"loss": [], **{name: [] for name in names}}
    try:
        for batch in batches:
            inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in batch]))
            with torch.no_grad(), trainer.compute_loss_context_manager():
                seen["loss"].append(len(batch) / rows * float(trainer.compute_loss(trainer.model, inputs)))
            for name, metric in names.items():
                seen[name].append(len(batch) / rows * trainer._metrics["train"][metric][-1])
    finally:
        trainer.loss_types, trainer.loss_weights = trained
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = 0
    total = {name: sum(values) for name, values in seen.items()}
    largest = max(abs(total["chosen"]), abs(total["rejected"]))
    return total | {"reward": largest, "margin": total["chosen"] - total["rejected"]}


def weight_hashes(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Exact hashes of the frozen weights and of the trained adapter's."""
    import torch

    hashes = {name: torch.hash_tensor(p.detach()).item() for name, p in model.named_parameters()}
    # by name, not by requires_grad: a base weight left trainable must be seen; so must the reference adapter
    trained = {name for name in hashes if "lora_" in name and ".default." in name}
    frozen = {name: value for name, value in hashes.items() if name not in trained}
    return frozen, {name: hashes[name] for name in trained}


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
