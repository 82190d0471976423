"""What a run will take: the sizes are the models' own, and what should need more needs more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from medstudy.batch.forecast import Forecast, Shape, Tokens, forecast, processor_rate, read_shape
from medstudy.params import BUILTIN, RunParams, resolve

#: As published with Llama-3-8B: https://huggingface.co/meta-llama/Meta-Llama-3-8B/blob/main/config.json
LLAMA_8B = Shape(128256, 4096, 14336, 32, 4096, 1024, tied=False)
TOKENS, CASES = Tokens(400, 60, 1000), (500, 300)


def run(**asked: object) -> RunParams:
    """A run with these parameters."""
    return resolve({"task": "clinical_reasoning", "data": "synthetic_vignettes", "lora_rank": 16} | asked)


def of(shape: Shape = LLAMA_8B, **asked: object) -> Forecast:
    """Its forecast."""
    return forecast(run(**asked), shape, TOKENS, CASES, rate=1e12, gpu=True)


@pytest.mark.parametrize("model", BUILTIN)
def test_weights_are_counted_as_they_are_saved(model: str) -> None:
    shape = read_shape(model)
    folder = Path(__file__).parents[2] / "medstudy" / "base_models" / model.replace("/", "-")
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    saved = sum(size[0] * size[1] for size in sizes.values() if len(size) == 2)
    assert shape is not None
    assert shape.weights == saved


def test_an_8b_model_has_its_weights_and_adapter() -> None:
    assert LLAMA_8B.weights == pytest.approx(8.03e9, rel=0.001)
    assert LLAMA_8B.adapter(16) == 41_943_040  # PEFT's own count for all linear layers


def test_a_local_folder_is_read_and_a_shape_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    said = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(said | {"num_attention_heads": 2}))
    assert read_shape(str(tmp_path)) == Shape(10, 8, 16, 2, 8, 8, tied=False)
    (tmp_path / "mixture").mkdir()
    (tmp_path / "mixture" / "config.json").write_text(json.dumps({"num_local_experts": 8}))
    assert read_shape(str(tmp_path / "mixture")) is None
    (tmp_path / "other").mkdir()
    assert read_shape(str(tmp_path / "other")) is None


def test_settings_that_save_memory_or_work_are_seen_to() -> None:
    plain = of(dtype="bfloat16")
    assert of(dtype="bfloat16", gradient_checkpointing=True).gigabytes < plain.gigabytes / 2
    assert of(dtype="bfloat16", gradient_checkpointing=True).operations > 1.2 * plain.operations
    assert of(quantization="4bit", gradient_checkpointing=True, batch_size=2, eval_batch_size=8).gigabytes < 24
    assert of(dtype="bfloat16", sft_epochs=16).operations > 1.3 * plain.operations
    assert of(dtype="bfloat16", pair_source="labels").operations < plain.operations


def test_the_processor_has_a_rate() -> None:
    assert 1e8 < processor_rate() < 1e14
