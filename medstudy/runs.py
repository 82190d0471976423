"""A run's folder: finished stages, provenance, and the files that tools outside the package read.

A stage is keyed by the content of what it was made from (rows, trainer arguments, the adapter it
continues, the code and library versions that make it), so a run that is started again redoes exactly
what has changed, also when somebody edited a notebook cell instead of a parameter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from medstudy.batch.machine import release_memory
from medstudy.params import RunParams

if TYPE_CHECKING:
    from medstudy.data.card import DataCard
    from medstudy.data.cases import Case

LIBRARIES = ("torch", "transformers", "trl", "peft")
#: Folder of a stage that survives when the stage is killed and begun again.
CHECKPOINTS = "checkpoints"
#: Trainer arguments that say where and how loudly, not what: they do not change a result.
COSMETIC = frozenset({"output_dir", "logging_dir", "run_name", "disable_tqdm", "log_level", "report_to"})


def project_root(start: Path | None = None) -> Path:
    """The nearest folder upwards that holds ``notebooks`` and ``params``; else the working folder.

    JupyterLab runs a notebook in its own folder, papermill in the caller's: both must find the same results.
    """
    here = (start or Path.cwd()).resolve()
    return next((p for p in (here, *here.parents) if (p / "notebooks").is_dir() and (p / "params").is_dir()), here)


def from_root(path: str | Path) -> Path:
    """A path as a user gives it: from the working folder, else from the project root."""
    path = Path(path).expanduser()
    return path if path.exists() else project_root() / path


def slug(name: str) -> str:
    """A model name as a folder name: ``builtin/llama`` -> ``builtin-llama``."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def results_root(params: RunParams) -> Path:
    """The results folder of all studies; a relative one starts at the project root."""
    return project_root() / params.results


def run_folder(params: RunParams) -> Path:
    """``<results>/<study>/<model-slug>/<task>/seed<k>``."""
    return results_root(params) / params.study / slug(params.model) / params.task / f"seed{params.seed}"


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all, so that a killed run leaves nothing half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of ``value``'s canonical JSON."""
    text = json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_fingerprint(modules: tuple[str, ...]) -> str:
    """Sources of ``medstudy.<module>`` and the versions of the libraries that train and generate."""
    specs = [importlib.util.find_spec(f"medstudy.{name}") for name in modules]
    sources = [Path(spec.origin).read_text(encoding="utf-8") for spec in specs if spec and spec.origin]
    return fingerprint([sources, {name: importlib.metadata.version(name) for name in LIBRARIES}])


def _plain(value: Any) -> Any:
    """JSON-able form of rows, dataclasses, pydantic models and the libraries' config objects."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if hasattr(value, "to_dict"):
        return {k: _plain(v) for k, v in value.to_dict().items() if k not in COSMETIC}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(getattr(value, "value", value))


def _empty(folder: Path, keep: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Stage:
    """One finished or unfinished step of a run, with a private folder of its own.

    Attributes:
        key: what the stage depends on; a stage made from this one takes the key among its inputs.
        done: an earlier start finished it, with the same key.
        facts: what was measured while it ran (seconds, steps, …), for gates, costs and provenance.
    """

    def __init__(self, run: Run, name: str, key: str, begin: bool = True) -> None:
        """``begin=False`` joins a stage that another process has begun, and touches nothing."""
        self.run, self.name, self.key = run, name, key
        self.folder = run.private / "stages" / name
        self._marker, begun = self.folder / "stage.json", self.folder / "begun.txt"
        self.reread()
        if begin and not self.done:
            # of what was begun with the same key, the checkpoints of a training are kept
            same = begun.is_file() and begun.read_text(encoding="utf-8") == key
            _empty(self.folder, keep=[CHECKPOINTS] if same else [])
            begun.write_text(key, encoding="utf-8")
        self._started = time.monotonic()
        self.earlier = 0.0  # seconds of a start that was killed, where it is gone on with
        run.stages[name] = self
        if begin:
            run.status(name, state="reused" if self.done else "running")

    def reread(self) -> None:
        """Look again whether the stage is finished, and with what facts."""
        saved = json.loads(self._marker.read_text(encoding="utf-8")) if self._marker.is_file() else {}
        self.done = saved.get("key") == self.key
        self.facts: dict[str, Any] = saved.get("facts", {}) if self.done else {}

    def finish(self, **facts: Any) -> None:
        """Mark the stage as done; its files must be complete by now."""
        seconds = self.earlier + time.monotonic() - self._started
        self.facts = {"seconds": round(seconds, 2), **facts}
        write_json(self._marker, {"key": self.key, "facts": self.facts})
        self.done = True


class Run:
    """A run's folder. ``private/`` (mode 0700) holds everything that may hold a case's text."""

    def __init__(self, params: RunParams, begin: bool = True) -> None:
        """``begin=False`` joins a run that another process has begun, and touches nothing."""
        self.params = params
        self.folder = run_folder(params)
        self.private = self.folder / "private"
        self.stages: dict[str, Stage] = {}
        self.facts: dict[str, Any] = {}
        self._started = datetime.now(UTC)
        if begin:
            self.private.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.private.chmod(0o700)
            # an old end marker must not vouch for this start
            (self.folder / "run.json").unlink(missing_ok=True)

    def stage(self, name: str, code: tuple[str, ...], **inputs: Any) -> Stage:
        """Open the stage ``name``, made from ``inputs`` by the package modules ``code``."""
        release_memory()  # of the stage before
        return Stage(self, name, fingerprint([inputs, code_fingerprint(code)]))

    def keep_source(self, card: DataCard, cases: list[Case]) -> None:
        """Keep the cases in ``private/``, for the scan before a report, and note what the card says.

        ``texts`` are all texts of a case; ``ids`` its identifiers, where the card names columns for them.
        """
        import pandas as pd

        named = card.columns and (card.columns.case_id, card.columns.group_id)
        rows = [
            {
                "case_id": case.case_id,
                "group_id": case.group_id,
                "texts": [case.text, *case.gold.values(), *_strings(case.details)],
                "ids": [i for i, column in zip((case.case_id, case.group_id), named or (), strict=False) if column],
            }
            for case in cases
        ]
        pd.DataFrame(rows).to_parquet(self.private / "cases.parquet")
        self.facts |= {"shareable": card.shareable, "labels": card.labels, "positive": card.positive}
        said = {"card": card.name, "shareable": card.shareable, "known": card.model_dump_json()}
        write_json(self.private / "source.json", said)

    def status(self, stage: str, **progress: Any) -> None:
        """Where the run is now, for `medstudy status`; replaced at every call."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.folder / "status.json", {"stage": stage, "pid": os.getpid(), "time": now, **progress})

    def save(self, name: str, value: Any) -> None:
        """Write one of the contract's JSON files beside the notebook."""
        write_json(self.folder / f"{name}.json", value)

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Write run.json, the end marker, and return it."""
        self.status("finished", state="ok")
        record = {
            "status": "ok",
            "parameters": self.params.model_dump(),
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": {name: stage.facts.get("seconds") for name, stage in self.stages.items()},
            "stages": {name: {"key": stage.key, **stage.facts} for name, stage in self.stages.items()},
            **provenance(),
            **self.facts,
            **facts,
        }
        self.save("run", record)
        return record


def _strings(value: Any) -> list[str]:
    """Every text inside ``value``."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]


def provenance() -> dict[str, Any]:
    """Code, library versions, device and peak memory of this process."""
    versions = {name: importlib.metadata.version(name) for name in (*LIBRARIES, "datasets", "scipy", "papermill")}
    return {
        "medstudy": importlib.metadata.version("medstudy"),
        **_git(),
        "python": platform.python_version(),
        "versions": versions,
        **_device(),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_UNITS_PER_MB),
    }


#: ru_maxrss counts kilobytes on Linux, bytes on macOS.
_RSS_UNITS_PER_MB = 1024**2 if sys.platform == "darwin" else 1024


def _git() -> dict[str, Any]:
    def ask(*command: str) -> str | None:
        done = subprocess.run(["git", *command], cwd=project_root(), capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    if shutil.which("git") is None:
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": ask("rev-parse", "HEAD"), "git_dirty": bool(ask("status", "--porcelain", "-uno"))}


def _device() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu", "threads": torch.get_num_threads()}
    peak = round(torch.cuda.max_memory_allocated() / 1024**2)
    return {"device": torch.cuda.get_device_name(), "gpu_peak_memory_mb": peak}
