"""Arguments for TRL's trainers, from the parameters, and how they are shown."""

import dataclasses
import math
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig
from trl import DPOConfig, SFTConfig

from medstudy.files import COSMETIC
from medstudy.params import RunParams
from medstudy.runs import Run
from medstudy.show import aggregate
from medstudy.training.models import train_in_bf16
from medstudy.training.shared_prompt import PADDED_TO

#: Trainer argument -> the parameter that sets it, for every arm; `_config` adds the arm's own.
BOTH = {
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "activation_checkpointing": "gradient_checkpointing",
    "seed": "seed",
}
DPO = {"beta": "dpo_beta", "loss_type": "dpo_loss", "loss_weights": "dpo_loss_weights"}
#: Arguments that say how a machine is used or how a training is watched, not what is learnt.
_OF_THE_MACHINE = {"use_cpu", "dataloader_pin_memory", "accelerator_config", "debug", "peft_version", "peft_type"}
_OF_THE_MACHINE |= {"logging_steps", "save_strategy", "save_total_limit", "remove_unused_columns", "task_type"}
_OF_THE_MACHINE |= {"gradient_checkpointing"}  # the old name of activation_checkpointing


def lora_config(params: RunParams) -> LoraConfig:
    """LoRA on every linear layer, alpha twice the rank, no dropout (DPO would switch it off, SFT not)."""
    rank = params.lora_rank
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=rank, lora_alpha=2 * rank, lora_dropout=0.0)


def sft_config(params: RunParams, run: Run) -> SFTConfig:
    """Arguments of `SFTTrainer` for the arm ``sft``."""
    return _config(params, run, "sft")


def control_config(params: RunParams, run: Run, arm: str, rows: int, steps: int) -> SFTConfig:
    """Arguments of `SFTTrainer` for an arm that goes on from ``sft``: its epochs over its ``rows``.

    At the least as many optimiser ``steps`` as DPO had, so that more training cannot be what DPO gained.
    """
    batch = params.batch_size * params.gradient_accumulation
    own = math.ceil(getattr(params, f"{arm}_epochs") * math.ceil(rows / batch))
    return _config(params, run, arm, max_steps=max(own, steps))


def dpo_config(params: RunParams, run: Run) -> DPOConfig:
    """Arguments of `DPOTrainer`; its reference is the SFT adapter that the policy starts from."""
    # the column of lengths, by which batches are made, is none that DPOTrainer knows
    return _config(params, run, "dpo", remove_unused_columns=False)


def _config(params: RunParams, run: Run, arm: str, **others: Any) -> Any:
    named = BOTH | {"learning_rate": f"{arm}_learning_rate", "num_train_epochs": f"{arm}_epochs"}
    named |= DPO if arm == "dpo" else {}
    gpu = torch.cuda.is_available()
    config = (DPOConfig if arm == "dpo" else SFTConfig)(
        # an empty list is none: TRL then weighs all losses alike
        **{argument: None if (value := getattr(params, name)) == [] else value for argument, name in named.items()},
        **others,
        output_dir=str(run.private / "trainer"),
        max_length=None,  # nothing is cut off or dropped
        # one tensor shape a multiple instead of one a length: a third less memory on a CPU
        pad_to_multiple_of=PADDED_TO,
        train_sampling_strategy="group_by_length",
        bf16=train_in_bf16(params),
        use_cpu=not gpu,
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        logging_steps=1,
        save_strategy="no",  # saved by time, see `beside`
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
    )
    config.set_by = named
    config._n_gpu = min(1, config.n_gpu)  # of several visible GPUs the trainer would use all, by DataParallel
    return config


def arguments_table(*configs: Any) -> pd.DataFrame:
    """A row for each argument of trainers or LoRA that somebody set: value, the library's default, our parameter."""
    rows = [(type(config).__name__, *row) for config in configs for row in set_arguments(config)]
    columns = ["config", "argument", "value", "default", "parameter"]
    return aggregate(pd.DataFrame(rows, columns=columns).set_index(columns[:2]), words=columns)


def set_arguments(config: Any) -> list[tuple[str, Any, Any, str]]:
    """Argument, value, default and parameter of what a parameter sets or is not the default; not of this machine."""
    named, rows = getattr(config, "set_by", {"r": "lora_rank"}), []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        value = ", ".join(sorted(value)) if isinstance(value, set) else value  # peft's layers
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name in named or (field.init and value != default and field.name not in COSMETIC | _OF_THE_MACHINE):
            rows.append((field.name, value, default, named.get(field.name, "")))
    return sorted(rows, key=lambda row: not row[-1])
