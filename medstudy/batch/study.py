"""From a study to notebook jobs: starts Snakemake, which orders and resumes them, and says how it goes."""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import medstudy
from medstudy.batch import engine
from medstudy.batch.engine import BatchError
from medstudy.batch.machine import finished, is_locked, lock_of, try_lock
from medstudy.files import fingerprint, from_root, private_folder, read_json
from medstudy.params import RunParams, refuse_missing
from medstudy.runs import project_root, run_folder, without_paths
from medstudy.studies import StudyParams, load_study

#: Exit code when the study is running already: sysexits' "try again later".
BUSY = 75
#: State of a finished run whose values are not those of the study.
OTHER = "other parameters"


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
    if (own / "study.yaml").is_file():
        if (folder / "study.yaml").is_file() and not own.samefile(folder):
            raise BatchError(f"{folder} and {own} would share results/{folder.name}: give one another name")
        folder = own
    return folder.relative_to(root) if folder.is_relative_to(root) else folder


def enter_results(folder: str | Path) -> Path:
    """As `enter`, but return the results folder: the given one where it holds runs, whatever study bears its name."""
    given = Path(folder).resolve()
    entered = enter(folder)
    of_results = given.is_dir() and not (given / "study.yaml").is_file()
    if of_results and any(given.glob("*/*/seed*/run.json")):
        return given.relative_to(Path.cwd()) if given.is_relative_to(Path.cwd()) else given
    results = results_of(load_study(entered))
    if of_results and given != results.resolve():
        raise BatchError(f"{given} holds no finished run; the study of that name has its results in {results}")
    return results


def results_of(study: StudyParams) -> Path:
    """Results folder of the study, relative to the root if it lies there."""
    folders = {Path(run.results, study.name) for run in study.runs()}
    if len(folders) > 1:
        raise BatchError(f"{study.folder}: `results` differs between tasks; set it in shared.yaml only")
    return folders.pop()


def code_files() -> list[str]:
    """Files of the package that a notebook may use: all but those that only start notebooks."""
    found = Path(medstudy.__file__).parent.rglob("*.py")
    return sorted(os.path.relpath(path) for path in found if path.parent != Path(__file__).parent)


def keys(run: RunParams | None, notebook: str) -> list[str]:
    """Others as soon as a run's parameters, the code cells of its notebook, or its data are others.

    Text between cells, outputs and comments are not what a run is made of. Data are its card, local data files and its
    file of pairs; their names may name a patient, and Snakemake would keep those of inputs in a folder of its own.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    code = [cell["source"] for cell in code if "parameters" not in cell["metadata"].get("tags", [])]
    found = [f"code cells:{fingerprint(code)}"]
    if run is None:
        return found
    from medstudy.data.card import load_card
    from medstudy.data.tables import source_files  # with pandas, which most commands do not need

    card = load_card(run.data)
    files = [*([from_root(run.pair_file)] if run.pair_file else []), *source_files(card, run.data_root)]
    data = [card, [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]]
    return [*found, f"parameters:{fingerprint(run)}", f"data:{fingerprint(data)}"]


def run(
    folder: Path,
    jobs: int | None = None,
    threads: int | None = None,
    profile: str = "default",
    extra: Sequence[str] = (),
) -> int:
    """Execute what is missing or out of date of a study; returns the exit code, 0 if all is well.

    ``extra`` are options for Snakemake. A BatchError or ParamsError is raised before any notebook starts.
    """
    study = load_study(folder)
    for params in study.runs():
        refuse_missing(params)
    command = engine.command(study, jobs, threads, profile, extra)
    dry = engine.is_dry(extra)
    results = results_of(study)
    private = private_folder(results / "private")
    with (private / ".lock").open("w") as lock:
        if not try_lock(lock):
            print(f"{study.name} is running already; see: medstudy status {results}", file=sys.stderr)
            return BUSY
        hidden = _unmark(study, dry)
        try:
            code = engine.supervise(command, private / "engine.log")
        finally:
            for file in hidden:
                if not (place := file.parents[1] / file.name).exists():  # else a notebook by hand has written it anew
                    file.rename(place)
    if code or not dry:
        _print_end(code, study, results)
    return code


def _unmark(study: StudyParams, dry: bool) -> list[Path]:
    """Take nothing for done that has other values, as a run made by hand may, which is said, or no end marker.

    What a dry run only hides from Snakemake is returned, to be put back.
    """
    hidden = []
    for params, state, values in statuses(study):
        marker = run_folder(params) / "run.json"
        if state == OTHER:
            where = f"{params.task} {params.model} seed {params.seed}"
            print(f"{where}: made with {values}, unlike the study, so it is done again", file=sys.stderr)
        if state != OTHER and finished(marker):
            continue
        metrics = marker.with_name("metrics.json")
        if not dry:
            metrics.unlink(missing_ok=True)
            if state == OTHER:  # why another failed stays to be read
                marker.unlink()
        elif metrics.is_file():
            hidden.append(metrics.rename(private_folder(metrics.parent / "private") / metrics.name))
    return hidden


def statuses(study: StudyParams) -> Iterator[tuple[RunParams, str, str]]:
    """Every run, with ok, running, failed, stopped, other parameters or not started, and its stage or message."""
    for params in study.runs():
        folder = run_folder(params)
        record, progress = read_json(folder / "run.json"), read_json(folder / "status.json")
        stage = str(progress.get("stage", ""))
        if "step" in progress:
            left = f", {progress['seconds_left']} s left" if "seconds_left" in progress else ""
            stage += f" {progress['step']}/{progress['steps']}, loss {progress['loss']:.3f}{left}"
        if is_locked(lock_of(folder / "notebook.ipynb")):
            yield params, "running", stage
        elif record.get("status") == "ok" and (values := _other_values(params, folder)):
            yield params, OTHER, values
        elif record:
            failed = [gate["gate"] for gate in read_json(folder / "gates.json") if not gate["passed"]]
            gates = f"{len(failed)} gate{'s' * (len(failed) > 1)} failed: {', '.join(failed)}" if failed else ""
            yield params, str(record["status"]), str(record.get("message", "")) or gates
        else:
            yield params, "stopped" if progress else "not started", stage


def _other_values(params: RunParams, folder: Path) -> str:
    """What a finished run was made with, by hand or before a change, where the study says otherwise; else empty."""
    made, now = read_json(folder / "private" / "parameters.json"), params.model_dump(mode="json", exclude={"results"})
    shown = without_paths(made)
    return ", ".join(f"{name} = {shown[name]!r}" for name in now if name in made and made[name] != now[name])


def _print_end(code: int, study: StudyParams, results: Path) -> None:
    log = results / "private" / "engine.log"
    if code == engine.INTERRUPTED:
        print("interrupted; what has finished is kept", file=sys.stderr)
    elif code:
        told = log.read_text(encoding="utf-8", errors="replace")
        if "Error in rule" not in told:  # no notebook failed, which a line above would say: the engine did
            print(told[-3000:].strip(), file=sys.stderr)
        again = shlex.join(["medstudy", *sys.argv[1:]])
        print(f"`{again}` redoes only what is missing; log: {log}", file=sys.stderr)
    else:
        if failed := sum(bool(remark) for _, state, remark in statuses(study) if state == "ok"):
            where = f"medstudy status {results}, and gates.json of each"
            print(f"runs with failed gates: {failed}; see {where}", file=sys.stderr)
        if (report := results / "report" / "index.html").is_file():
            print(f"report: {report}")
