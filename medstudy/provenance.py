"""What a run was computed with: code, libraries, machine."""

import importlib.metadata
import platform
import resource
import subprocess
import sys
from typing import Any

from medstudy.files import LIBRARIES
from medstudy.params import project_root


def provenance() -> dict[str, Any]:
    """Code, library versions, device and peak memory of this process."""
    import torch

    if torch.cuda.is_available():
        peak = round(torch.cuda.max_memory_allocated() / 1024**2)
        device = {"device": torch.cuda.get_device_name(), "gpu_peak_memory_mb": peak}
    else:
        device = {"device": "cpu", "threads": torch.get_num_threads()}
    status = _git("status", "--porcelain", "-uno")
    units_per_mb = 1024**2 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return {
        "medstudy": importlib.metadata.version("medstudy"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in (*LIBRARIES, "datasets", "scipy", "papermill")},
        **device,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_mb),
    }


def _git(*command: str) -> str | None:
    """What git says of the project; None without git or outside a repository."""
    try:
        done = subprocess.run(["git", *command], cwd=project_root(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
