"""What is wrong with a model's files is named with the remedy, before hours of work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from medstudy.params import RunParams
from medstudy.training import checkpoint, models
from medstudy.training.chat import load_chat
from medstudy.training.checkpoint import ModelError, locate, model_fingerprint, reach
from medstudy.training.models import load_model, load_tokenizer, train_in_bf16


def halve(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def point(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4321\n")


def configure(**changed: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))

    return spoil


def move(name: str, to: str = "elsewhere") -> Callable[[Path], None]:
    return lambda folder: (folder / name).rename(folder / to)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (halve, r"model\.safetensors is half-downloaded.*; download it again"),
        (point, r"model\.safetensors is .* a git-lfs pointer.*git lfs pull"),
        (move("model.safetensors"), r"holds a config\.json but no weights \(\*\.safetensors, \*\.bin\): download"),
        (move("config.json"), r"its folder must hold config\.json"),
        (move("tokenizer.json"), r"its folder must hold .*tokenizer\.json"),
        (
            configure(quantization_config={"quant_method": "gptq", "bits": 4}),
            "cannot be loaded; install the package that reads its weights.*GPTQ",
        ),
        (move("config.json", "adapter_config.json"), "is a LoRA adapter, not a model: merge it"),
        (configure(max_position_embeddings="long"), "cannot be loaded.*max_position_embeddings"),
        (configure(num_hidden_layers=3), "its files lack .*layers.2.*, which would be random"),
    ],
    ids=["halved", "git-lfs", "weights", "config", "tokenizer", "GPTQ", "adapter", "length", "layer"],
)
def test_a_spoilt_folder_is_named_with_the_remedy(
    spoil: Callable[[Path], None], words: str, params: RunParams, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "spoilt")
    spoil(folder)
    params = params.model_copy(update={"model": str(folder)})
    with pytest.raises(ModelError, match=words):
        load_tokenizer(params)
        load_model(params)


def test_layers_without_an_adapter_and_gguf_files_are_refused(params: RunParams, tmp_path: Path) -> None:
    class MambaMixer(torch.nn.Linear): ...

    model = torch.nn.Sequential(MambaMixer(2, 2))
    model.base_model = model[0]
    assert "take no LoRA adapter (MambaMixer)" in models._fault(model, set())
    with pytest.raises(ModelError, match="GGUF is not read.*save_pretrained"):
        locate(params.model_copy(update={"model": str(tmp_path / "model.gguf")}))


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_model_is_gated_only_if_the_hub_says_so(status: int) -> None:
    def refuse(source: str) -> None:
        answer = httpx.Response(status, request=httpx.Request("GET", "https://hub"))
        raise OSError(f"{source}: gated community") from HfHubHTTPError("no", response=answer)

    with pytest.raises(ModelError, match="it is gated" if status != 500 else "give a local folder"):
        reach("a/b", refuse, "/data/401/403/model")


def test_a_hub_model_is_pinned_to_the_commit_in_the_cache(
    params: RunParams, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id can move: the commit is in every key, and all is loaded from that commit, also without the hub."""
    cache = tmp_path / "models--someone--tiny"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny_model, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    params, keys = params.model_copy(update={"model": "someone/tiny"}), []
    for commit in ("a" * 40, "b" * 40):
        (cache / "refs" / "main").write_text(commit)
        checkpoint._commit.cache_clear()
        assert checkpoint.revision(params) == commit
        keys.append(model_fingerprint(params))
    assert keys[0] != keys[1]
    (cache / "refs" / "main").write_text("c" * 40)  # moved while a run goes on, which stays with its commit
    assert load_chat(params).context == 512 and load_model(params).num_parameters() > 0
    checkpoint._commit.cache_clear()


def test_a_folder_is_known_by_what_it_holds(params: RunParams, tiny_model: Path, tmp_path: Path) -> None:
    """By times and sizes a model had another revision on each machine, and new weights could have the old one."""
    keys = []
    for name in ("one", "other", "trained on"):
        folder = shutil.copytree(tiny_model, tmp_path / name, copy_function=shutil.copy)
        weights = folder / "model.safetensors"
        if name == "trained on":
            content, before = bytearray(weights.read_bytes()), weights.stat()
            content[-1] ^= 1
            weights.write_bytes(content)
            os.utime(weights, ns=(before.st_atime_ns, (tmp_path / "other" / weights.name).stat().st_mtime_ns))
        keys.append(model_fingerprint(params.model_copy(update={"model": str(folder)})))
    assert keys[0] == keys[1] != keys[2]


def test_dropout_is_off_in_every_arm(params: RunParams, tiny_model: Path, tmp_path: Path) -> None:
    """What the forward pass takes from the config is not reached by a trainer that switches layers off."""
    folder = shutil.copytree(tiny_model, tmp_path / "dropping")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    model = load_model(params.model_copy(update={"model": str(folder)}), trainable=True)
    ids = torch.arange(5, 25)[None]
    assert model.training and torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_cpu_multiplies_bf16_only_where_it_is_asked_for(params: RunParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds differed twice as much where a processor with AMX took it by itself."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "cpu_name": "Intel"}, raising=False)
    asked = {
        dtype: train_in_bf16(params.model_copy(update={"dtype": dtype})) for dtype in ("auto", "float32", "bfloat16")
    }
    assert asked == {"auto": False, "float32": False, "bfloat16": True}
