"""GGUF weights become a folder that loads as any other model; as they are they are refused with that remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo import gguf as converting
from medstudy.params import RunParams
from medstudy.training.chat import load_chat
from medstudy.training.checkpoint import ModelError
from medstudy.training.models import load_model


def pack(folder: Path) -> Path:
    """The folder's weights as a GGUF file, in 16 bits, in the place of safetensors."""
    gguf = pytest.importorskip("gguf")
    config = json.loads((folder / "config.json").read_text())
    heads, groups, layers = (config[f"num_{name}"] for name in ("attention_heads", "key_value_heads", "hidden_layers"))
    writer = gguf.GGUFWriter(str(folder / "packed.gguf"), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        data = tensor.float()
        if "q_proj" in name or "k_proj" in name:  # this format pairs the halves of a rotary head
            n = heads if "q_proj" in name else groups
            data = data.reshape(n, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data.numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    (folder / "model.safetensors").unlink()
    return folder / "packed.gguf"


def test_gguf_becomes_a_folder_that_loads(
    params: RunParams, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "project_root", lambda: tmp_path)
    file = pack(shutil.copytree(tiny_model, tmp_path / "packed"))
    before, after = (params.model_copy(update={"model": str(m)}) for m in (tiny_model, converting.convert(file)))
    ids = torch.arange(5, 25)[None]
    first, seen = (load_model(p)(input_ids=ids).logits for p in (before, after))
    assert torch.allclose(first, seen, atol=0.02)
    assert load_chat(after).end == load_chat(before).end
    with pytest.raises(ModelError, match=r"is a GGUF file: `python -m demo\.gguf .*packed\.gguf`"):
        load_chat(params.model_copy(update={"model": str(file)}))
