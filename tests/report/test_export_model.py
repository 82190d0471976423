"""The trained model as a folder of its own answers as the adapter on its base does; private ones are asked about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from medstudy.batch.cli import main
from medstudy.data.card import DataCard
from medstudy.data.cases import Case
from medstudy.params import RunParams
from medstudy.runs import Run, write_json
from medstudy.tasks import get_task
from medstudy.training.arguments import sft_config
from medstudy.training.fit import fit
from medstudy.training.generation import reload_difference
from medstudy.training.prompts import sft_row


@pytest.fixture
def finished(params: RunParams, card: DataCard, cases: list[Case]) -> Run:
    run, task = Run(params), get_task("text_classification", card)
    sft = fit(run, "sft", SFTTrainer, sft_config(params, run), [sft_row(task, case) for case in cases])
    run.keep_source(card, cases)
    write_json(run.private / "parameters.json", params.model_dump())
    write_json(run.folder / "run.json", {"status": "ok", "stages": {"sft": {"key": sft.key, **sft.facts}}})
    return run


def test_the_folder_is_the_trained_model(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "model"
    assert main(["model", str(finished.folder), "dpo", str(target)]) == 2
    assert "trained no arm 'dpo' (allowed: sft)" in capsys.readouterr().err
    assert main(["model", str(finished.folder), "sft", str(target)]) == 0
    assert (target / "model.safetensors").is_file() and not (target / "README.md").exists()
    model = AutoModelForCausalLM.from_pretrained(target)
    assert reload_difference(model, finished.stages["sft"].folder) < 1e-4
    base = AutoModelForCausalLM.from_pretrained(finished.params.model)
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(target).chat_template
    assert main(["model", str(finished.folder), "sft", str(target)]) == 2  # there already


def test_a_private_model_needs_a_word_and_says_what_it_is(finished: Run, tmp_path: Path) -> None:
    source = finished.private / "source.json"
    source.write_text(json.dumps(json.loads(source.read_text()) | {"shareable": False}))
    words = ["model", str(finished.folder), "sft", str(tmp_path / "model")]
    assert main(words) == 2 and not (tmp_path / "model").exists()
    assert main([*words, "--allow-private"]) == 0
    assert "private data: do not publish" in (tmp_path / "model" / "README.md").read_text()
