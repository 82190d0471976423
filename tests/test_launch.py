"""Two processes train as one does: the same losses for the same global batch, the same files."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_training import sft_stage
from trl import DPOTrainer, SFTTrainer

from medstudy import gates
from medstudy.data.card import DataCard
from medstudy.data.cases import Case
from medstudy.launch import LaunchError, train_together
from medstudy.models import load_model, load_tokenizer
from medstudy.params import ParamsError, RunParams, resolve
from medstudy.preferences import Pair
from medstudy.prompts import sft_row
from medstudy.runs import Run, Stage
from medstudy.tasks import get_task
from medstudy.training import CODE, dpo_config, lora_config, sft_config, train, training_log

pytestmark = pytest.mark.slow


def both(params: RunParams, arm: str, rows: list, start: Stage | None) -> list[Stage]:
    """The stage trained in this process, and in two."""
    steps = -1 if arm == "sft" else None
    trained = []
    for processes in (1, 2):
        p = params.model_copy(
            update={"processes": processes, "results": f"{params.results}/{arm}{processes}"}
        )
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


@pytest.mark.parametrize("arm", ["sft", "dpo"])
def test_two_processes_train_as_one(arm: str, params: RunParams, card: DataCard, cases: list[Case]) -> None:
    params = params.model_copy(update={"batch_size": 4, "sft_epochs": 2, "dpo_epochs": 2})
    task = get_task("text_classification", card)
    start = None
    rows = [sft_row(task, case) for case in cases]
    if arm == "dpo":
        start = sft_stage(Run(params.model_copy(update={"results": f"{params.results}/start"})), card, cases)
        pairs = [Pair(c.case_id, "", task.messages(c), c.gold["label"], "perhaps", "gold") for c in cases]
        rows = [pair.row() for pair in pairs]
    one, two = both(params, arm, rows, start)
    assert two.done and two.facts["steps"] == one.facts["steps"] == 4
    assert training_log(two)["loss"].tolist() == pytest.approx(training_log(one)["loss"].tolist(), rel=0.02)
    for gate in (gates.tokens, gates.weights):
        assert gate({arm: two.facts}).passed
    if arm == "dpo":
        assert gates.first_loss(two.facts).passed
    weights = [load_file(s.folder / "adapter" / "adapter_model.safetensors") for s in (one, two)]
    apart = [float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]]
    moved = max(float(w.abs().max()) for w in weights[0].values())
    assert max(apart) < 0.1 * moved
    assert torch.load(two.folder / "probe.pt", weights_only=True)["logits"].isfinite().all()


def test_a_failing_process_is_named(params: RunParams) -> None:
    run = Run(params.model_copy(update={"processes": 2, "batch_size": 4}))
    stage = run.stage("sft", CODE, rows=[])
    with pytest.raises(LaunchError, match=r"sft in 2 processes ended with 1; see .*sft.launch.log"):
        train_together(stage, run.params, [], None, 200)
    assert "Error" in (run.private / "sft.launch.log").read_text()


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ParamsError, match="batch_size = 8 cannot be shared by processes = 3"):
        resolve({"task": "summarization", "data": "synthetic_dialogues", "processes": 3})


def test_one_kernel_never_spreads_over_several_gpus(
    params: RunParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 4))
    assert sft_config(params, Run(params), 16)._n_gpu == 1
    assert dpo_config(params, Run(params), 16)._n_gpu == 1
