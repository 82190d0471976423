"""The machine that jobs share: cores, GPUs, locks; and how a job is told that runs, or has ended."""

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from medstudy.files import read_json, slug


def die_with_parent() -> None:
    """Have Linux kill this process when its parent dies, so that no job is orphaned."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names of the GPUs that a job may be given; asks the driver, as torch is slow to import."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() not in {"", "-1"}]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(i) for i in range(len(re.findall(r"^GPU ", listed, re.MULTILINE)))]


@contextlib.contextmanager
def take_gpus(count: int) -> Iterator[list[str]]:
    """Take ``count`` of the visible GPUs that no other job here has taken, waiting for them if need be."""
    names = visible_gpus()
    if count == len(names):  # the caller, for example Slurm, has chosen already
        yield names
        return
    while True:
        with contextlib.ExitStack() as held:
            free = (name for name in names if try_lock(held.enter_context(_gpu_lock(name))))
            taken = list(islice(free, count))
            if len(taken) == count:
                yield taken
                return
        time.sleep(1)


def _gpu_lock(name: str) -> IO[str]:
    """A file that all users of the machine lock; one who did not make it can only read it, which is enough."""
    path = Path(tempfile.gettempdir(), f"medstudy-gpu-{slug(name)}.lock")
    if not path.exists():
        path.touch(0o644)
    return path.open()


def try_lock(file: IO[str]) -> bool:
    """Take the lock of an open file, unless somebody has it; the system frees it when its holder ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of ``path``."""
    if not path.is_file():
        return False
    with path.open() as file:
        return not try_lock(file)


def lock_of(output: Path) -> Path:
    """The file that is locked for as long as ``output`` is being executed."""
    return output.with_name(f".{output.name}.lock")


def finished(marker: Path) -> bool:
    """Whether an end marker is there and says ok."""
    return read_json(marker).get("status") == "ok"
