"""What a run will take: weights are counted as they are, and what should need more needs more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig

from medstudy.batch.forecast import Work, gigabytes, model_without_weights, seconds
from medstudy.params import resolve

WORK = Work(400, 60, 1000, 500, 500, 300)


def test_an_8b_model_and_the_settings_that_save_memory_or_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shape as published: https://huggingface.co/meta-llama/Meta-Llama-3-8B/blob/main/config.json"""
    sizes = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    LlamaConfig(**sizes, num_attention_heads=32, num_key_value_heads=8).save_pretrained(tmp_path)
    model = model_without_weights(str(tmp_path))
    assert model.num_parameters() == pytest.approx(8.03e9, rel=0.001)

    def of(**asked: object) -> tuple[float, float]:
        given = {
            "task": "clinical_reasoning",
            "data": "synthetic_vignettes",
            "lora_rank": 16,
            "dtype": "bfloat16",
            "dpo_epochs": 1,
        }
        run = resolve(given | asked)
        return gigabytes(run, model, WORK, gpu=True), seconds(run, model, WORK, 1e14)

    plain, checkpointing = of(), of(gradient_checkpointing=True)
    # 41,943,040 is PEFT's own count of an adapter of rank 16
    assert of(lora_rank=32)[0] - plain[0] == pytest.approx(41_943_040 * 20 / 1e9)
    assert checkpointing[0] < plain[0] / 2 and checkpointing[1] > 1.2 * plain[1]
    small = {"quantization": "4bit", "gradient_checkpointing": True, "batch_size": 2, "eval_batch_size": 8}
    assert of(**small)[0] < 24
    short, run = (
        replace(WORK, longest=200),
        resolve({"task": "clinical_reasoning", "batch_size": 2, "eval_batch_size": 1}),
    )
    eager = gigabytes(run, model, short, gpu=False)  # 2 rows, 32 heads, 32 layers, 200 x 200 pairs of tokens
    monkeypatch.setattr("medstudy.batch.forecast.EAGER_GB", 0)
    assert eager - gigabytes(run, model, short, gpu=False) == pytest.approx(10 * 2 * 32 * 32 * 200**2 / 1e9)
    assert of(sft_epochs=16)[1] > 1.3 * plain[1]
    assert of(pair_source="labels")[1] < plain[1]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((OSError, ValueError)):
        model_without_weights(str(tmp_path))
