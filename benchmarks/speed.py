"""The same two trainings by this package, by its peers and by a bare loop, interleaved: ratios of medians.

    python benchmarks/speed.py --rounds 3 [--llamafactory VENV] [--swift VENV]

Work: LoRA of rank 32 on every linear layer of builtin/llama, 800 rows, batches of 8, one epoch; SFT on cases
of synthetic_vignettes, DPO on their pairs, everyone from the same weights and with the same rates. A peer is
run by its own command from an environment of its own (`pip install llamafactory`, `pip install ms-swift`;
torchvision and torchaudio for CUDA must go, a stub of torchaudio may be needed). Round k uses seed k.

`loop` is the training loop with the reference, `process` everything from start to exit, `peak` the largest
memory; `loss` is that of the saved adapter over all rows, judged alike for everyone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = 800


def main() -> None:
    """Run the rounds and print a table for each training."""
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="speed-", dir=args.folder) as name:
        folder = Path(name)
        prepare(folder)
        runners = contestants(args)
        for kind in args.training:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
            for seed in range(args.rounds):
                for name, runner in runners.items():
                    shutil.rmtree(folder / f"{name}-{kind}", ignore_errors=True)
                    result = measured(*runner(kind, folder, seed))
                    result["loop"] = loop_seconds(folder / f"{name}-{kind}", result)
                    result["loss"] = judged(kind, folder, name)
                    found[name].append(result)
                    print(kind, seed, name, json.dumps(result), file=sys.stderr, flush=True)
            print_table(kind, found)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--training", nargs="+", choices=("sft", "dpo"), default=["sft", "dpo"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--llamafactory", type=Path, help="virtual environment with LLaMA-Factory")
    parser.add_argument("--swift", type=Path, help="virtual environment with ms-swift")
    parser.add_argument("--only", nargs="+", help="contestants to run; default: all that are there")
    parser.add_argument("--folder", help="where the work goes for the time being")
    return parser.parse_args()


def prepare(folder: Path, count: int = ROWS) -> None:
    """The model, an adapter that changes nothing, and the rows in everybody's form."""
    from medstudy.data.load import load_card, load_cases
    from medstudy.params import resolve
    from medstudy.tasks import get_task
    from medstudy.training.models import load_model, load_tokenizer, locate
    from medstudy.training.preferences import make_pairs
    from medstudy.training.prompts import sft_row

    asked = {"task": "clinical_reasoning", "data": "synthetic_vignettes", "pair_source": "labels"}
    params = resolve(asked | {"pairs_per_case": 1})
    card = load_card(params.data)
    task, cases = get_task(params.task, card), load_cases(card).cases[:count]
    rows = {"sft": [sft_row(task, case) for case in cases]}
    rows["dpo"] = [pair.row() for pair in make_pairs(params, task, cases).pairs]
    shutil.copytree(locate(params), folder / "model")
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(load_model(params, trainable=True), lora).save_pretrained(folder / "untrained")
    tokenizer = load_tokenizer(params)
    for kind, some in rows.items():
        write(folder / f"{kind}.json", some)
        write(folder / f"lf-{kind}.json", [for_llamafactory(tokenizer, row) for row in some])
        lines = [json.dumps(for_swift(row), ensure_ascii=False) for row in some]
        (folder / f"swift-{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {"prompt": "instruction", "query": "input"}
    preference = {"ranking": True, "columns": columns | {"chosen": "chosen", "rejected": "rejected"}}
    sft = {"columns": columns | {"response": "output"}}
    info = {"sft": {"file_name": "lf-sft.json"} | sft, "dpo": {"file_name": "lf-dpo.json"} | preference}
    write(folder / "dataset_info.json", info)


def for_llamafactory(tokenizer: Any, row: dict[str, Any]) -> dict[str, str]:
    """Rendered by the model's own template, as none of LLaMA-Factory's is the same."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    sides = {"completion": "output", "chosen": "chosen", "rejected": "rejected"}
    whole = {
        new: tokenizer.apply_chat_template([*row["prompt"], *row[old]], tokenize=False)[len(prompt) :]
        for old, new in sides.items()
        if old in row
    }
    return {"instruction": prompt, "input": ""} | whole


def for_swift(row: dict[str, Any]) -> dict[str, Any]:
    """Messages; the worse answer beside them."""
    answer = row.get("completion") or row["chosen"]
    worse = {"rejected_response": row["rejected"][0]["content"]} if "rejected" in row else {}
    return {"messages": [*row["prompt"], *answer]} | worse


def contestants(args: argparse.Namespace) -> dict[str, Callable[..., Any]]:
    """Everyone who is there: a function from (training, folder, seed) to a command and its environment."""
    from contestants import BATCH, BETA, RANK, RATES, WARMUP

    from medstudy.batch.run_notebook import job_environment

    plain = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

    def ours(name: str) -> Callable[..., Any]:
        def command(kind: str, folder: Path, seed: int) -> Any:
            # what a notebook job is started with; the floor gets it too
            env = (
                plain | job_environment(folder / "scratch", folder / "private", args.threads, [])
                if name != "trl"
                else plain
            )
            return [sys.executable, str(HERE / "contestants.py"), name, kind, str(folder), str(seed)], env

        return command

    def llamafactory(kind: str, folder: Path, seed: int) -> Any:
        rate, out = RATES[kind], folder / f"llamafactory-{kind}"
        asked: dict[str, Any] = {"model_name_or_path": str(folder / "model"), "stage": kind, "do_train": True}
        asked |= {"finetuning_type": "lora", "lora_rank": RANK, "lora_alpha": 2 * RANK, "lora_target": "all"}
        asked |= {"dataset": kind, "dataset_dir": str(folder), "template": "empty", "cutoff_len": 256}
        asked |= {"output_dir": str(out), "per_device_train_batch_size": BATCH, "num_train_epochs": 1}
        asked |= {"gradient_accumulation_steps": 1, "learning_rate": rate, "lr_scheduler_type": "linear"}
        asked |= {"warmup_steps": round(WARMUP * ROWS / BATCH), "bf16": True, "seed": seed, "pref_beta": BETA}
        asked |= {"use_cpu": True, "report_to": "none", "save_strategy": "no", "overwrite_cache": True}
        asked |= {"preprocessing_num_workers": 1, "logging_steps": 1, "disable_gradient_checkpointing": True}
        write(folder / f"lf-{kind}.yaml", asked)
        command = [str(args.llamafactory / "bin/llamafactory-cli"), "train"]
        return [*command, str(folder / f"lf-{kind}.yaml")], plain

    def swift(kind: str, folder: Path, seed: int) -> Any:
        command = [
            str(args.swift / "bin/swift"),
            *(["rlhf", "--rlhf_type", "dpo"] if kind == "dpo" else ["sft"]),
        ]
        asked: dict[str, Any] = {
            "model": folder / "model",
            "model_type": "llama",
            "template_backend": "jinja",
        }
        asked |= {"template": "dummy", "tuner_type": "lora", "lora_rank": RANK, "lora_alpha": 2 * RANK}
        asked |= {
            "target_modules": "all-linear",
            "dataset": folder / f"swift-{kind}.jsonl",
            "bf16": "true",
            "fp16": "false",
        }
        asked |= {"torch_dtype": "float32", "num_train_epochs": 1, "per_device_train_batch_size": BATCH}
        asked |= {"gradient_accumulation_steps": 1, "learning_rate": RATES[kind], "seed": seed}
        asked |= {
            "lr_scheduler_type": "linear",
            "warmup_ratio": WARMUP,
            "max_length": 256,
            "logging_steps": 1,
        }
        asked |= {"output_dir": folder / f"swift-{kind}", "add_version": "false", "report_to": "none"}
        asked |= {"gradient_checkpointing": "false", "split_dataset_ratio": 0, "save_strategy": "epoch"}
        asked |= {"use_cpu": "true", "lora_dropout": 0, "dataset_num_proc": 1, "beta": BETA}
        if kind == "sft":
            asked.pop("beta")
        words = [str(word) for name, value in asked.items() for word in (f"--{name}", value)]
        return [*command, *words], plain

    found: dict[str, Callable[..., Any]] = {name: ours(name) for name in ("floor", "medstudy", "trl")}
    found |= {"llamafactory": llamafactory} if args.llamafactory else {}
    found |= {"swift": swift} if args.swift else {}
    return {name: runner for name, runner in found.items() if name in (args.only or found)}


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


def loop_seconds(folder: Path, result: dict[str, float]) -> float:
    """The training loop, from what the contestant says or the trainer's own record of it."""
    if "loop" in result:
        return result["loop"]
    if (folder / "train_results.json").is_file():
        return float(json.loads((folder / "train_results.json").read_text())["train_runtime"])
    lines = (folder / "logging.jsonl").read_text().splitlines()
    return float(next(row["train_runtime"] for row in map(json.loads, lines) if "train_runtime" in row))


def judged(kind: str, folder: Path, name: str) -> float:
    """Loss of the adapter that a contestant saved."""
    out = folder / f"{name}-{kind}"
    if name == "medstudy":
        adapter = Path((folder / f"medstudy-{kind}.txt").read_text())
    else:
        adapter = max(out.rglob("adapter_config.json"), key=lambda path: path.stat().st_mtime).parent
    (folder / "judged.txt").write_text(str(adapter), encoding="utf-8")
    command = [sys.executable, str(HERE / "contestants.py"), "evaluate", kind, str(folder), "0"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(asked.stdout.splitlines()[-1])["loss"])


def print_table(kind: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Medians as a Markdown table, in the contestants' order."""
    floor = statistics.median(result["loop"] for result in found["floor"]) if "floor" in found else None
    print(f"\n{kind.upper()}, {ROWS} rows, {len(next(iter(found.values())))} rounds\n")
    print("| contestant | loop s | x floor | process s | CPU s | peak MB | loss, each round |")
    print("|---|---|---|---|---|---|---|")
    for name, results in found.items():
        median = {key: statistics.median(r[key] for r in results) for key in results[0]}
        ratio = f"{median['loop'] / floor:.2f}" if floor else ""
        losses = ", ".join(f"{r['loss']:.4f}" for r in results)
        print(
            f"| {name} | {median['loop']:.1f} | {ratio} | {median['process']:.1f} | {median['cpu']:.0f} "
            f"| {median['peak']:.0f} | {losses} |"
        )


def write(path: Path, value: Any) -> None:
    """As JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
