"""The same rows in everybody's form, the commands by which peers are started, and what a process costs.

LLaMA-Factory runs by its own command from an environment of its own (`pip install llamafactory`; torchvision and
torchaudio for CUDA must go, a stub of torchaudio may be needed).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: The same for everyone: rank, rows a step, share of warm-up steps, learning rates (those of the demo), beta.
RANK, BATCH, WARMUP, RATES, BETA = 32, 8, 0.05, {"sft": 3e-3, "dpo": 3e-4}, 0.1
#: Tokens of an answer.
NEW = 48
Command = tuple[list[str], dict[str, str]]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Options that the benchmarks share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--llamafactory", type=Path, help="virtual environment with LLaMA-Factory")
    return parser


def environment(threads: int, folder: Path | None = None) -> dict[str, str]:
    """As a user would start it, without a network; with ``folder`` what a notebook job is started with."""
    from medstudy.batch.run_notebook import job_environment

    plain = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    return plain | (job_environment(folder / "scratch", folder / "private", threads, []) if folder else {})


def prepare(folder: Path, train: int, pairs_per_case: int = 1, test: int = 0, samples: int = 0) -> None:
    """The model, an adapter that changes nothing, and cases of synthetic_vignettes as rows of every form."""
    from peft import LoraConfig, get_peft_model

    from medstudy.data.load import load_card, load_cases
    from medstudy.params import resolve
    from medstudy.tasks import get_task
    from medstudy.training.checkpoint import locate
    from medstudy.training.models import load_model, load_tokenizer
    from medstudy.training.preferences import make_pairs
    from medstudy.training.prompts import sft_row

    asked = {"task": "clinical_reasoning", "pair_source": "labels", "pairs_per_case": pairs_per_case}
    params = resolve(asked)
    card = load_card(params.data)
    task, cases = get_task(params.task, card), load_cases(card).cases[: train + test]
    answered = [sft_row(task, case) for case in cases]
    rows: dict[str, Any] = {"sft": answered[:train], "samples": answered[:train] * samples, "test": answered[train:]}
    rows["dpo"] = [pair.row() for pair in make_pairs(params, task, cases[:train]).pairs]
    shutil.copytree(locate(params), folder / "model")
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(load_model(params, trainable=True), lora).save_pretrained(folder / "untrained")
    tokenizer, info = load_tokenizer(params), {}
    columns = {"prompt": "instruction", "query": "input"}
    for kind, some in rows.items():
        sides = {"chosen": "chosen", "rejected": "rejected"} if kind == "dpo" else {"response": "output"}
        info[kind] = {"file_name": f"lf-{kind}.json", "columns": columns | sides, "ranking": kind == "dpo"}
        write(folder / f"{kind}.json", some)
        write(folder / f"lf-{kind}.json", [_for_llamafactory(tokenizer, row) for row in some])
    write(folder / "dataset_info.json", info)


def _for_llamafactory(tokenizer: Any, row: dict[str, Any]) -> dict[str, str]:
    """Rendered by the model's own template, as none of LLaMA-Factory's is the same."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    sides = {"completion": "output", "chosen": "chosen", "rejected": "rejected"}
    whole = {
        new: tokenizer.apply_chat_template([*row["prompt"], *row[old]], tokenize=False)[len(prompt) :]
        for old, new in sides.items()
        if old in row
    }
    return {"instruction": prompt, "input": ""} | whole


def llamafactory(
    args: argparse.Namespace, folder: Path, step: str, seed: int, epochs: int = 1, start: Path | None = None
) -> Command:
    """A training (``sft``, ``dpo``) or answers (``samples``, ``test``) from the adapter ``start``."""
    told = {"model_name_or_path": str(folder / "model"), "finetuning_type": "lora", "template": "empty", "seed": seed}
    told |= {"dataset_dir": str(folder), "cutoff_len": 256, "bf16": True, "use_cpu": True, "report_to": "none"}
    told |= {"overwrite_cache": True, "overwrite_output_dir": True, "preprocessing_num_workers": 1}
    told |= {"disable_gradient_checkpointing": True, "output_dir": str(folder / f"llamafactory-{step}")}
    told |= {"adapter_name_or_path": str(start)} if start else {}
    if step in RATES:
        told |= {"stage": step, "dataset": step, "num_train_epochs": epochs, "learning_rate": RATES[step]}
        told |= {"do_train": True, "lora_rank": RANK, "lora_alpha": 2 * RANK, "lora_target": "all"}
        told |= {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1, "warmup_ratio": WARMUP}
        told |= {"lr_scheduler_type": "linear", "save_strategy": "no", "logging_steps": 1, "pref_beta": BETA}
    else:
        told |= {"stage": "sft", "eval_dataset": step, "do_predict": True, "predict_with_generate": True}
        told |= {"max_new_tokens": NEW, "per_device_eval_batch_size": 64}
        told |= {"temperature": 1.0} if step == "samples" else {"do_sample": False}
    write(folder / f"llamafactory-{step}.yaml", told)
    program = str(args.llamafactory / "bin/llamafactory-cli")
    return [program, "train", str(folder / f"llamafactory-{step}.yaml")], environment(args.threads)


def measured(command: list[str], env: dict[str, str]) -> dict[str, float]:
    """Seconds and memory of a process with its children, and what it printed last."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        log.seek(0)
        text = log.read()
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}:\n{text[-3000:]}")
    said = re.findall(r"^\{.*\}$", text, re.MULTILINE)
    figures = {"process": seconds, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss / 1024}
    return figures | (json.loads(said[-1]) if said and '"loop"' in said[-1] else {})


def write(path: Path, value: Any) -> None:
    """As JSON, which is YAML too."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
