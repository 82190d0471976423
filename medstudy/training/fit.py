"""Arguments for TRL's trainers, and one careful call of ``trainer.train()``.

The notebooks build `SFTTrainer` and `DPOTrainer` themselves from what is made here.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from medstudy.params import RunParams
from medstudy.runs import CHECKPOINTS, Run, Stage
from medstudy.training.callbacks import ELAPSED, keeper, progress, whole_checkpoint
from medstudy.training.length_buckets import PADDED_TO, draw_similar_lengths
from medstudy.training.measure import (
    FIRST_ROWS,
    MARGIN_ROWS,
    adapters_in_fp32,
    facts_before,
    over_processes,
    probe,
    rewards,
    score_labels_only,
    share_prompts_if_equal,
    weight_hashes,
)
from medstudy.training.models import compute_dtype, cpu_multiplies_bf16

if TYPE_CHECKING:
    import pandas as pd
    from peft import LoraConfig
    from trl import DPOConfig, SFTConfig

#: Package modules whose change redoes a training stage.
CODE = ("training.fit", "training.measure", "training.models", "training.shared_prompt", "training.length_buckets")
LOG = "log.csv"
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

    score_labels_only()
    adapters_in_fp32(trainer.model)
    draw_similar_lengths(trainer)
    facts, unshare = facts_before(trainer), None
    if "chosen_ids" in trainer.train_dataset.column_names:
        unshare = share_prompts_if_equal(trainer)
        first = rewards(trainer, FIRST_ROWS)
        facts |= {"shared_prompts": unshare is not None}
        facts |= {f"first_{name}": first[name] for name in ("loss", "reward")}
    frozen, adapter = weight_hashes(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress(stage))
    checkpoints = stage.folder / CHECKPOINTS
    trainer.args.output_dir = str(checkpoints)
    start = whole_checkpoint(checkpoints)
    stage.earlier = json.loads((start / ELAPSED).read_text(encoding="utf-8")) if start else 0.0
    trainer.add_callback(keeper(stage, CHECKPOINT_MINUTES))
    result = trainer.train(resume_from_checkpoint=str(start) if start else None)
    frozen_after, adapter_after = weight_hashes(trainer.model)
    if "first_loss" in facts:
        last = rewards(trainer, MARGIN_ROWS)
        # the reference is the model before: what an answer gained over it is the reward without beta
        first_log_p = last["log_p"] - last["chosen"] / trainer.beta
        facts |= {"last_margin": last["margin"], "last_log_p": last["log_p"], "first_log_p": first_log_p}
    if unshare:
        unshare()
    changed = over_processes(
        trainer,
        sum(frozen_after[name] != value for name, value in frozen.items()),
        sum(adapter_after[name] != value for name, value in adapter.items()),
    )
    trainer.model.eval()
    logits = probe(trainer)
    if not trainer.is_world_process_zero():
        return  # of several processes one writes
    trainer.model.save_pretrained(stage.folder / "adapter", selected_adapters=["default"])
    if not stage.run.facts.get("shareable", False):
        (stage.folder / "adapter" / "README.md").write_text(PRIVATE_ADAPTER, encoding="utf-8")
    torch.save(logits, stage.folder / "probe.pt")
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
    log = pd.read_csv(stage.folder / LOG) if (stage.folder / LOG).is_file() else pd.DataFrame(columns=["step", "loss"])
    log.to_csv(file, index=False)
    return log


def keep_adapter(stage: Stage, previous: Stage) -> None:
    """Finish ``stage`` with the adapter it would have continued: there was nothing to train on."""
    shutil.copytree(previous.folder / "adapter", stage.folder / "adapter", dirs_exist_ok=True)
    shutil.copy(previous.folder / "probe.pt", stage.folder)
    stage.finish(rows=0, steps=0, train_seconds=0.0)


def _save_log(trainer: Any, stage: Stage) -> None:
    import pandas as pd

    log = pd.DataFrame([row for row in trainer.state.log_history if "loss" in row])
    first = ["step", "epoch", "loss"]
    log[[*first, *(c for c in log.columns if c not in first)]].to_csv(stage.folder / LOG, index=False)
