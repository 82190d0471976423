"""GGUF weights as a model: dequantized once into a folder under ``models/`` that loads like any other."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from medstudy.params import project_root
from medstudy.runs import slug, write_json
from medstudy.training.checkpoint import ModelError, reach

#: Written last into a converted folder: what it was made of.
MADE_OF = "converted.json"


def converted(place: Path, name: str = "") -> Path:
    """The folder with the weights of a GGUF file, or of the only one in a folder, in 16 bits and safetensors.

    Raises:
        ModelError: the package `gguf` is missing, there are several files, or this architecture is not known.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = [place] if place.is_file() else sorted(place.glob("*.gguf"))
    if len(files) != 1:
        raise ModelError(f"{place} holds {len(files)} GGUF files: give the path of one")
    [file] = files
    made_of = {"file": file.name, "bytes": file.stat().st_size, "changed": file.stat().st_mtime_ns}
    folder = project_root() / "models" / (name or slug(file.stem))
    marker = folder / MADE_OF
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == made_of:
        return folder
    if find_spec("gguf") is None:
        raise ModelError(f"{file} needs the package gguf: pip install -e '.[gguf]'")
    source, packed = str(file.parent), {"gguf_file": file.name}
    own = (file.parent / "tokenizer.json").is_file()
    tokenizer = reach(str(file), AutoTokenizer.from_pretrained, source, **({} if own else packed))
    model = reach(str(file), AutoModelForCausalLM.from_pretrained, source, dtype=torch.bfloat16, **packed)
    # the weights are whole now; with what unpacked them still at hand they would not be saved
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    write_json(marker, made_of)
    return folder
