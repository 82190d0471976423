"""What a run will take: what should need more needs more."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from medstudy.arms import ARMS, TRAINED, Arm
from medstudy.batch import forecast
from medstudy.batch.forecast import gigabytes, seconds
from medstudy.params import RunParams, resolve
from medstudy.training.prompts import Lengths

#: The shape of Meta-Llama-3-8B as published, and its number of weights.
SIZES = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
WEIGHTS = 8_030_261_248
LENGTHS = Lengths([400] * 499 + [940], [60] * 500, 0, 0, 0)
CASES = {"train": 500, "prefer": 500, "validation": 100, "test": 300}


def of(**asked: object) -> tuple[float, float]:
    """Gigabytes and seconds."""
    given = {"task": "clinical_reasoning", "lora_rank": 16, "dtype": "bfloat16", "dpo_epochs": 1}
    run, config = resolve(given | asked), LlamaConfig(**SIZES, num_attention_heads=32, num_key_value_heads=8)
    return gigabytes(run, config, WEIGHTS, LENGTHS, gpu=True), seconds(run, WEIGHTS, LENGTHS, CASES, 1e14)


def test_an_8b_model_and_the_settings_that_save_memory_or_work() -> None:
    plain, checkpointing = of(), of(gradient_checkpointing=True)
    # 41,943,040 is PEFT's own count of an adapter of rank 16
    assert of(lora_rank=32)[0] - plain[0] == pytest.approx(41_943_040 * 20 / 1e9, rel=0.1)
    assert checkpointing[0] < plain[0] / 2 and checkpointing[1] > 1.2 * plain[1]
    assert of(quantization="4bit", gradient_checkpointing=True, batch_size=2, eval_batch_size=8)[0] < 24
    assert of(sft_epochs=16)[1] > 1.3 * plain[1]
    assert of(pair_source="labels")[1] < plain[1]
    # a control's own epochs, and never fewer steps than DPO has
    assert of(sft_more_epochs=9)[1] > 1.3 * plain[1]
    assert of(sft_more_epochs=0.1)[1] == of(sft_more_epochs=0.2)[1]
    tries = {"sft": [{"sft_learning_rate": 1e-4}, {"sft_learning_rate": 1e-3}]}
    assert of(candidates=tries)[1] > 1.3 * plain[1]


@pytest.mark.parametrize("rows", ["train", "prefer", "chosen", "pairs"])
def test_a_new_arm_takes_time(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(), of(few_shot_k=0)
    assert before[0][1] > before[1][1]
    monkeypatch.setitem(ARMS, "untrained", Arm("untrained", "white", "o"))
    answering = of()[1]
    monkeypatch.setitem(ARMS, "new", Arm("new", "white", "o", "sft", "SFTTrainer", rows))
    monkeypatch.setattr(forecast, "TRAINED", (*TRAINED, "new"))
    assert of()[1] - answering > 2 * (answering - before[0][1]) > 0


def test_small_models_are_counted_with_a_digit(params: RunParams) -> None:
    small = params.model_copy(update={"model": "builtin/llama"})
    assert forecast.needs(small, LENGTHS, CASES, 0).startswith("2.2 million weights")
