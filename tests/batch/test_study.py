"""The batch engine on real Snakemake, with notebooks that take a moment."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mock_study
import nbformat
import pytest
from mock_study import medstudy, record, runs, write

from medstudy.batch import study as batch
from medstudy.batch.engine import INTERRUPTED, _ask_squeue
from medstudy.batch.progress import Progress
from medstudy.params import resolve
from medstudy.studies import load_study

#: The mock results are nothing to report on.
NO_REPORT = ("--", "--until", "comparison")
RESULTS = Path("results", "tiny")
pytestmark = pytest.mark.slow
CARD = """
name: fever
title: Made-up notes
task: text_classification
question: Does the patient have a fever?
labels: {label: [no, yes]}
positive: yes
load: {kind: files, format: csv, files: [{path: Grobblestone-Ferdinand.csv}]}
columns: {text: "{note}", gold: {label: {column: fever}}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that has been run once, in a folder whose name wants quoting."""
    root = mock_study.make(tmp_path_factory.mktemp("a study für uns") / "checkout")
    done = medstudy(root, "run", "params/tiny", "--jobs", "2", "--threads", "1", *NO_REPORT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 notebooks at once, 1 thread each" in done.stdout
    assert "[5/5] comparison ok" in done.stdout
    assert done.stdout.count("text_classification mock/a seed 1 ok") == 1
    return root


def test_first_start_runs_everything(root: Path) -> None:
    assert set(runs(root).values()) == {1} and len(runs(root)) == 4
    assert (root / RESULTS / "seen.txt").read_text() == "4"
    assert (root / RESULTS / "margin.txt").read_text() == "0.05"  # of study.yaml, as a number
    run = record(root, "text_classification", 1)
    assert run["threads"] == "1"
    private = root / RESULTS / "mock-a" / "text_classification" / "seed1" / "private"
    assert Path(str(run["cache"])) == private / "cache"
    assert private.stat().st_mode & 0o777 == 0o700


def test_second_start_does_nothing(root: Path) -> None:
    before = runs(root)
    done = medstudy(root, "run", str(root / "params" / "tiny"), *NO_REPORT, cwd=root.parent)
    assert done.returncode == 0
    assert runs(root) == before


def test_a_dry_run_is_a_line_a_job_that_says_why(root: Path) -> None:
    """It named the fifty files of the package as inputs of every job."""
    before = runs(root)
    done = medstudy(root, "run", "params/tiny", "--", "--dry-run", "--forceall", "--until", "comparison")
    assert done.returncode == 0 and runs(root) == before
    assert done.stdout.count("text_classification mock/a seed 1: Forced execution") == 1
    assert "comparison: Forced execution" in done.stdout and "__init__.py" not in done.stdout
    assert len(done.stdout.splitlines()) < 20


def test_changed_parameters_redo_their_task_only(root: Path) -> None:
    before = runs(root)
    write(root / "params" / "tiny" / "clinical_triage.yaml", data="synthetic_messages", n_test=21)
    assert medstudy(root, "run", "params/tiny", *NO_REPORT).returncode == 0
    changed = {name for name, count in runs(root).items() if count > before[name]}
    assert changed == {"clinical_triage seed0", "clinical_triage seed1"}


def test_only_code_cells_of_a_notebook_redo_its_runs(root: Path) -> None:
    """A blank in a text, outputs that JupyterLab saved and a comment in a parameters file change no result."""
    file = root / "notebooks" / "text_classification.ipynb"
    notebook, before = nbformat.read(file, as_version=4), runs(root)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("A remark."))
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="seen")]
    notebook.cells[2].execution_count = 7
    nbformat.write(notebook, file)
    with (root / "params" / "tiny" / "shared.yaml").open("a") as params:
        params.write("# a remark\n")
    assert medstudy(root, "run", "params/tiny", *NO_REPORT).returncode == 0
    assert runs(root) == before
    notebook.cells[3].source += "\nanswer += 1"
    nbformat.write(notebook, file)
    assert medstudy(root, "run", "params/tiny", *NO_REPORT).returncode == 0
    changed = {name for name, count in runs(root).items() if count > before[name]}
    assert changed == {"text_classification seed0", "text_classification seed1"}


def test_run_without_its_end_marker_is_redone(root: Path) -> None:
    before = runs(root)
    (root / RESULTS / "mock-a" / "text_classification" / "seed0" / "run.json").unlink()
    assert medstudy(root, "run", "params/tiny", "--", "--until", "text_classification").returncode == 0
    changed = {name for name, count in runs(root).items() if count > before[name]}
    assert changed == {"text_classification seed0"}


def test_a_run_made_by_hand_with_other_values_is_said_and_redone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen once: a notebook run by hand replaced a seed of the study, and its comparison failed."""
    monkeypatch.chdir(root)
    params = load_study("params/tiny").run("text_classification", "mock/a", 1)
    made = root / RESULTS / "mock-a" / "text_classification" / "seed1" / "private" / "parameters.json"
    made.write_text(json.dumps(params.model_dump() | {"results": "elsewhere"}))
    before, words = runs(root), ["run", "params/tiny", "--", "--until", "text_classification"]
    assert medstudy(root, *words).returncode == 0 and runs(root) == before
    made.write_text(json.dumps(params.model_dump() | {"dpo_beta": 0.5, "data_root": "ward/Grobblestone"}))
    assert (
        "seed 1   other parameters data_root = 'private', dpo_beta = 0.5"
        in medstudy(root, "status", "params/tiny").stdout
    )
    tried = medstudy(root, *words, "-np")
    assert runs(root) == before and made.with_name("starts.txt").is_file() and record(root, params.task, 1)
    # a dry run names it, and takes nothing away
    assert f"{params.task} mock/a seed 1: " in tried.stdout and (made.parents[1] / "metrics.json").is_file()
    done = medstudy(root, *words)
    said = "text_classification mock/a seed 1: made with data_root = 'private', dpo_beta = 0.5, unlike the study"
    assert said in tried.stderr and said in done.stderr and done.returncode == 0
    assert {name for name, count in runs(root).items() if count > before[name]} == {"text_classification seed1"}
    made.unlink()


def test_failed_gates_are_said_at_the_end(root: Path) -> None:
    gates = root / RESULTS / "mock-a" / "text_classification" / "seed0" / "gates.json"
    told = gates.stat()
    gates.write_text('[{"gate": "adapters", "passed": false}]')
    os.utime(gates, ns=(told.st_atime_ns, told.st_mtime_ns))
    done = medstudy(root, "run", "params/tiny", "--", "--until", "text_classification")
    gates.write_text("{}")
    os.utime(gates, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert done.returncode == 0
    assert "runs with failed gates: 1; see medstudy status results/tiny, and gates.json of each" in done.stderr


@pytest.mark.parametrize(("accounts", "asked"), [("exit 0", []), ("exit 1", ["--slurm-status-command", "squeue"])])
def test_a_slurm_without_accounting_is_asked_by_squeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accounts: str, asked: list[str]
) -> None:
    """As sacct ends where accounting is off; Snakemake would ask it for ever."""
    monkeypatch.chdir(mock_study.make(tmp_path / "checkout"))
    sacct = tmp_path / "sacct"
    sacct.write_text(f"#!/bin/sh\n{accounts}\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _ask_squeue("slurm", []) == asked
    assert _ask_squeue("default", []) == _ask_squeue("slurm", ["--slurm-status-command=sacct"]) == []
    sacct.unlink()
    assert _ask_squeue("slurm", []) == ["--slurm-status-command", "squeue"]


def test_slurms_own_reason_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The words of the plugin for Slurm, when the memory asked for was more than a node has."""
    error = "sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed"
    said = f"SLURM sbatch failed. The error message was '{error}'.\n    sbatch call:\n        sbatch --parsable /x\n"
    told, job = Progress({}), {"rule_name": "comparison", "jobid": 1, "wildcards": {}}
    told.emit(SimpleNamespace(event="job_info", **job))
    told.emit(SimpleNamespace(event="job_error", **job, log=[str(tmp_path / "none.log")], rule_msg=said))
    line = capsys.readouterr().out
    assert f"comparison failed 0 s: SLURM sbatch failed. The error message was '{error.replace(chr(10), ' ')}'." in line
    assert "ended without" not in line and "parsable" not in line and "Log:" not in line
    told.emit(SimpleNamespace(event="job_error", **job, log=[str(tmp_path / "none.log"), "2.log"], rule_msg="it died"))
    assert "it died Log: 2.log" in capsys.readouterr().out


def test_failures_are_kept_and_named_and_the_others_go_on(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path / "checkout")
    mock_study.task_notebook(root, "text_classification", "if seed: raise ValueError('no such ward')")
    mock_study.task_notebook(root, "clinical_triage", "if seed: os.kill(os.getpid(), signal.SIGKILL)")
    done = medstudy(root, "run", "params/tiny", "--threads", "1", *NO_REPORT)
    assert done.returncode == 1
    assert f"`medstudy run params/tiny --threads 1 {' '.join(NO_REPORT)}` redoes only what is missing" in done.stderr
    for task, why in (("text_classification", "cell 4: ValueError: no such ward"), ("clinical_triage", "DeadKernel")):
        [line] = [line for line in done.stdout.splitlines() if f"{task} mock/a seed 1 failed" in line]
        assert why in line
    for task in mock_study.TASKS:
        good, bad = (root / RESULTS / "mock-a" / task / f"seed{seed}" for seed in (0, 1))
        assert (good / "metrics.json").is_file() and record(root, task, 0)["status"] == "ok"
        assert not (bad / "metrics.json").exists() and record(root, task, 1)["status"] == "failed"
        assert "starts.txt" in (bad / "notebook.ipynb").read_text()
        assert (
            (bad / "private" / "notebook.log").read_text().splitlines()[-1].startswith(f"FAILED {task} mock/a seed 1: ")
        )
    assert not (root / RESULTS / "comparison.done").exists()

    mock_study.task_notebook(root, "text_classification")
    again = medstudy(root, "run", "params/tiny", "--", "--until", "text_classification")
    assert again.returncode == 0, again.stdout + again.stderr
    assert record(root, "text_classification", 1)["status"] == "ok"
    assert runs(root)["clinical_triage seed0"] == 1


def test_unknown_parameter_is_refused_before_a_kernel_starts(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path)
    write(root / "params" / "tiny" / "clinical_triage.yaml", data="synthetic_messages", n_tran=3)
    done = medstudy(root, "run", "params/tiny")
    assert done.returncode == 2
    assert "unknown parameter 'n_tran'; did you mean 'n_train'?" in done.stderr
    assert runs(root) == {}


def test_a_study_runs_once_at_a_time(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path)
    (root / RESULTS / "private").mkdir(parents=True)
    with (root / RESULTS / "private" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = medstudy(root, "run", "params/tiny")
    assert done.returncode == batch.BUSY
    assert "running already" in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_start_that_ends_and_the_next_one_finishes(tmp_path: Path, sent: signal.Signals) -> None:
    """Also one from a script in the background, whose shell has it ignore Ctrl-C."""
    root = mock_study.make(tmp_path, seeds=(0,))
    waits = "import time\n(folder / 'pid').write_text(str(os.getpid()))\ntime.sleep(60 if n_test == 20 else 0)"
    mock_study.task_notebook(root, "text_classification", waits)
    words = ["run", "params/tiny", "--", "--until", "text_classification"]
    deaf = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    command = [sys.executable, "-m", "medstudy.batch.cli", *words]
    start = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, preexec_fn=deaf)
    pid = root / RESULTS / "mock-a" / "text_classification" / "seed0" / "pid"
    assert wait_for(lambda: pid.is_file() and pid.read_text() != "")
    assert medstudy(root, "status", "params/tiny").stdout.splitlines()[1].split()[-1] == "running"
    start.send_signal(sent)
    assert start.wait(timeout=30) == (INTERRUPTED if sent == signal.SIGTERM else -sent)
    assert wait_for(lambda: not Path("/proc", pid.read_text()).exists())
    write(root / "params" / "tiny" / "text_classification.yaml", data="synthetic_uti", n_test=19)
    again = medstudy(root, *words)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_terminal_that_closes_does_not_end_a_start_under_nohup(tmp_path: Path) -> None:
    """Its signal was always taken for Ctrl-C."""
    engine = "[sys.executable, '-c', 'import pathlib, time; pathlib.Path(\"up\").touch(); time.sleep(2)']"
    code = f"import sys, pathlib, medstudy.batch.engine as e; sys.exit(e.supervise({engine}, pathlib.Path('log')))"
    for deaf, ends in ((signal.SIG_IGN, 0), (signal.SIG_DFL, INTERRUPTED)):
        nohup = lambda how=deaf: signal.signal(signal.SIGHUP, how)  # noqa: E731
        start = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, preexec_fn=nohup)
        assert wait_for((tmp_path / "up").is_file)
        (tmp_path / "up").unlink()
        start.send_signal(signal.SIGHUP)
        assert start.wait(timeout=30) == ends


def test_a_file_of_pairs_in_ones_home_is_one_of_the_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `~` it was not found, so that another file redid nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {"task": "text_classification", "pair_source": "file", "pair_file": "~/pairs.csv"}
    found = []
    for text in ("case_id,chosen,rejected", "case_id,chosen,rejected,source"):
        (tmp_path / "pairs.csv").write_text(text)
        found.append(batch.keys(resolve(values), "notebooks/text_classification.ipynb"))
    assert found[0] != found[1]


def test_plain_snakemake_does_the_same(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path, seeds=(3,))
    command = [sys.executable, "-m", "snakemake", "--config", "run=params/tiny", "--until", "comparison"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[3/3] comparison ok" in done.stdout
    private = root / RESULTS / "private"
    assert private.stat().st_mode & 0o777 == 0o700 and (private / ".gitignore").read_text() == "*\n"


def test_data_redo_their_task_and_are_named_nowhere(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path, seeds=(0,))
    (root / "Grobblestone-Ferdinand.csv").write_text("note,fever\nwarm,yes\n")
    card = root / "Grobblestone.yaml"
    card.write_text(CARD)
    study = root / "params" / "tiny"
    write(study / "text_classification.yaml", data="Grobblestone.yaml", n_test=20)
    assert medstudy(root, "run", "params/tiny", *NO_REPORT).returncode == 0
    (root / "Grobblestone-Ferdinand.csv").write_text("note,fever\nwarm,yes\ncold,no\n")
    done = medstudy(root, "run", "params/tiny", *NO_REPORT)
    assert done.returncode == 0
    assert runs(root) == {"clinical_triage seed0": 1, "text_classification seed0": 2}
    told = [done.stdout + done.stderr]
    open_to_all = [p for p in (*root.glob(".snakemake/**/*"), *root.glob("results/**/*")) if p.is_file()]
    told += [str(p) + p.read_text(errors="replace") for p in open_to_all if "private" not in p.parts]
    # an executed notebook names its data card, by which a reader finds it
    assert not [text[:80] for text in told if "Ferdinand" in text]


def test_a_gpu_that_is_not_there_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = mock_study.make(tmp_path)
    write(root / "params" / "tiny" / "study.yaml", models=["m"], seeds=[0], tasks={"clinical_triage": {"gpu": 1}})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = medstudy(root, "run", "params/tiny")
    assert done.returncode == 2
    assert "asks for gpu: 1 a run and this machine shows 0; on a cluster: --profile slurm" in done.stderr


def wait_for(condition: object, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_two_studies_at_once_with_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    root, home = mock_study.make(tmp_path / "checkout", seeds=(0,)), tmp_path / "home"
    shutil.copytree(root / "params" / "tiny", root / "params" / "other")
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=4k", "home", str(home)]).returncode:
        pytest.skip("cannot mount a home here")
    command = [sys.executable, "-m", "medstudy.batch.cli", "run", "--jobs", "1"]
    where = {"cwd": root, "env": os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}}
    try:
        starts = [subprocess.Popen([*command, f"params/{study}", *NO_REPORT], **where) for study in ("tiny", "other")]
        assert [start.wait(timeout=240) for start in starts] == [0, 0]
    finally:
        subprocess.run(["umount", str(home)], check=True)
    assert len(list((root / "results").glob("*/*/*/*/run.json"))) == 4


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed")
def test_what_is_not_installed_is_said_before_anything_starts(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path)
    write(root / "params" / "tiny" / "shared.yaml", n_train=8, quantization="4bit")
    done = medstudy(root, "run", "params/tiny")
    assert done.returncode == 2 and "needs bitsandbytes, which is not installed" in done.stderr
    assert not (root / RESULTS).exists()
