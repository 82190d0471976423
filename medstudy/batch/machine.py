"""The machine that jobs share: cores, memory, GPUs, locks, and what helps against known failures."""

from __future__ import annotations

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
from pathlib import Path
from typing import IO

#: What is known of a failure by the words of its error, and what helps. Holds nothing of the error itself.
REMEDIES = {
    r"CUDA out of memory|OutOfMemoryError": "the GPU's memory is full: smaller batch_size (and more "
    "gradient_accumulation), smaller eval_batch_size, gradient_checkpointing, or quantization: 4bit",
    r"MemoryError|[Cc]an('|no)t allocate memory": "the machine's memory is full: fewer "
    "--jobs, smaller batch_size or eval_batch_size",
    r"No space left on device|Disk quota exceeded": "the disk is full: make room and start again; what is "
    "finished is kept",
    r"PermissionError|Permission denied|Read-only file system": "a file or folder belongs to somebody else: use a "
    "checkout of your own, or share one by group rights",
    r"ConnectionError|Connection (refused|reset)|Name or service not known|Temporary failure in name "
    r"resolution|Max retries exceeded|Network is unreachable": "a host cannot be reached: check the "
    "network, or use local copies (data_root, a model's folder)",
}


def remedy(text: str) -> str:
    """`; what is wrong: what helps` for an error that is known, else an empty string."""
    return next((f"; {said}" for words, said in REMEDIES.items() if re.search(words, text)), "")


def die_with_parent() -> None:
    """Have Linux kill this process when its parent dies, so that no job is orphaned."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**3


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
    if count == len(names):
        # as many as asked for: the caller, for example Slurm, has chosen already
        yield names
        return
    while True:
        with contextlib.ExitStack() as held:
            taken: list[str] = []
            for name in names:
                if len(taken) < count and try_lock(held.enter_context(_gpu_lock(name))):
                    taken.append(name)
            if len(taken) == count:
                yield taken
                return
        time.sleep(1)


def _gpu_lock(name: str) -> IO[str]:
    """A file that all users of the machine lock; one who did not make it can only read it, which is enough."""
    safe = re.sub(r"\W", "-", name)
    path = Path(tempfile.gettempdir(), f"medstudy-gpu-{safe}.lock")
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
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
