"""One training in several processes, a GPU each (on a machine without, CPU processes): data parallel.

The notebook asks `train_together`, which starts this very module by torchrun, as `accelerate launch` does.
Each process builds the trainer as the notebook would and takes its share of every batch; the first one
writes what the notebook then reads.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.batch.machine import die_with_parent, remedy
from medstudy.params import RunParams, resolve
from medstudy.runs import Run, Stage, write_json

if TYPE_CHECKING:
    from medstudy.training.prompts import Row


class LaunchError(RuntimeError):
    """A training in several processes failed; the message says where its log is."""


def train_together(
    stage: Stage,
    params: RunParams,
    rows: list[Row],
    start: Stage | None,
    longest: int,
    steps: int | None = -1,
) -> None:
    """Train a stage in ``params.processes`` processes; it is finished afterwards, as after `training.train`.

    Args:
        stage: unfinished.
        params: of this training.
        rows: SFT rows, or preference rows.
        start: the stage whose adapter is continued; None for a new adapter.
        longest: tokens of the longest row.
        steps: for SFT: optimiser steps, -1 for ``sft_epochs``; None trains by DPO.

    Raises:
        LaunchError: a process ended with an error.
    """
    folder = stage.run.private
    spec, log = folder / f"{stage.name}.launch.json", folder / f"{stage.name}.launch.log"
    adapter = str((start.folder / "adapter").absolute()) if start else ""
    said = {
        "params": params.model_dump(),
        "rows": rows,
        "adapter": adapter,
        "longest": longest,
        "steps": steps,
    }
    write_json(spec, said | {"name": stage.name, "key": stage.key, "facts": stage.run.facts})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(params.processes), "-m", "medstudy.training.launch", str(spec)]
    _free_gpu()
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS", "1")) // params.processes)
    with log.open("w") as file:
        code = subprocess.run(
            command,
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            preexec_fn=die_with_parent,
        ).returncode
    stage.reread()
    if code or not stage.done:
        helps = remedy(log.read_text(encoding="utf-8", errors="replace"))
        raise LaunchError(f"{stage.name} in {params.processes} processes ended with {code}; see {log}{helps}")
    spec.unlink()


def _free_gpu() -> None:
    """Give back what this process holds of its GPU and no longer uses: one of the others needs it."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    """One of the processes."""
    die_with_parent()
    if sys.platform == "linux" and b"torch.distributed" not in Path(f"/proc/{os.getppid()}/cmdline").read_bytes():
        sys.exit("torchrun is gone already")  # it died before the line above
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    params = resolve(spec["params"])
    run = Run(params, begin=False)
    run.facts |= spec["facts"]
    stage = Stage(run, spec["name"], spec["key"], begin=False)
    trainer = _trainer(params, run, spec)
    from medstudy.training.fit import train

    train(trainer, stage, rows_in=len(spec["rows"]))


def _trainer(params: RunParams, run: Run, spec: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import DPOTrainer, SFTTrainer

    from medstudy.training.fit import dpo_config, lora_config, sft_config
    from medstudy.training.models import load_model, load_tokenizer

    model = load_model(params, Path(spec["adapter"]) if spec["adapter"] else None, trainable=True)
    given = {"train_dataset": Dataset.from_list(spec["rows"]), "processing_class": load_tokenizer(params)}
    if spec["steps"] is None:
        return DPOTrainer(model, args=dpo_config(params, run, spec["longest"]), **given)
    args = sft_config(params, run, spec["longest"], spec["steps"])
    return SFTTrainer(model, args, peft_config=None if spec["adapter"] else lora_config(params), **given)


if __name__ == "__main__":
    main()
