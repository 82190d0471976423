"""Two processes train as one does: the same losses for the same global batch, the same files."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_fit import sft_stage
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOTrainer, SFTTrainer

from medstudy.data.card import DataCard
from medstudy.data.cases import Case
from medstudy.params import ParamsError, RunParams, resolve
from medstudy.runs import Run, Stage
from medstudy.tasks import get_task
from medstudy.training import gates
from medstudy.training.fit import CODE, dpo_config, lora_config, sft_config, train, training_log
from medstudy.training.launch import LaunchError, train_together
from medstudy.training.models import load_model, load_tokenizer
from medstudy.training.preferences import Pair
from medstudy.training.prompts import sft_row

pytestmark = pytest.mark.slow


def both(params: RunParams, arm: str, rows: list, start: Stage | None, sharded: bool = False) -> list[Stage]:
    """The stage trained in this process, and in two."""
    steps = -1 if arm == "sft" else None
    trained = []
    for processes in (1, 2):
        asked = {"processes": processes, "results": f"{params.results}/{arm}{processes}"}
        p = params.model_copy(update=asked | {"sharded": sharded and processes == 2})
        run = Run(p)
        stage = run.stage(arm, CODE, rows=rows)
        if processes == 2:
            train_together(stage, p, rows, start, 200, steps)
        else:
            model = load_model(p, start and start.folder / "adapter", trainable=True)
            given = {"train_dataset": Dataset.from_list(rows), "processing_class": load_tokenizer(p)}
            trainer = (
                SFTTrainer(model, sft_config(p, run, 200), peft_config=lora_config(p), **given)
                if arm == "sft"
                else DPOTrainer(model, args=dpo_config(p, run, 200), **given)
            )
            train(trainer, stage, rows_in=len(rows))
        trained.append(stage)
    return trained


def with_an_output_layer(model: str, folder: Path) -> str:
    """A copy of the model whose output layer is not its embedding, as in most large models."""
    AutoModelForCausalLM.from_pretrained(model, tie_word_embeddings=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("weights", ["whole", "sharded", "sharded, untied"])
@pytest.mark.parametrize("arm", ["sft", "dpo"])
def test_two_processes_train_as_one(
    arm: str, weights: str, params: RunParams, card: DataCard, cases: list[Case], tmp_path: Path
) -> None:
    params = params.model_copy(update={"batch_size": 4, "sft_epochs": 2, "dpo_epochs": 2})
    sharded = weights != "whole"
    if weights == "sharded, untied":
        accumulated = {"batch_size": 2, "gradient_accumulation": 2}
        model = with_an_output_layer(params.model, tmp_path / "untied")
        params = params.model_copy(update={"model": model} | accumulated)
    task = get_task("text_classification", card)
    start = None
    rows = [sft_row(task, case) for case in cases]
    if arm == "dpo":
        start = sft_stage(Run(params.model_copy(update={"results": f"{params.results}/start"})), card, cases)
        pairs = [Pair(c.case_id, "", task.messages(c), c.gold["label"], "perhaps", "gold") for c in cases]
        rows = [pair.row() for pair in pairs]
    one, two = both(params, arm, rows, start, sharded)
    assert two.done and two.facts["steps"] == one.facts["steps"] == 4
    losses = [training_log(stage)["loss"].to_numpy() for stage in (one, two)]
    # what is left is the order of sums; DPO's losses themselves move little
    assert np.abs(losses[1] - losses[0]).max() < 0.05 * np.ptp(losses[0])
    for gate in (gates.tokens, gates.weights):
        assert gate({arm: two.facts}).passed
    if arm == "dpo":
        assert gates.first_loss(two.facts).passed
    weights = [load_file(s.folder / "adapter" / "adapter_model.safetensors") for s in (one, two)]
    before = load_file(start.folder / "adapter" / "adapter_model.safetensors") if start else {}
    second = [name for name in weights[0] if "lora_B" in name]  # zero at the start of SFT
    moved = max(float((weights[0][n] - before.get(n, 0)).abs().max()) for n in second)
    apart = max(float((weights[0][n] - weights[1][n]).abs().max()) for n in second)
    assert apart < 0.1 * moved
    assert torch.load(two.folder / "probe.pt", weights_only=True)["logits"].isfinite().all()


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_a_training_of_two_processes_goes_on_after_a_kill(
    sharded: bool, params: RunParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "often").mkdir()  # every process keeps its state at every step
    (tmp_path / "often" / "sitecustomize.py").write_text(
        "import medstudy.training.fit\nmedstudy.training.fit.CHECKPOINT_MINUTES = 0.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "often"))
    asked = {"processes": 2, "sharded": sharded, "batch_size": 4, "sft_epochs": 30, "sft_learning_rate": 1e-3}
    answers = [{"role": "assistant", "content": word} for word in ("yes", "no", "perhaps") * 4]
    rows = [
        {"prompt": [{"role": "user", "content": "a" * (i + 1)}], "completion": [answer]}
        for i, answer in enumerate(answers)
    ]

    def trained(name: str) -> Stage:
        p = params.model_copy(update=asked | {"results": str(tmp_path / name)})
        stage = Run(p).stage("sft", CODE, rows=rows)
        train_together(stage, p, rows, None, 64)
        return stage

    whole = trained("whole")
    killed = params.model_copy(update=asked | {"results": str(tmp_path / "killed")})
    kernel = in_a_kernel(killed, rows)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("checkpoint-[1-9]*/elapsed.json")):
        assert time.monotonic() < deadline and kernel.poll() is None
        time.sleep(0.02)
    kernel.kill()
    kernel.wait()
    while [p for p in processes("medstudy.training.launch") if str(tmp_path) in p[1]]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    again = trained("killed")
    assert 0 < again.facts["resumed_at_step"] < again.facts["steps"] == whole.facts["steps"] == 90
    assert training_log(again)["loss"].tolist() == training_log(whole)["loss"].tolist()
    saved = [load_file(stage.folder / "adapter" / "adapter_model.safetensors") for stage in (again, whole)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[1])


def test_a_failing_process_is_named(params: RunParams) -> None:
    run = Run(params.model_copy(update={"processes": 2, "batch_size": 4}))
    stage = run.stage("sft", CODE, rows=[])
    with pytest.raises(LaunchError, match=r"sft in 2 processes ended with 1; see .*sft.launch.log"):
        train_together(stage, run.params, [], None, 200)
    assert "Error" in (run.private / "sft.launch.log").read_text()


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ParamsError, match="batch_size = 8 cannot be shared by processes = 3"):
        resolve({"task": "summarization", "data": "synthetic_dialogues", "processes": 3})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "give processes = 2 or more"),
        ({"processes": 2, "quantization": "4bit"}, "takes no 4-bit weights"),
    ],
)
def test_shards_that_cannot_be_are_refused(asked: dict, said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        resolve({"task": "summarization", "data": "synthetic_dialogues", "sharded": True} | asked)


def test_one_kernel_never_spreads_over_several_gpus(params: RunParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 4))
    assert sft_config(params, Run(params), 16)._n_gpu == 1
    assert dpo_config(params, Run(params), 16)._n_gpu == 1


def test_nothing_trains_on_when_the_kernel_is_killed(params: RunParams, tmp_path: Path) -> None:
    asked = params.model_copy(update={"processes": 2, "batch_size": 4, "sft_epochs": 2000, "results": str(tmp_path)})
    rows = [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}] * 8
    kernel = in_a_kernel(asked, rows)
    trains = lambda: [p for p in processes("medstudy.training.launch") if str(tmp_path) in p[1]]  # noqa: E731
    deadline = time.monotonic() + 90
    while len(trains()) < 3 or not list(tmp_path.rglob("status.json")):  # torchrun and two workers
        assert time.monotonic() < deadline and kernel.poll() is None
        time.sleep(0.2)
    kernel.kill()
    kernel.wait()
    deadline = time.monotonic() + 20
    while trains():
        assert time.monotonic() < deadline, trains()
        time.sleep(0.2)


def in_a_kernel(params: RunParams, rows: list) -> subprocess.Popen:
    """A process of its own that has the rows trained, as a notebook does."""
    code = f"""
from medstudy.params import resolve
from medstudy.runs import Run
from medstudy.training.fit import CODE
from medstudy.training.launch import train_together
p = resolve({params.model_dump()!r})
train_together(Run(p).stage("sft", CODE, rows={rows!r}), p, {rows!r}, None, 64)"""
    return subprocess.Popen([sys.executable, "-c", code])


def processes(word: str) -> list[tuple[int, str]]:
    """Number and command line of the processes whose command line holds a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if word in line and " -c " not in line:
                found.append((int(folder.name), line))
    return found
