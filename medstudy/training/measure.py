"""What is measured of a trainer before and after it trains: the gates read it, and nothing here trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.training.models import stop_tokens
from medstudy.training.shared_prompt import share_prompts

if TYPE_CHECKING:
    import torch

#: Pairs on which the reward margin is measured after DPO.
MARGIN_ROWS = 64
#: Pairs on which a DPO is looked at before its first step.
FIRST_ROWS = 8


@contextmanager
def measured(trainer: Any) -> Iterator[dict[str, Any]]:
    """Around ``trainer.train()``: what the gates need, in a dictionary that is filled on the way."""
    score_labels_only()
    adapters_in_fp32(trainer.model)
    facts, unshare = facts_before(trainer), None
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
    facts["frozen_changed"] = sum(frozen_after[name] != value for name, value in frozen.items())
    facts["adapter_changed"] = sum(adapter_after[name] != value for name, value in adapter.items())
    facts["adapter_tensors"] = len(adapter)
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


def facts_before(trainer: Any) -> dict[str, Any]:
    """What TRL made of the rows."""
    rows = list(trainer.train_dataset)
    dpo = "chosen_ids" in rows[0]
    # DPO rows hold each completion apart from its prompt
    ids = [r["prompt_ids"] + r[c] for r in rows for c in ("chosen_ids", "rejected_ids")] if dpo else None
    ids = ids or [row["input_ids"] for row in rows]
    tokenizer = trainer.processing_class
    stops = set(stop_tokens(trainer.model, tokenizer))
    return {
        "rows": len(rows),
        "tokens": sum(map(len, ids)),
        "longest": max(map(len, ids)),
        "max_length": trainer.args.max_length or max(map(len, ids)),
        "bos_per_row": sorted({row.count(tokenizer.bos_token_id) for row in ids}),
        "rows_ending_with_stop": sum(bool(stops & set(row[-2:])) for row in ids),
        "sequences": len(ids),
    }


def share_prompts_if_equal(trainer: Any) -> Callable[[], None] | None:
    """Read each prompt once (`shared_prompt`), where that gives this model's own log-probabilities.

    Returns:
        A function that takes it back; None where it does not, and every prompt is read twice.
    """
    import torch

    if getattr(trainer, "aux_loss_enabled", False):
        return None  # the routers of a mixture of experts are scored by TRL, in rows of its own
    alone = log_p_of_pairs(trainer)
    unshare = share_prompts(trainer.model)
    try:
        difference = (log_p_of_pairs(trainer) - alone).abs()
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        difference = torch.tensor([math.inf])  # a model that knows no such mask
    largest, mean = (1e-3, 1e-4) if trainer.model.dtype == torch.float32 else (0.2, 0.02)
    if difference.max() <= largest and difference.mean() <= mean:
        return unshare
    unshare()
    return None


def log_p_of_pairs(trainer: Any) -> torch.Tensor:
    """Log-probability of every token of both answers of the longest pairs (tokens,), float32."""
    import torch

    rows = sorted(trainer.train_dataset, key=row_length, reverse=True)[:FIRST_ROWS]
    size, found = trainer.args.per_device_train_batch_size, []
    for start in range(0, len(rows), size):
        inputs = trainer._prepare_inputs(trainer.data_collator(rows[start : start + size]))
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            made = trainer.model(**given, labels=labels, fused_lm_head=True, use_cache=False)
        found.append(made.log_probs.float()[labels[:, 1:] != -100])
    return torch.cat(found)


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


def row_length(row: dict[str, Any]) -> int:
    """Tokens of a row, for a pair of its longer side."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


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
