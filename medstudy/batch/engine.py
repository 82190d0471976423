"""Snakemake as a process of ours: its options for this machine or a cluster, and how it ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from medstudy.batch.machine import cores, die_with_parent, visible_gpus
from medstudy.params import read_yaml
from medstudy.studies import StudyParams

INTERRUPTED = 130
#: Memory in GB that one job on a CPU may need; bounds how many run at once.
JOB_GB = 3
#: Threads of a job on a cluster, where nobody else needs the rest of what it was given.
CLUSTER_THREADS = 4


class BatchError(RuntimeError):
    """A study cannot be started; the message says why and what to do."""


def is_dry(extra: Sequence[str]) -> bool:
    """Whether Snakemake is only to say what it would do."""
    return any(re.fullmatch(r"--dry.*|-\w*n\w*", word) for word in extra)


def command(study: StudyParams, jobs: int | None, threads: int | None, profile: str, extra: Sequence[str]) -> list[str]:
    """Snakemake's command line for a study; ``extra`` goes on to it."""
    if not Path("profiles", profile).is_dir():
        known = ", ".join(sorted(p.name for p in Path("profiles").iterdir()))
        raise BatchError(f"no profile '{profile}' (allowed: {known})")
    # the lock is ours, as Snakemake's outlives a SIGKILL
    words = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--nolock"]
    words += ["--workflow-profile", f"profiles/{profile}"]
    if profile == "default":
        jobs, threads, gpus = _shares(study, jobs, threads)
        # Snakemake grants `cores` in all, and each job asks for `threads` of them
        words += ["--cores", str(jobs * threads), "--resources", f"gpu={gpus}"]
    else:
        threads = threads or CLUSTER_THREADS
        _refuse_wide(threads)
        words += (["--jobs", str(jobs)] if jobs else []) + _ask_squeue(profile, extra)
    dry = is_dry(extra)
    # its own list names every file of the package as an input of every job
    words += ["--quiet", "host", "progress", "rules"] if dry else []
    return [*words, "--config", f"run={study.folder}", f"threads={threads}", f"dry={dry}", *extra]


def wanted_gpus(study: StudyParams) -> int:
    """GPUs that a run of the study asks for at most."""
    return max(int(resources.get("gpu", 0)) for resources in study.tasks.values())


def _shares(study: StudyParams, jobs: int | None, threads: int | None) -> tuple[int, int, int]:
    """Jobs at once, threads of each (so that no core is used twice, which is many times slower), and GPUs."""
    gpus, wanted = len(visible_gpus()), wanted_gpus(study)
    if wanted > gpus:
        asked = f"{study.folder}/study.yaml asks for gpu: {wanted} a run"
        raise BatchError(f"{asked} and this machine shows {gpus}; on a cluster: --profile slurm")
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**3
    jobs = jobs or max(1, gpus // wanted if wanted else min(cores(), memory_gb // JOB_GB))
    threads = threads or max(1, cores() // jobs)
    print(f"{study.name}: {jobs} notebooks at once, {threads} thread{'s' * (threads > 1)} each", flush=True)
    return jobs, threads, gpus


def _refuse_wide(threads: int) -> None:
    """On Slurm a job with more threads than any node has waits for ever, and nobody says so."""
    if shutil.which("sinfo") is None:
        return
    told = subprocess.run(["sinfo", "-h", "-o", "%c"], capture_output=True, text=True).stdout
    if (most := max(map(int, re.findall(r"\d+", told)), default=threads)) < threads:
        raise BatchError(f"--threads {threads}: no node of this cluster has more than {most}; give --threads {most}")


def _ask_squeue(profile: str, extra: Sequence[str]) -> list[str]:
    """Options for a Slurm without accounting: asked by sacct, it would never say that a job has ended."""
    file = Path("profiles", profile, "config.yaml")
    config = read_yaml(file) if file.is_file() else {}
    if config.get("executor") != "slurm" or any("slurm-status-command" in word for word in (*config, *extra)):
        return []
    if shutil.which("sacct") and subprocess.run(["sacct", "-n"], capture_output=True).returncode == 0:
        return []
    return ["--slurm-status-command", "squeue"]


def supervise(command: list[str], log: Path) -> int:
    """Run Snakemake with its chatter in ``log``; its lines of progress are those of `medstudy.batch.progress`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            # as Ctrl-C, so that the engine can cancel what it has started
            signal.signal(number, signal.default_int_handler)
    from huggingface_hub import constants

    # caches stand in the checkout, as a home may not be writable; weights and token stay where they are
    caches = {"XDG_CACHE_HOME": str(Path(".snakemake", "cache").absolute())}
    caches |= {"HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_TOKEN_PATH": constants.HF_TOKEN_PATH}
    # a session of its own, so that one signal reaches the jobs too; and no jobs without us
    own = {"env": os.environ | caches, "start_new_session": True, "preexec_fn": _engine_begins}
    with log.open("w") as chatter, subprocess.Popen(command, stderr=chatter, **own) as engine:
        try:
            return engine.wait()
        except KeyboardInterrupt:
            os.killpg(engine.pid, signal.SIGINT)
            try:
                engine.wait()
            finally:  # also where somebody could not wait; in Slurm's queue it forgets jobs that have not started
                named = re.findall(r"SLURM run ID: (\S+)", log.read_text(encoding="utf-8", errors="replace"))
                if named and shutil.which("scancel"):
                    subprocess.run(["scancel", f"--name={named[-1]}"])
            return INTERRUPTED


def _engine_begins() -> None:
    """In the engine's process, before it is Snakemake."""
    die_with_parent()
    # a script's background commands are born deaf to Ctrl-C, by which the engine is told to stop
    signal.signal(signal.SIGINT, signal.SIG_DFL)
