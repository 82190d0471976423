"""From a study to notebook jobs: starts Snakemake, which orders and resumes them, and says how it goes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import medstudy
from medstudy.batch.forkserver import ForkServer, fork_server
from medstudy.batch.machine import cores, die_with_parent, is_locked, memory_gb, try_lock, visible_gpus
from medstudy.batch.run_notebook import finished, lock_of
from medstudy.params import RunParams, StudyParams, load_study, refuse_missing
from medstudy.runs import project_root, run_folder

#: Exit code when the study is running already: sysexits' "try again later".
BUSY = 75
INTERRUPTED = 130
#: Memory in GB that one job on a CPU may need; bounds how many run at once.
JOB_GB = 3
#: Threads of a job on a cluster, where nobody else needs the rest of what it was given.
CLUSTER_THREADS = 4


class BatchError(RuntimeError):
    """A study cannot be started; the message says why and what to do."""


def enter(folder: str | Path) -> Path:
    """Go to the root of the checkout that ``folder`` belongs to; return the study's params folder from there.

    Args:
        folder: ``params/<study>``, or ``results/<study>``, which means the same study.
    """
    folder = Path(folder).resolve()
    packaged = Path(medstudy.__file__).resolve().parents[1]
    root = next((p for p in (project_root(folder), packaged) if (p / "Snakefile").is_file()), None)
    if root is None:
        raise BatchError(f"no Snakefile above {folder}: install medstudy with `pip install -e .` in its checkout")
    os.chdir(root)
    own = root / "params" / folder.name
    if (folder / "study.yaml").is_file() and (own / "study.yaml").is_file() and not own.samefile(folder):
        raise BatchError(f"{folder} and {own} would share results/{folder.name}: give one another name")
    if not (folder / "study.yaml").is_file() and (root / "params" / folder.name / "study.yaml").is_file():
        folder = root / "params" / folder.name
    return folder.relative_to(root) if folder.is_relative_to(root) else folder


def enter_results(folder: str | Path) -> Path:
    """As `enter`, but return the results folder, which needs no params folder beside it."""
    entered = enter(folder)
    executed = (entered / "comparison.ipynb").is_file() and not (entered / "study.yaml").is_file()
    return entered if executed else results_of(load_study(entered))


def results_of(study: StudyParams) -> Path:
    """Results folder of the study, relative to the root if it lies there."""
    folders = {Path(run.results, study.name) for run in study.runs()}
    if len(folders) > 1:
        raise BatchError(f"{study.folder}: `results` differs between tasks; set it in shared.yaml only")
    return folders.pop()


def run(
    folder: Path,
    jobs: int | None = None,
    threads: int | None = None,
    only: Sequence[str] = (),
    profile: str = "default",
    extra: Sequence[str] = (),
) -> int:
    """Execute what is missing or out of date of a study; returns the exit code, 0 if all is well.

    Raises:
        BatchError, ParamsError: found before any notebook starts.
    """
    study = load_study(folder)
    results = results_of(study)
    for task in only:
        if task not in study.tasks:
            raise BatchError(f"--only {task}: not a task of {study.name} (allowed: {', '.join(study.tasks)})")
    if profile == "default":
        jobs, threads, gpus = _shares(study, jobs, threads)
        # Snakemake grants `cores` in all, and each job asks for `threads` of them
        limits = ["--cores", str(jobs * threads), "--resources", f"gpu={gpus}"]
    else:
        limits = ["--jobs", str(jobs)] if jobs else []
    for params in study.runs():
        refuse_missing(params)
    targets = ["--until", *only] if only else []
    command = [*_snakemake(folder, profile, threads or CLUSTER_THREADS), *limits, *targets, *extra]
    results.mkdir(parents=True, exist_ok=True)
    with (results / ".lock").open("w") as lock:
        if not try_lock(lock):
            print(f"{study.name} is running already; see: medstudy status {results}", file=sys.stderr)
            return BUSY
        for params in study.runs():
            if not finished(run_folder(params) / "run.json"):
                # metrics without an end marker, however they came about, are not to be taken for a result
                (run_folder(params) / "metrics.json").unlink(missing_ok=True)
        # on a cluster jobs run elsewhere
        with fork_server(threads) if threads and profile == "default" else nullcontext() as server:
            code = _supervise(command, results, server)
    _print_end(code, folder, results)
    return code


def plan(folder: Path) -> dict[str, int]:
    """Jobs that `run` would start now, counted by rule; starts nothing."""
    command = [*_snakemake(folder, "default", 1), "--dry-run"]
    asked = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if asked.returncode:
        raise BatchError(f"Snakemake cannot plan {folder}:\n{(asked.stdout + asked.stderr).strip()}")
    return planned(asked.stdout + asked.stderr)


def planned(log: str) -> dict[str, int]:
    """Snakemake's table of job counts, without its target and total."""
    table = re.search(r"^Job stats:\njob +count\n[- ]+\n((?:\S+ +\d+\n)+)", log, re.MULTILINE)
    rows = (line.split() for line in table[1].splitlines()) if table else ()
    return {rule: int(count) for rule, count in rows if rule not in {"all", "total"}}


def changed_inputs(log: str) -> list[str]:
    """Files because of whose change jobs were run again, results of other jobs left out."""
    listed = re.findall(r"^ *reason: .*?Updated input files: ([^;\n]*)", log, re.MULTILINE)
    files = {name.strip() for line in listed for name in line.split(", ")}
    return sorted(name for name in files if "results/" not in name)


def statuses(study: StudyParams) -> Iterator[tuple[RunParams, str, str]]:
    """Every run, with ok, running, failed, stopped or not started, and its stage or message."""
    for params in study.runs():
        folder = run_folder(params)
        record, progress = _read(folder / "run.json"), _read(folder / "status.json")
        stage = _where(progress)
        if is_locked(lock_of(folder / "notebook.ipynb")):
            yield params, "running", stage
        elif record:
            yield params, str(record["status"]), str(record.get("message", ""))
        else:
            yield params, "stopped" if progress else "not started", stage


def _where(progress: dict[str, Any]) -> str:
    """Stage and, in a training, step, loss and time left."""
    stage = str(progress.get("stage", ""))
    if "step" not in progress:
        return stage
    left = f", {progress['seconds_left']} s left" if "seconds_left" in progress else ""
    return f"{stage} {progress['step']}/{progress['steps']}, loss {progress['loss']:.3f}{left}"


def failures(results: Path) -> list[str]:
    """One line for each job of the last start that failed, or that ended without saying how."""
    last = {event["name"]: event for event in _events(results / "engine.jsonl")}
    bad = (event for event in last.values() if event["state"] != "ok")
    unsaid = "ended without saying why (killed?); see its log"
    return [f"failed: {event['name']}: {event.get('message', unsaid)}" for event in bad]


def _snakemake(folder: Path, profile: str, threads: int) -> list[str]:
    """The command up to its options; the lock is ours, as Snakemake's outlives a SIGKILL."""
    if not Path("profiles", profile).is_dir():
        known = ", ".join(sorted(p.name for p in Path("profiles").iterdir()))
        raise BatchError(f"no profile '{profile}' (allowed: {known})")
    program = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--nolock"]
    config = ["--config", f"run={folder}", f"threads={threads}"]
    return [*program, "--workflow-profile", f"profiles/{profile}", *config]


def _shares(study: StudyParams, jobs: int | None, threads: int | None) -> tuple[int, int, int]:
    """Jobs at once, threads of each (so that no core is used twice, which is many times slower), and GPUs."""
    gpus, wanted = len(visible_gpus()), max(int(r.get("gpu", 0)) for r in study.tasks.values())
    if wanted > gpus:
        where = f"{study.folder}/study.yaml"
        raise BatchError(f"{where} asks for gpu: {wanted} a run and this machine shows {gpus}")
    jobs = jobs or max(1, gpus // wanted if wanted else min(cores(), memory_gb() // JOB_GB))
    threads = threads or max(1, cores() // jobs)
    print(f"{study.name}: {jobs} notebooks at once, {threads} thread{'s' * (threads > 1)} each", flush=True)
    without = [task for task, resources in study.tasks.items() if not resources.get("gpu")]
    if gpus and without:
        print(
            f"note: this machine shows {gpus} GPU, which {', '.join(without)} will not use: "
            f"say {{gpu: 1}} beside the task in {study.folder}/study.yaml",
            flush=True,
        )
    return jobs, threads, gpus


def _environment() -> dict[str, str]:
    """Snakemake keeps a cache in the user's home; where that cannot be written, in the checkout."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    if os.access(there, os.W_OK):
        return dict(os.environ)
    return os.environ | {"XDG_CACHE_HOME": str(Path(".snakemake", "cache").absolute())}


def _supervise(command: list[str], results: Path, server: ForkServer | None) -> int:
    """Run Snakemake with its chatter in engine.log, and print a line for every notebook that ends."""
    journal, log = results / "engine.jsonl", results / "engine.log"
    journal.write_text("", encoding="utf-8")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # as Ctrl-C, so that the engine can cancel what it has started
        signal.signal(number, signal.default_int_handler)
    with log.open("w") as chatter:
        # a session of its own, so that one signal reaches the jobs too; and no jobs without us
        engine = subprocess.Popen(
            command,
            stdout=chatter,
            stderr=chatter,
            env=_environment(),
            start_new_session=True,
            preexec_fn=_engine_begins,
        )
        shown = 0
        try:
            while engine.poll() is None:
                time.sleep(0.3)
                if server:
                    server.attend()
                shown = _show_progress(journal, log, shown)
        except KeyboardInterrupt:
            os.killpg(engine.pid, signal.SIGINT)
            engine.wait()
            return INTERRUPTED
    _show_progress(journal, log, shown)
    return engine.returncode


def _engine_begins() -> None:
    """In the engine's process, before it is Snakemake."""
    die_with_parent()
    # a script's background commands are born deaf to Ctrl-C, by which the engine is told to stop
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _show_progress(journal: Path, log: Path, shown: int) -> int:
    """Print the jobs that ended since ``shown``; returns how many have ended by now."""
    ended = [event for event in _events(journal) if event["state"] != "started"]
    if len(ended) > shown:
        jobs = planned(log.read_text(encoding="utf-8", errors="replace"))
        total = sum(n for rule, n in jobs.items() if rule != "report")
        for number, event in enumerate(ended[shown:], start=shown + 1):
            print(f"[{number}/{total}] {event['name']} {event['state']} {event['seconds']:.0f} s", flush=True)
    return len(ended)


def _print_end(code: int, folder: Path, results: Path) -> None:
    log = (results / "engine.log").read_text(encoding="utf-8", errors="replace")
    if code == INTERRUPTED:
        print("interrupted; what has finished is kept", file=sys.stderr)
    elif code:
        # what broke before or beside the notebooks, only the engine can tell
        print("\n".join(failures(results)) or log[-3000:], file=sys.stderr)
        log_file = results / "engine.log"
        print(f"`medstudy run {folder}` redoes only what is missing; log: {log_file}", file=sys.stderr)
    elif "dry-run" in log:
        print(log)
    elif not planned(log):
        print("nothing to do: every run is finished and up to date")
    if changed := changed_inputs(log):
        print(f"run again because of what changed: {', '.join(changed)}")
    if not code and (report := results / "report" / "index.html").is_file():
        print(f"report: {report}")


def _events(journal: Path) -> list[dict[str, Any]]:
    # not splitlines, which also cuts at signs that may stand in a message
    lines = journal.read_text(encoding="utf-8").split("\n") if journal.is_file() else []
    # a line without its end is still being written
    return [json.loads(line) for line in lines[:-1]]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
