"""GGUF weights as a model: the folder that they become answers as the model that was packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from medstudy.params import RunParams
from medstudy.training.chat import load_chat
from medstudy.training.checkpoint import ModelError, locate, model_fingerprint
from medstudy.training.models import load_model


def test_gguf_is_converted_once_into_a_folder_that_loads(
    params: RunParams, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    from medstudy.training import gguf as module

    monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    folder = shutil.copytree(tiny_model, tmp_path / "packed")
    _pack(gguf, folder)
    params = params.model_copy(update={"model": str(folder)})
    place = Path(locate(params))
    assert place == tmp_path / "models" / "packed.gguf".removesuffix(".gguf")
    first, seen = load_model(params.model_copy(update={"model": str(tiny_model)})), load_model(params)
    ids = torch.arange(5, 25)[None]
    assert torch.allclose(first(input_ids=ids).logits, seen(input_ids=ids).logits, atol=0.02)
    assert load_chat(params).end == load_chat(params.model_copy(update={"model": str(tiny_model)})).end
    key = model_fingerprint(params)
    made = (place / module.MADE_OF).stat().st_mtime_ns
    assert model_fingerprint(params) == key and (place / module.MADE_OF).stat().st_mtime_ns == made
    shutil.copy(folder / "packed.gguf", folder / "other.gguf")
    with pytest.raises(ModelError, match="holds 2 GGUF files: give the path of one"):
        locate(params)


def _pack(gguf: object, folder: Path) -> None:
    """The folder's weights as a GGUF file, in 16 bits, in the place of safetensors."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(folder / "packed.gguf"), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        data = tensor.float()
        if "q_proj" in name or "k_proj" in name:  # this format pairs the halves of a rotary head
            n = heads if "q_proj" in name else groups
            data = data.reshape(n, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "model.safetensors").unlink()
