"""Files as every room writes and reads them: folders of their owner's own, whole files, and keys of what they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from medstudy.params import project_root

LIBRARIES = ("torch", "transformers", "trl", "peft")
#: Trainer arguments that say where and how loudly, not what: they do not change a result.
COSMETIC = frozenset({"output_dir", "logging_dir", "run_name", "disable_tqdm", "log_level", "report_to"})


def from_root(path: str | Path) -> Path:
    """A path as a user gives it: from the working folder, else from the project root."""
    path = Path(path).expanduser()
    return path if path.exists() else project_root() / path


def slug(name: str) -> str:
    """A model name as a folder name: ``builtin/llama`` -> ``builtin-llama``."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can read and that git leaves alone, wherever it lies; return it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    (path / ".gitignore").write_text("*\n", encoding="utf-8")
    return path


def write_whole(path: Path, text: str) -> None:
    """Write whole or not at all, so that a killed run leaves nothing half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def read_json(path: Path) -> Any:
    """What a JSON file holds; an empty mapping where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(as_json(value, sort_keys=True).encode()).hexdigest()[:16]


def as_json(value: Any, sort_keys: bool = False) -> str:
    """JSON of rows, dataclasses, pydantic models, classes and the libraries' config objects."""
    return json.dumps(value, sort_keys=sort_keys, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, type):
        from datasets.fingerprint import Hasher

        # changes with the code of a class, if it stands in the notebook also with that of what it calls there
        return [value.__qualname__, Hasher.hash(value) if value.__module__ == "__main__" else inspect.getsource(value)]
    if isinstance(value, BaseModel):
        return value.model_dump()
    if hasattr(value, "to_dict"):
        return {k: v for k, v in value.to_dict().items() if k not in COSMETIC}
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return sorted(value) if isinstance(value, (set, frozenset)) else str(getattr(value, "value", value))


def code_fingerprint(modules: tuple[str, ...]) -> str:
    """Sources of ``medstudy.<module>`` and the versions of the libraries that train and generate."""
    specs = [importlib.util.find_spec(f"medstudy.{name}") for name in modules]
    sources = [Path(spec.origin).read_text(encoding="utf-8") for spec in specs if spec and spec.origin]
    return fingerprint([sources, {name: importlib.metadata.version(name) for name in LIBRARIES}])
