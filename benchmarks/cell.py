"""A whole cell, SFT -> samples -> DPO -> answers, by this package and by its peers' commands; two at once.

    python benchmarks/cell.py --rounds 3 [--llamafactory VENV] [--swift VENV]

The work is that of the demo's clinical reasoning: 100 cases for 8 epochs, 6 samples of each, DPO on the same
pairs for everybody, 200 test cases. A peer needs a command for each step, which reads files that the step
before has written; here it is one process. Then two cells at once with a thread each, against one after the
other with all threads; and the same beside a process that keeps one core busy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contestants import BETA, RANK, RATES, WARMUP
from speed import for_llamafactory, for_swift, measured, write

from medstudy.batch.run_notebook import job_environment

HERE = Path(__file__).parent
CASES, EPOCHS, SAMPLES, TESTED, BATCH, NEW = 100, 8, 6, 200, 8, 48


def main() -> None:
    """Print the tables."""
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="cell-") as name:
        folder = Path(name)
        prepare(folder)
        cells: dict[str, Any] = {"medstudy": ours}
        cells |= {"llamafactory": llamafactory} if args.llamafactory else {}
        cells |= {"swift": swift} if args.swift else {}
        found: dict[str, list[float]] = {name: [] for name in cells}
        for number in range(args.rounds):
            for name, cell in cells.items():
                steps = [measured(*step)["process"] for step in cell(args, folder, number)]
                found[name].append(sum(steps))
                print(number, name, [round(step, 1) for step in steps], file=sys.stderr, flush=True)
        print("| cell by | commands | seconds, median | x medstudy |\n|---|---|---|---|")
        fastest = statistics.median(found["medstudy"])
        for name, seconds in found.items():
            median = statistics.median(seconds)
            steps = len(cells[name](args, folder, 0))
            print(f"| {name} | {steps} | {median:.1f} | {median / fastest:.2f} |")
        side_by_side(args, folder)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llamafactory", type=Path)
    parser.add_argument("--swift", type=Path)
    return parser.parse_args()


def prepare(folder: Path) -> None:
    """Model and rows; the pairs are made up once so that every DPO has the same."""
    from medstudy.data.load import load_card, load_cases
    from medstudy.params import resolve
    from medstudy.tasks import get_task
    from medstudy.training.models import load_tokenizer, locate
    from medstudy.training.preferences import make_pairs
    from medstudy.training.prompts import sft_row

    asked = {"task": "clinical_reasoning", "data": "synthetic_vignettes", "pair_source": "labels"}
    params = resolve(asked | {"pairs_per_case": 2})
    card = load_card(params.data)
    task, cases = get_task(params.task, card), load_cases(card).cases
    train, test = cases[:CASES], cases[CASES : CASES + TESTED]
    shutil.copytree(locate(params), folder / "model")
    tokenizer = load_tokenizer(params)
    rows: dict[str, Any] = {"sft": [sft_row(task, case) for case in train]}
    rows["dpo"] = [pair.row() for pair in make_pairs(params, task, train).pairs]
    rows["samples"] = rows["sft"] * SAMPLES
    rows["test"] = [sft_row(task, case) for case in test]
    info = {}
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    for kind, some in rows.items():
        write(folder / f"{kind}.json", some)
        write(folder / f"lf-{kind}.json", [for_llamafactory(tokenizer, row) for row in some])
        lines = [json.dumps(for_swift(row), ensure_ascii=False) for row in some]
        (folder / f"swift-{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        info[kind] = {"file_name": f"lf-{kind}.json", "columns": columns}
    chosen = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    info["dpo"] |= {"ranking": True, "columns": chosen}
    write(folder / "dataset_info.json", info)


def ours(args: argparse.Namespace, folder: Path, number: int) -> list[Any]:
    """One process."""
    env = plain(args) | job_environment(folder / "scratch", folder / "private", args.threads, [])
    return [([sys.executable, __file__, "--cell", str(folder), str(number)], env)]


def cell(folder: Path, number: int) -> None:
    """What the notebook does between the data and the tables."""
    from medstudy.batch.kernel import preload

    preload(True)  # as in the kernel of a job
    from trl import DPOTrainer, SFTTrainer

    from medstudy.data.load import load_card, load_cases
    from medstudy.params import resolve
    from medstudy.runs import Run
    from medstudy.tasks import get_task
    from medstudy.training.arguments import dpo_config, sft_config
    from medstudy.training.fit import fit
    from medstudy.training.generation import answer_cases, sample_cases

    asked = {"task": "clinical_reasoning", "data": "synthetic_vignettes", "seed": number, "lora_rank": RANK}
    asked |= {"results": str(folder / f"results{number}"), "batch_size": BATCH, "sft_epochs": EPOCHS}
    asked |= {"sft_learning_rate": RATES["sft"], "dpo_learning_rate": RATES["dpo"], "dpo_loss": "sigmoid"}
    params = resolve(asked | {"samples_per_case": SAMPLES, "max_new_tokens": NEW})
    run, card = Run(params), load_card(params.data)
    task, cases = get_task(params.task, card), load_cases(card).cases
    rows = {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in ("sft", "dpo")}
    sft = fit(run, "sft", SFTTrainer, sft_config(params, run), rows["sft"])
    sample_cases(run, task, cases[:CASES], sft)
    dpo = fit(run, "dpo", DPOTrainer, dpo_config(params, run), rows["dpo"], start=sft)
    answer_cases(run, "dpo", task, cases[CASES : CASES + TESTED], dpo)


def llamafactory(args: argparse.Namespace, folder: Path, number: int) -> list[Any]:
    """Four commands."""
    common = {"model_name_or_path": str(folder / "model"), "finetuning_type": "lora", "template": "empty"}
    common |= {"dataset_dir": str(folder), "cutoff_len": 256, "bf16": True, "use_cpu": True, "seed": number}
    common |= {"report_to": "none", "overwrite_cache": True, "preprocessing_num_workers": 1}
    common |= {"disable_gradient_checkpointing": True, "overwrite_output_dir": True}
    fit = common | {"do_train": True, "lora_rank": RANK, "lora_alpha": 2 * RANK, "lora_target": "all"}
    fit |= {"per_device_train_batch_size": BATCH, "lr_scheduler_type": "linear", "warmup_ratio": WARMUP}
    fit |= {"save_strategy": "no", "logging_steps": 1}
    say = common | {"stage": "sft", "do_predict": True, "predict_with_generate": True, "max_new_tokens": NEW}
    say |= {"per_device_eval_batch_size": 64}
    out = {name: str(folder / f"lf-out-{name}") for name in ("sft", "samples", "dpo", "answers")}
    fit_sft = {"stage": "sft", "dataset": "sft", "num_train_epochs": EPOCHS, "learning_rate": RATES["sft"]}
    fit_dpo = {"stage": "dpo", "dataset": "dpo", "num_train_epochs": 1, "learning_rate": RATES["dpo"]}
    drawn = {"eval_dataset": "samples", "adapter_name_or_path": out["sft"], "temperature": 1.0}
    greedy = {"eval_dataset": "test", "adapter_name_or_path": out["dpo"], "do_sample": False}
    steps = {
        "sft": fit | fit_sft,
        "samples": say | drawn,
        "dpo": fit | fit_dpo | {"pref_beta": BETA, "adapter_name_or_path": out["sft"]},
        "answers": say | greedy,
    }
    commands = []
    for name, asked in steps.items():
        write(folder / f"lf-{name}.yaml", asked | {"output_dir": out[name]})
        program = [str(args.llamafactory / "bin/llamafactory-cli"), "train", str(folder / f"lf-{name}.yaml")]
        commands.append((program, plain(args)))
    return commands


def swift(args: argparse.Namespace, folder: Path, number: int) -> list[Any]:
    """Four commands."""
    common = {
        "model": folder / "model",
        "model_type": "llama",
        "template": "dummy",
        "template_backend": "jinja",
    }
    common |= {"torch_dtype": "float32", "seed": number, "max_length": 256}
    fit = common | {"tuner_type": "lora", "lora_rank": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0}
    fit |= {"target_modules": "all-linear", "bf16": "true", "fp16": "false", "use_cpu": "true"}
    fit |= {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1, "save_strategy": "epoch"}
    fit |= {
        "lr_scheduler_type": "linear",
        "warmup_ratio": WARMUP,
        "add_version": "false",
        "report_to": "none",
    }
    fit |= {"gradient_checkpointing": "false", "split_dataset_ratio": 0, "save_only_model": "true"}
    fit |= {"save_total_limit": 1, "dataset_num_proc": 1, "logging_steps": 1}
    say = common | {"infer_backend": "transformers", "max_batch_size": 64, "max_new_tokens": NEW}
    say |= {"load_data_args": "false", "write_batch_size": 1000, "stream": "false"}
    out = {name: folder / f"swift-out{number}-{name}" for name in ("sft", "dpo")}
    last = {"sft": -(-CASES // BATCH) * EPOCHS, "dpo": -(-2 * CASES // BATCH)}
    at = {name: out[name] / f"checkpoint-{last[name]}" for name in out}
    rows = {name: {"dataset": folder / f"swift-{name}.jsonl", "output_dir": out[name]} for name in out}
    rows |= {name: {"val_dataset": folder / f"swift-{name}.jsonl"} for name in ("samples", "test")}
    fit_sft = fit | rows["sft"] | {"num_train_epochs": EPOCHS, "learning_rate": RATES["sft"]}
    fit_dpo = fit | rows["dpo"] | {"num_train_epochs": 1, "learning_rate": RATES["dpo"], "beta": BETA}
    steps: list[tuple[list[str], dict[str, Any]]] = [
        (["sft"], fit_sft),
        (["infer"], say | rows["samples"] | {"adapters": at["sft"], "temperature": 1}),
        (["rlhf", "--rlhf_type", "dpo"], fit_dpo | {"adapters": at["sft"]}),
        (["infer"], say | rows["test"] | {"adapters": at["dpo"], "temperature": 0}),
    ]
    program = str(args.swift / "bin/swift")
    return [
        (
            [program, *verb, *[str(w) for name, value in asked.items() for w in (f"--{name}", value)]],
            plain(args),
        )
        for verb, asked in steps
    ]


def plain(args: argparse.Namespace) -> dict[str, str]:
    """As a user would start it, without a network."""
    import os

    return os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def side_by_side(args: argparse.Namespace, folder: Path) -> None:
    """Two cells in turn with all threads, or at once with a thread each; also beside a busy process."""
    print("\n| two cells | one after the other | at once | throughput |\n|---|---|---|---|")
    for beside in ("alone", "beside a busy process"):
        with busy() if beside != "alone" else contextlib.nullcontext():
            turns = [pair_of_cells(args, folder, at_once) for _ in range(args.rounds) for at_once in (False, True)]
        one, both = statistics.median(turns[::2]), statistics.median(turns[1::2])
        print(f"| {beside} | {one:.1f} s | {both:.1f} s | {one / both:.2f} x |")


def pair_of_cells(args: argparse.Namespace, folder: Path, at_once: bool) -> float:
    """Seconds for two cells."""
    shared = argparse.Namespace(**vars(args) | {"threads": max(1, args.threads // 2) if at_once else args.threads})
    begun, running = time.monotonic(), []
    for number in (0, 1):
        [(command, env)] = ours(shared, folder, number)
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        if not at_once:
            running[-1].wait()
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"cells ended with {codes}")
    return time.monotonic() - begun


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """A process that never rests."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        cell(Path(sys.argv[2]), int(sys.argv[3]))
        from medstudy.batch.kernel import leave

        leave()
    else:
        main()
