"""`fit`: one training, from rows to a saved and measured adapter; after a kill it goes on from its last state."""

import copy
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from IPython.display import display
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from medstudy.files import read_json, write_json
from medstudy.runs import Run, Stage
from medstudy.training.arguments import lora_config, set_arguments
from medstudy.training.chat import Row, load_chat
from medstudy.training.checkpoint import note_model
from medstudy.training.measure import measured, save_probe
from medstudy.training.models import compute_dtype, load_model, load_tokenizer
from medstudy.training.shared_prompt import row_length

#: Package modules whose change redoes a training.
CODE = ("training.fit", "training.measure", "training.models", "training.shared_prompt")
LOG = "log.csv"
#: What a training learnt from, read back from its batches: fingerprint of a prompt, and the completion.
LEARNT = "learnt.json"
#: A training keeps its state so often, and goes on from there after a kill; the file of the seconds that it had taken
#: is written last, so it marks a whole checkpoint.
CHECKPOINT_MINUTES, ELAPSED = 10.0, "elapsed.json"
PRIVATE_ADAPTER = """# Trained on private data: do not publish

The data card does not say `shareable: true`. These weights may give parts of the cases away.
"""


def fit(
    run: Run, name: str, trainer_class: Any, args: Any, rows: list[Row], start: Stage | LoraConfig | None = None
) -> Stage:
    """Train, save the adapter and the log, and measure what the gates need; what was trained before is read back.

    ``name``: an arm, or any other for a trial; ``trainer_class``: `SFTTrainer`, `DPOTrainer`, or a subclass; ``args``:
    its arguments; ``rows``: what `sft_row` or `Pair.row` make (without a row, or for 0 steps, the adapter of ``start``
    is kept); ``start``: the training that is gone on with, or how the new adapter looks (`lora_config`).
    """
    before = start if isinstance(start, Stage) else None
    lora = None if before else start or lora_config(run.params)
    chat = load_chat(run.params)
    tokens = [chat.trained(row) for row in rows]
    base = [note_model(run), run.params.dtype, run.params.quantization]
    stage = run.stage(name, CODE, before, base=base, trainer=trainer_class, args=args, lora=lora, rows=tokens)
    stage.args = args
    made_with = {parameter: getattr(args, argument) for argument, parameter in args.set_by.items()}
    stage.made_with = {name: [] if value is None else value for name, value in made_with.items()}
    stage.made_with |= {"lora_rank": lora.r} if lora else {}
    if not stage.done and before and (not rows or args.max_steps == 0):
        shutil.copytree(before.folder / "adapter", stage.folder / "adapter", dirs_exist_ok=True)
        shutil.copy(before.folder / "probe.pt", stage.folder)
        stage.finish(rows=0, steps=0, train_seconds=0.0)
    elif not stage.done:
        # copies: libraries fill in what they find, and the next trial of the same object would have another key
        _train(stage, _trainer(stage, trainer_class, copy.copy(args), tokens, copy.copy(lora)), len(rows))
    training_log(stage)
    run.facts["dtype"] = str(compute_dtype(run.params)).removeprefix("torch.")
    run.facts["compute_dtype"] = "bfloat16" if args.bf16 else run.facts["dtype"]
    return stage


def _trainer(stage: Stage, trainer_class: Any, args: Any, rows: list[Any], lora: LoraConfig | None) -> Any:
    if not issubclass(trainer_class, SFTTrainer):  # unlike it, `DPOTrainer` 1.16 knows no rows in tokens
        members = {name: getattr(trainer_class, name) for name in ("__module__", "__qualname__")}
        members["_prepare_dataset"] = lambda self, dataset, *others: dataset
        trainer_class = type(trainer_class.__name__, (trainer_class,), members)
    args.output_dir = str(stage.folder / "checkpoints")
    adapter, longest = stage.start and stage.start.folder / "adapter", max(map(row_length, rows))
    model = load_model(stage.run.params, adapter, trainable=True, longest=longest)
    if lora and model.config.get_text_config() is not model.config:  # of a multimodal model the part that reads text
        decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
        lora.exclude_modules = rf"(?!{re.escape(decoder)}\.).*"
    given = {"train_dataset": Dataset.from_list(rows), "processing_class": load_tokenizer(stage.run.params)}
    trainer = trainer_class(model, args=args, peft_config=lora, **given)
    lengths = [row_length(row) for row in trainer.train_dataset]
    trainer.train_dataset = trainer.train_dataset.add_column(args.length_column_name, lengths)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(beside(stage, CHECKPOINT_MINUTES))
    return trainer


def _train(stage: Stage, trainer: Any, rows_in: int) -> None:
    checkpoints = stage.folder / "checkpoints"
    whole = {int(path.parent.name.split("-")[1]): path.parent for path in checkpoints.glob(f"checkpoint-*/{ELAPSED}")}
    step = max(whole, default=0)
    kept = whole.get(step)
    stage.earlier = read_json(kept / ELAPSED) if kept else 0.0
    with measured(trainer, load_chat(stage.run.params)) as facts:
        result = trainer.train(resume_from_checkpoint=str(kept) if kept else None)
    write_json(stage.folder / LEARNT, facts.pop("learnt"))
    trainer.model.save_pretrained(stage.folder / "adapter", selected_adapters=["default"])
    if not stage.run.facts.get("shareable", False):
        (stage.folder / "adapter" / "README.md").write_text(PRIVATE_ADAPTER, encoding="utf-8")
    save_probe(trainer, stage.folder)
    log = pd.DataFrame([row for row in trainer.state.log_history if "loss" in row])
    first = ["step", "epoch", "loss"]
    log[[*first, *log.columns.drop(first)]].to_csv(stage.folder / LOG, index=False)
    shutil.rmtree(checkpoints, ignore_errors=True)
    given = {name: str(value) for name, value, *_ in set_arguments(trainer.args) if not name.endswith("hub_token")}
    stage.finish(
        **facts,
        trainer=f"{type(trainer).__module__}.{type(trainer).__qualname__}",
        arguments=given,
        rows_in=rows_in,
        steps=trainer.state.global_step,
        resumed_at_step=step,
        train_seconds=round(stage.earlier + result.metrics["train_runtime"], 2),
    )


def beside(stage: Stage, minutes: float) -> Any:
    """A callback: a line of output kept up to date, the trainer's state kept every so many minutes, order by seed."""

    class Beside(TrainerCallback):
        begun = kept = time.monotonic()
        shown, first = 0.0, 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.begun, self.first = time.monotonic(), state.global_step

        def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **others: Any) -> None:
            # a sampler by length draws from the state of the process: after a kill, another order of the same epoch
            sampler = train_dataloader.batch_sampler.sampler
            if hasattr(sampler, "lengths"):
                sampler.generator = torch.Generator().manual_seed(1_000_003 * args.seed + int(state.epoch or 0))

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if time.monotonic() - self.kept >= 60 * minutes:
                self.kept, control.should_save = time.monotonic(), True

        def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            file = Path(args.output_dir, f"checkpoint-{state.global_step}", ELAPSED)
            write_json(file, stage.earlier + time.monotonic() - self.begun)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **others: Any) -> None:
            step, steps, now = state.global_step, state.max_steps, time.monotonic()
            if "loss" not in logs or (now - self.shown < 1 and step < steps):
                return
            left = round((now - self.begun) / max(1, step - self.first) * (steps - step))
            stage.run.status(stage.name, state="running", step=step, steps=steps, loss=logs["loss"], seconds_left=left)
            line = {"text/plain": f"{stage.name}: step {step} of {steps}, loss {float(logs['loss']):.3f}"}
            display(line, raw=True, display_id=f"{stage.key}-{self.begun}", update=self.shown > 0)
            self.shown = now

    return Beside()


def training_log(stage: Stage) -> pd.DataFrame:
    """One row a step (loss; for DPO rewards, margins, log-probabilities), also written to ``training/``."""
    file = stage.run.folder / "training" / f"{stage.name}.csv"
    file.parent.mkdir(exist_ok=True)
    log = pd.read_csv(stage.folder / LOG) if (stage.folder / LOG).is_file() else pd.DataFrame(columns=["step", "loss"])
    log.to_csv(file, index=False)
    return log
