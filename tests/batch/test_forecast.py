"""What a run will take: weights and adapter are counted as they are, and what should need more needs more."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from medstudy.batch.forecast import Shape, Work, gigabytes, read_shape, seconds
from medstudy.params import resolve

WORK = Work(400, 60, 1000, 500, 500, 300)


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    """As published: https://huggingface.co/meta-llama/Meta-Llama-3-8B/blob/main/config.json"""
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    LlamaConfig(**sizes, num_attention_heads=32, num_key_value_heads=8).save_pretrained(folder)
    return read_shape(str(folder))


def of(shape: Shape, **asked: object) -> tuple[float, float]:
    """Gigabytes and seconds on a GPU."""
    run = resolve({"task": "clinical_reasoning", "data": "synthetic_vignettes", "lora_rank": 16} | asked)
    return gigabytes(run, shape, WORK, gpu=True), seconds(run, shape, WORK, 1e14)


def test_an_8b_model_has_its_weights_and_adapter(llama_8b: Shape) -> None:
    assert llama_8b.weights == pytest.approx(8.03e9, rel=0.001)
    assert 16 * llama_8b.ends == 41_943_040  # PEFT's own count for rank 16 on all linear layers


def test_a_folder_without_a_known_config_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((OSError, ValueError)):
        read_shape(str(tmp_path))


def test_settings_that_save_memory_or_work_are_seen_to(llama_8b: Shape) -> None:
    plain = of(llama_8b, dtype="bfloat16")
    checkpointing = of(llama_8b, dtype="bfloat16", gradient_checkpointing=True)
    assert checkpointing[0] < plain[0] / 2 and checkpointing[1] > 1.2 * plain[1]
    small = {"quantization": "4bit", "gradient_checkpointing": True, "batch_size": 2, "eval_batch_size": 8}
    assert of(llama_8b, **small)[0] < 24
    assert of(llama_8b, dtype="bfloat16", sft_epochs=16)[1] > 1.3 * plain[1]
    assert of(llama_8b, dtype="bfloat16", pair_source="labels")[1] < plain[1]
