"""One training of the comparison in `speed.py`, in a process of its own; prints a line of JSON.

    python benchmarks/contestants.py floor sft FOLDER SEED

`medstudy` is the code that the notebooks run, `trl` TRL with its defaults, `floor` a bare PyTorch loop over
the library's model with a LoRA layer of its own: bf16 autocast, rows of similar length together, the output
layer at labelled positions only, the reference computed once. `evaluate` is the judge of all: the loss of a
saved adapter over all rows in fp32 (its path in the place of the seed).
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from peers import BATCH, BETA, RANK, RATES, WARMUP


def main() -> None:
    """Train, or judge what was trained."""
    name, kind, folder, last = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    if name == "evaluate":
        print(json.dumps({"loss": loss(kind, folder, last)}))
    else:
        train = {"medstudy": medstudy_loop, "trl": trl_loop, "floor": floor_loop}[name]
        print(json.dumps({"loop": train(kind, folder, int(last))}))


def read(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of a training as the notebooks make them."""
    return json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))


def prepared(folder: Path, **asked: Any) -> Any:
    """A run of clinical reasoning with everybody's settings."""
    from medstudy.params import resolve
    from medstudy.runs import Run

    told = {"task": "clinical_reasoning", "lora_rank": RANK, "batch_size": BATCH, "dpo_loss": "sigmoid"}
    told |= {"model": str(folder / "model"), "sft_learning_rate": RATES["sft"], "dpo_learning_rate": RATES["dpo"]}
    return Run(resolve(told | {"results": str(folder / f"results-{time.time()}")} | asked))


def medstudy_loop(kind: str, folder: Path, seed: int) -> float:
    """As the notebooks do; for DPO from an adapter that changes nothing yet, so that all start alike."""
    from trl import DPOTrainer, SFTTrainer

    from medstudy.runs import Stage
    from medstudy.training.arguments import dpo_config, lora_config, sft_config
    from medstudy.training.fit import fit

    run, rows = prepared(folder, seed=seed, sft_epochs=1), read(folder, kind)
    if kind == "sft":
        args = sft_config(run.params, run)
        args.bf16 = True  # as everyone here; the package's own default on a CPU is fp32
        stage = fit(run, "sft", SFTTrainer, args, rows, lora_config(run.params))
    else:
        start = Stage(run, "untrained", "nothing")
        shutil.copytree(folder / "untrained", start.folder / "adapter")
        start.finish()
        args = dpo_config(run.params, run)
        args.bf16 = True
        stage = fit(run, "dpo", DPOTrainer, args, rows, start)
    shutil.copytree(stage.folder / "adapter", folder / f"medstudy-{kind}")
    return stage.facts["train_seconds"]


def trl_loop(kind: str, folder: Path, seed: int) -> float:
    """TRL with its defaults: bf16 autocast and activation checkpointing."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    out = folder / f"trl-{kind}"
    config, trainer_type = (SFTConfig, SFTTrainer) if kind == "sft" else (DPOConfig, DPOTrainer)
    args = config(
        output_dir=str(out),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=RATES[kind],
        lr_scheduler_type="linear",
        warmup_steps=WARMUP,
        seed=seed,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    trainer = trainer_type(
        str(folder / "model"),
        args=args,
        train_dataset=Dataset.from_list(read(folder, kind)),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    seconds = trainer.train().metrics["train_runtime"]
    trainer.save_model(str(out))
    return seconds


def floor_loop(kind: str, folder: Path, seed: int) -> float:
    """What this model costs on this processor when nothing but the training is done."""
    import torch

    torch.manual_seed(seed)
    model, tokenizer, layers = floor_model(folder)
    trained = [p for p in model.parameters() if p.requires_grad]
    data = [encode(tokenizer, row) for row in read(folder, kind)]
    begun = time.monotonic()
    batches = bucketed([max(map(len, (ids for ids, _ in turns))) for turns in data], seed)
    with torch.autocast("cpu", torch.bfloat16):  # the LoRA adds nothing yet
        reference = log_p_of_all(model, data)[0] if kind == "dpo" else None
    optimizer = torch.optim.AdamW(trained, lr=RATES[kind], weight_decay=0.0, fused=True)
    warm = math.ceil(WARMUP * len(batches))
    for step, batch in enumerate(batches):
        share = min((step + 1) / warm, (len(batches) - step) / (len(batches) - warm))
        optimizer.param_groups[0]["lr"] = RATES[kind] * min(1.0, share)
        turns = [data[i][side] for side in range(len(data[0])) for i in batch]
        with torch.autocast("cpu", torch.bfloat16):
            sums, counts = log_p(model, turns)
        if reference is None:
            loss = -sums.sum() / counts.sum()
        else:
            chosen, rejected = (sums - reference[:, batch].flatten()).chunk(2)
            loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.monotonic() - begun
    save_floor(layers, folder, folder / f"floor-{kind}")
    return seconds


def floor_model(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The library's model with a plain LoRA layer in the place of every linear one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class Lora(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.a = torch.nn.Parameter(torch.empty(RANK, base.in_features))
            self.b = torch.nn.Parameter(torch.zeros(base.out_features, RANK))
            torch.nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

        def forward(self, x: Any) -> Any:
            linear = torch.nn.functional.linear
            return self.base(x) + 2.0 * linear(linear(x, self.a), self.b)

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager")
    model.requires_grad_(False)
    layers = {}
    for name, linear in list(model.model.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            parent, _, last = name.rpartition(".")
            layers[f"model.{name}"] = Lora(linear)
            setattr(model.model.get_submodule(parent), last, layers[f"model.{name}"])
    return model, tokenizer, layers


def log_p(model: Any, turns: list[tuple[list[int], int]]) -> tuple[Any, Any]:
    """Sum of the log-probabilities of each answer's tokens, and how many they are."""
    import torch

    width = max(len(ids) for ids, _ in turns)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in turns])
    places = torch.arange(width)
    lengths, prompts = (torch.tensor(v)[:, None] for v in ([len(i) for i, _ in turns], [p for _, p in turns]))
    hidden = model.model(input_ids=ids, attention_mask=(places < lengths).long(), use_cache=False).last_hidden_state
    labelled = ((places >= prompts) & (places < lengths))[:, 1:]
    logits = model.lm_head(hidden[:, :-1][labelled]).float()
    found = -torch.nn.functional.cross_entropy(logits, ids[:, 1:][labelled], reduction="none")
    rows = labelled.nonzero()[:, 0]
    counts = labelled.sum(1).float()
    return torch.zeros(len(turns)).index_add(0, rows, found), counts


def log_p_of_all(model: Any, data: list[Any]) -> tuple[Any, Any]:
    """`log_p` of all rows, (answers of a row, rows), without gradients."""
    import torch

    sums, counts = torch.empty(2, len(data[0]), len(data))
    order = sorted(range(len(data)), key=lambda i: len(data[i][0][0]))
    with torch.no_grad():
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            for side in range(len(data[0])):
                sums[side, batch], counts[side, batch] = log_p(model, [data[i][side] for i in batch])
    return sums, counts


def save_floor(layers: dict[str, Any], folder: Path, target: Path) -> None:
    """As an adapter that PEFT reads."""
    from safetensors.torch import save_file

    weights = {f"base_model.model.{n}.lora_A.weight": layer.a.detach() for n, layer in layers.items()}
    weights |= {f"base_model.model.{n}.lora_B.weight": layer.b.detach() for n, layer in layers.items()}
    target.mkdir(exist_ok=True)
    save_file(weights, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_text((folder / "untrained" / "adapter_config.json").read_text())


def encode(tokenizer: Any, row: dict[str, Any]) -> list[tuple[list[int], int]]:
    """Token ids of prompt and answer, and the tokens of the prompt, for each answer of a row."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False)
    sides = [row["completion"]] if "completion" in row else [row["chosen"], row["rejected"]]
    whole = [tokenizer.apply_chat_template([*row["prompt"], *s], tokenize=True, return_dict=False) for s in sides]
    return [(ids, len(prompt)) for ids in whole]


def bucketed(lengths: list[int], seed: int) -> list[list[int]]:
    """Batches of rows of similar length, in random order."""
    rng = random.Random(seed)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], rng.random()))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    rng.shuffle(batches)
    return batches


def loss(kind: str, folder: Path, adapter: str) -> float:
    """That of an adapter in ``folder`` over all rows in fp32 (SFT: a token; DPO: sigmoid)."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / adapter).eval()
    data = [encode(tokenizer, row) for row in read(folder, kind)]
    policy, counts = log_p_of_all(model.base_model.model, data)
    if kind == "sft":
        return float(-policy.sum() / counts.sum())
    with model.disable_adapter():
        gained = policy - log_p_of_all(model.base_model.model, data)[0]
    margin = gained[0] - gained[1]
    return float(-torch.nn.functional.logsigmoid(BETA * margin).mean())


if __name__ == "__main__":
    main()
