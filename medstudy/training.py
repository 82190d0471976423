"""Arguments for TRL's trainers, and one careful call of ``trainer.train()``.

The notebooks build `SFTTrainer` and `DPOTrainer` themselves from what is made here.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.length_buckets import PADDED_TO, draw_similar_lengths, row_length
from medstudy.models import compute_dtype, cpu_multiplies_bf16, stop_tokens
from medstudy.params import RunParams
from medstudy.runs import CHECKPOINTS, Run, Stage, write_json
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
#: Seconds that a training had taken at a checkpoint.
ELAPSED = "elapsed.json"
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
    from transformers import PrinterCallback

    _score_labels_only()
    draw_similar_lengths(trainer)
    facts, unshare = _facts_before(trainer), None
    if "chosen_ids" in trainer.train_dataset.column_names:
        unshare = _share_prompts(trainer)
        first = _rewards(trainer, FIRST_ROWS)
        facts |= {"shared_prompts": unshare is not None}
        facts |= {f"first_{name}": first[name] for name in ("loss", "reward")}
    frozen, adapter = _weight_hashes(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_progress(stage))
    checkpoints = stage.folder / CHECKPOINTS
    trainer.args.output_dir = str(checkpoints)
    start = _whole_checkpoint(checkpoints)
    stage.earlier = json.loads((start / ELAPSED).read_text(encoding="utf-8")) if start else 0.0
    trainer.add_callback(_keeper(stage, CHECKPOINT_MINUTES))
    result = trainer.train(resume_from_checkpoint=str(start) if start else None)
    frozen_after, adapter_after = _weight_hashes(trainer.model)
    if "first_loss" in facts:
        last = _rewards(trainer, MARGIN_ROWS)
        # the reference is the model before: what an answer gained over it is the reward without beta
        first_log_p = last["log_p"] - last["chosen"] / trainer.beta
        facts |= {"last_margin": last["margin"], "last_log_p": last["log_p"], "first_log_p": first_log_p}
    if unshare:
        unshare()
    if not trainer.is_world_process_zero():
        return  # of several processes one writes
    trainer.model.eval()
    trainer.model.save_pretrained(stage.folder / "adapter", selected_adapters=["default"])
    if not stage.run.facts.get("shareable", False):
        (stage.folder / "adapter" / "README.md").write_text(PRIVATE_ADAPTER, encoding="utf-8")
    _save_probe(trainer, stage)
    _save_log(trainer, stage)
    shutil.rmtree(checkpoints, ignore_errors=True)
    stage.finish(
        **facts,
        rows_in=rows_in,
        steps=trainer.state.global_step,
        resumed_at_step=int(start.name.split("-")[1]) if start else 0,
        train_seconds=round(stage.earlier + result.metrics["train_runtime"], 2),
        frozen_changed=sum(frozen_after[name] != value for name, value in frozen.items()),
        adapter_changed=sum(adapter_after[name] != value for name, value in adapter.items()),
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
    """Exact hashes of the frozen weights and of the trained adapter's."""
    import torch

    hashes = {name: torch.hash_tensor(p.detach()).item() for name, p in model.named_parameters()}
    # by name, not by requires_grad: a base weight left trainable must be seen; so must the reference adapter
    trained = {name for name in hashes if "lora_" in name and ".default." in name}
    frozen = {name: value for name, value in hashes.items() if name not in trained}
    return frozen, {name: hashes[name] for name in trained}


def _save_probe(trainer: Any, stage: Stage) -> None:
    """Logits of one prompt, to see later that the saved adapter reloads to the same model."""
    import torch

    row = trainer.train_dataset[0]
    ids = torch.tensor([row.get("prompt_ids") or row["input_ids"]], device=trainer.model.device)
    # without the trainer's bf16 autocast, as the model will run when it answers
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1].float()
    torch.save({"input_ids": ids.cpu(), "logits": logits.cpu()}, stage.folder / "probe.pt")


def _save_log(trainer: Any, stage: Stage) -> None:
    import pandas as pd

    log = pd.DataFrame([row for row in trainer.state.log_history if "loss" in row])
    first = ["step", "epoch", "loss"]
    log[[*first, *(c for c in log.columns if c not in first)]].to_csv(stage.folder / LOG, index=False)


def _keeper(stage: Stage, minutes: float) -> Any:
    """A callback that has the trainer keep its state every so many minutes, with the time it took so far."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        begun = last = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if time.monotonic() - self.last >= 60 * minutes:
                self.last, control.should_save = time.monotonic(), True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            if state.is_world_process_zero:
                write_json(folder / ELAPSED, stage.earlier + time.monotonic() - self.begun)

    return Keeper()


def _whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: what `_keeper` adds comes last."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{ELAPSED}")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _progress(stage: Stage) -> Any:
    """A callback that keeps one line of output and the run's status file up to date."""
    from IPython.display import display
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        last, line, begun, first = 0.0, None, 0.0, 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.begun, self.first = time.monotonic(), state.global_step

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            done = state.global_step == state.max_steps
            if "loss" not in (logs or {}) or (time.monotonic() - self.last < 1 and not done):
                return
            self.last = time.monotonic()
            progress = {"step": state.global_step, "steps": state.max_steps, "loss": logs["loss"]}
            pace = (self.last - self.begun) / max(1, state.global_step - self.first)
            left = round(pace * (state.max_steps - state.global_step))
            stage.run.status(stage.name, state="running", **progress, seconds_left=left)
            text = {
                "text/plain": f"{stage.name}: step {{step}} of {{steps}}, loss {{loss}}".format(**progress)
            }
            if self.line is None:
                self.line = display(text, raw=True, display_id=True)
            else:
                self.line.update(text, raw=True)

    return Progress()
