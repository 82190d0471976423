"""Arguments for TRL's trainers, and one careful call of ``trainer.train()``.

The notebooks build `SFTTrainer` and `DPOTrainer` themselves from what is made here.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medstudy.callbacks import ELAPSED, keeper, progress, whole_checkpoint
from medstudy.length_buckets import PADDED_TO, draw_similar_lengths, row_length
from medstudy.models import compute_dtype, cpu_multiplies_bf16, stop_tokens
from medstudy.params import RunParams
from medstudy.runs import CHECKPOINTS, Run, Stage
from medstudy.shared_prompt import share_prompts

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from peft import LoraConfig
    from trl import DPOConfig, SFTConfig

#: Package modules whose change redoes a training stage.
CODE = ("training", "models", "shared_prompt", "length_buckets")
LOG = "log.csv"
#: Pairs on which the reward margin is measured after DPO.
MARGIN_ROWS = 64
#: Pairs on which a DPO is looked at before its first step.
FIRST_ROWS = 8
#: A training keeps its state so often, and goes on from there after a kill.
CHECKPOINT_MINUTES = 10.0
PRIVATE_ADAPTER = """# Trained on private data: do not publish

The weights of this adapter were fitted to cases whose data card does not say `shareable: true`.
They may give parts of them away.
"""


def lora_config(params: RunParams) -> LoraConfig:
    """LoRA on every linear layer, alpha twice the rank, no dropout (DPO would switch it off, SFT not)."""
    from peft import LoraConfig

    return LoraConfig(
        r=params.lora_rank,
        lora_alpha=2 * params.lora_rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def sft_config(params: RunParams, run: Run, longest: int, steps: int = -1) -> SFTConfig:
    """Arguments of `SFTTrainer`.

    Args:
        params: the run's parameters.
        run: its folder.
        longest: tokens of the longest row; nothing is cut off or dropped.
        steps: optimiser steps for the control arm ``sft_more``; -1 trains for ``sft_epochs``.
    """
    from trl import SFTConfig

    return _on_one_gpu(
        SFTConfig(
            learning_rate=params.sft_learning_rate if steps < 0 else params.sft_more_learning_rate,
            num_train_epochs=params.sft_epochs,
            max_steps=steps,
            **_common(params, run, longest),
        )
    )


def dpo_config(params: RunParams, run: Run, longest: int) -> DPOConfig:
    """Arguments of `DPOTrainer`; its reference is the SFT adapter that the policy starts from."""
    from trl import DPOConfig

    return _on_one_gpu(
        DPOConfig(
            learning_rate=params.dpo_learning_rate,
            num_train_epochs=params.dpo_epochs,
            beta=params.dpo_beta,
            loss_type=list(params.dpo_loss),
            **_common(params, run, longest),
        )
    )


def _on_one_gpu(config: Any) -> Any:
    """Where several GPUs are visible the trainer would spread over them by DataParallel; `processes` does."""
    config._n_gpu = min(1, config.n_gpu)
    return config


def _common(params: RunParams, run: Run, longest: int) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(run.private / "trainer"),
        "per_device_train_batch_size": params.batch_size // params.processes,
        "gradient_accumulation_steps": params.gradient_accumulation,
        # today's name; left unset, TRL switches checkpointing on
        "activation_checkpointing": params.gradient_checkpointing,
        "max_length": -(-longest // PADDED_TO) * PADDED_TO,
        # one tensor shape a multiple of 16 instead of one a length: a third less memory on a CPU
        "pad_to_multiple_of": PADDED_TO,
        "bf16": compute_dtype(params) == torch.bfloat16 if gpu else cpu_multiplies_bf16(),
        "use_cpu": not gpu,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.05,
        "seed": params.seed,
        "logging_steps": 1,
        "save_strategy": "no",  # saved by time, see `train`
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
    }


def train(trainer: Any, stage: Stage, rows_in: int) -> None:
    """Train, save the adapter and the log, and measure what the gates need.

    Every `CHECKPOINT_MINUTES` the state is kept; a training that was killed goes on from there.

    Args:
        trainer: an `SFTTrainer` or `DPOTrainer` that has not trained yet.
        stage: the unfinished stage that takes the adapter (``adapter/``) and a logit probe (``probe.pt``).
        rows_in: rows that the trainer was given, to see whether it kept them all.
    """
    import torch
    from transformers import PrinterCallback

    _score_labels_only()
    _adapters_in_fp32(trainer.model)
    draw_similar_lengths(trainer)
    facts, unshare = _facts_before(trainer), None
    if "chosen_ids" in trainer.train_dataset.column_names:
        unshare = _share_prompts(trainer)
        first = _rewards(trainer, FIRST_ROWS)
        facts |= {"shared_prompts": unshare is not None}
        facts |= {f"first_{name}": first[name] for name in ("loss", "reward")}
    frozen, adapter = _weight_hashes(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress(stage))
    checkpoints = stage.folder / CHECKPOINTS
    trainer.args.output_dir = str(checkpoints)
    start = whole_checkpoint(checkpoints)
    stage.earlier = json.loads((start / ELAPSED).read_text(encoding="utf-8")) if start else 0.0
    trainer.add_callback(keeper(stage, CHECKPOINT_MINUTES))
    result = trainer.train(resume_from_checkpoint=str(start) if start else None)
    frozen_after, adapter_after = _weight_hashes(trainer.model)
    if "first_loss" in facts:
        last = _rewards(trainer, MARGIN_ROWS)
        # the reference is the model before: what an answer gained over it is the reward without beta
        first_log_p = last["log_p"] - last["chosen"] / trainer.beta
        facts |= {"last_margin": last["margin"], "last_log_p": last["log_p"], "first_log_p": first_log_p}
    if unshare:
        unshare()
    changed = _over_processes(
        trainer,
        sum(frozen_after[name] != value for name, value in frozen.items()),
        sum(adapter_after[name] != value for name, value in adapter.items()),
    )
    trainer.model.eval()
    probe = _probe(trainer)
    if not trainer.is_world_process_zero():
        return  # of several processes one writes
    trainer.model.save_pretrained(stage.folder / "adapter", selected_adapters=["default"])
    if not stage.run.facts.get("shareable", False):
        (stage.folder / "adapter" / "README.md").write_text(PRIVATE_ADAPTER, encoding="utf-8")
    torch.save(probe, stage.folder / "probe.pt")
    _save_log(trainer, stage)
    shutil.rmtree(checkpoints, ignore_errors=True)
    stage.finish(
        **facts,
        rows_in=rows_in,
        steps=trainer.state.global_step,
        resumed_at_step=int(start.name.split("-")[1]) if start else 0,
        train_seconds=round(stage.earlier + result.metrics["train_runtime"], 2),
        **changed,
        adapter_tensors=len(adapter),
    )


def training_log(stage: Stage) -> pd.DataFrame:
    """One row a step (loss; for DPO rewards, margins, log-probabilities), also written to ``training/``."""
    import pandas as pd

    file = stage.run.folder / "training" / f"{stage.name}.csv"
    file.parent.mkdir(exist_ok=True)
    log = (
        pd.read_csv(stage.folder / LOG)
        if (stage.folder / LOG).is_file()
        else pd.DataFrame(columns=["step", "loss"])
    )
    log.to_csv(file, index=False)
    return log


def keep_adapter(stage: Stage, previous: Stage) -> None:
    """Finish ``stage`` with the adapter it would have continued: there was nothing to train on."""
    shutil.copytree(previous.folder / "adapter", stage.folder / "adapter", dirs_exist_ok=True)
    shutil.copy(previous.folder / "probe.pt", stage.folder)
    stage.finish(rows=0, steps=0, train_seconds=0.0)


def _score_labels_only() -> None:
    """On a CPU as on a GPU, compute log-probabilities of the labelled tokens alone.

    Without Triton, TRL 1.16 scores every prompt and padding token against the whole vocabulary and drops
    the result. The losses are the same to the last bit. It is a private name: where it is gone, TRL decides.
    """
    from trl.trainer import utils

    if hasattr(utils, "_use_triton"):
        utils._use_triton = lambda device: device.type in {"cpu", "cuda", "xpu"}


def _adapters_in_fp32(model: Any) -> None:
    """Whatever the weights below them are.

    On quantized weights TRL 1.16 rounds the adapter to bf16, and not its frozen copy, the reference: the two
    would differ from the start, and of a step of 1e-5 most would be rounded away.
    """
    import torch

    weights = {name: weight for name, weight in model.named_parameters() if "lora_" in name}
    for name, weight in weights.items():
        if weight.dtype != torch.float32:
            weight.data = weights.get(name.replace(".default.", ".ref."), weight).data.float().clone()


def _facts_before(trainer: Any) -> dict[str, Any]:
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
        "max_length": trainer.args.max_length,
        "bos_per_row": sorted({row.count(tokenizer.bos_token_id) for row in ids}),
        "rows_ending_with_stop": sum(bool(stops & set(row[-2:])) for row in ids),
        "sequences": len(ids),
    }


def _share_prompts(trainer: Any) -> Callable[[], None] | None:
    """Read each prompt once (`shared_prompt`), where that gives this model's own log-probabilities.

    Returns:
        A function that takes it back; None where it does not, and every prompt is read twice.
    """
    import torch

    if getattr(trainer, "aux_loss_enabled", False):
        return None  # the routers of a mixture of experts are scored by TRL, in rows of its own
    alone = _log_p_of_pairs(trainer)
    unshare = share_prompts(trainer.model)
    try:
        difference = (_log_p_of_pairs(trainer) - alone).abs()
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        difference = torch.tensor([math.inf])  # a model that knows no such mask
    largest, mean = (1e-3, 1e-4) if trainer.model.dtype == torch.float32 else (0.2, 0.02)
    if difference.max() <= largest and difference.mean() <= mean:
        return unshare
    unshare()
    return None


def _log_p_of_pairs(trainer: Any) -> torch.Tensor:
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


def _rewards(trainer: Any, rows: int) -> dict[str, float]:
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


def _weight_hashes(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Exact hashes of the frozen weights and of the trained adapter's; of sharded ones, of what is here."""
    import torch
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the last ones stay whole after a pass without gradients
    here = {name: p.to_local() if hasattr(p, "to_local") else p for name, p in model.named_parameters()}
    hashes = {name: torch.hash_tensor(p.detach()).item() for name, p in here.items()}
    # by name, not by requires_grad: a base weight left trainable must be seen; so must the reference adapter
    trained = {name for name in hashes if "lora_" in name and ".default." in name}
    frozen = {name: value for name, value in hashes.items() if name not in trained}
    return frozen, {name: hashes[name] for name in trained}


def _over_processes(trainer: Any, frozen_changed: int, adapter_changed: int) -> dict[str, int]:
    """The worst of what several processes saw, each of its own shards of the weights."""
    import torch

    mine = torch.tensor([[frozen_changed, adapter_changed]], device=trainer.accelerator.device)
    seen = trainer.accelerator.gather(mine)
    return {"frozen_changed": int(seen[:, 0].max()), "adapter_changed": int(seen[:, 1].min())}


def _probe(trainer: Any) -> dict[str, torch.Tensor]:
    """Logits of one prompt, to see later that the saved adapter reloads to the same model.

    Shards are put together for it, so all processes come here.
    """
    import torch

    row = trainer.train_dataset[0]
    ids = torch.tensor([row.get("prompt_ids") or row["input_ids"]], device=trainer.model.device)
    # without the trainer's bf16 autocast, as the model will run when it answers
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1].float()
    return {"input_ids": ids.cpu(), "logits": logits.cpu()}


def _save_log(trainer: Any, stage: Stage) -> None:
    import pandas as pd

    log = pd.DataFrame([row for row in trainer.state.log_history if "loss" in row])
    first = ["step", "epoch", "loss"]
    log[[*first, *(c for c in log.columns if c not in first)]].to_csv(stage.folder / LOG, index=False)
