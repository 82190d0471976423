"""One notebook as a job: parameters, end marker, environment, GPUs, privacy of paths."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mock_study
import nbformat
import pytest
from test_report import finished

from medstudy.batch import run_notebook


def execute(root: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medstudy.batch.run_notebook", f"notebooks/{name}.ipynb", f"out/{name}.ipynb"]
    return subprocess.run([*command, *words], cwd=root, capture_output=True, text=True)


def test_good_notebook_leaves_counts_parameters_and_no_machine_path(tmp_path: Path) -> None:
    cells = (
        "import os, warnings\nwarnings.warn('careful')\nprint(os.getcwd() + '/x')",
        "import sys; print(sys.executable)",
    )
    mock_study.notebook(tmp_path / "notebooks" / "a.ipynb", "word: str = 'no'  # help", *cells)
    done = execute(tmp_path, "a", "--set", "word=yes", "--name", "a job")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "a.ipynb").read_text()
    executed = nbformat.reads(text, as_version=4)
    nbformat.validate(executed)
    assert [cell.execution_count for cell in executed.cells] == [1, 2, 3, 4]
    assert executed.metadata.papermill.parameters == {"word": "yes"}
    assert "./x" in text and "<cell>:2: UserWarning: careful" in text
    for path in (str(tmp_path), sys.prefix, "ipykernel_"):
        assert path not in text


def test_unknown_parameter_of_a_notebook_is_refused(tmp_path: Path) -> None:
    mock_study.notebook(tmp_path / "notebooks" / "a.ipynb", "model = ''", "1 + 1")
    done = execute(tmp_path, "a", "--set", "modell=x")
    assert done.returncode == 1
    assert "a.ipynb has no parameter 'modell'; did you mean 'model'? (allowed: model)" in done.stderr
    assert not (tmp_path / "out" / "a.ipynb").exists()


PARAMETERS = "study = ''\nmodel = ''\ndata = ''\nseed = 0\nn_train = 0\nn_test = 0"


def test_run_that_does_not_say_that_it_ended_has_failed(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path)
    mock_study.notebook(root / "notebooks" / "a.ipynb", PARAMETERS, "1")
    (root / "out").mkdir()
    (root / "out" / "run.json").write_text('{"status": "ok"}')
    done = execute(root, "a", "--run", "params/tiny", "clinical_triage", "mock/a", "0")
    assert done.returncode == 1
    assert "none wrote run.json with status ok" in done.stderr.splitlines()[-1]
    assert json.loads((root / "out" / "run.json").read_text())["status"] == "failed"


def test_parameters_of_a_run_are_those_given_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mock_study.make(tmp_path))
    given = run_notebook.run_parameters("params/tiny", "clinical_triage", "mock/a", "1")
    known = {"n_train": 8, "n_test": 20, "data": "synthetic_messages"}
    assert given == known | {"study": "tiny", "model": "mock/a", "seed": 1}


def test_case_text_is_cached_in_private(tmp_path: Path) -> None:
    private = tmp_path / "private"
    environment = run_notebook.job_environment(tmp_path, private, threads=3, devices=["1"])
    assert environment["HF_DATASETS_CACHE"] == str(private / "cache" / "datasets")
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_gpu_that_torch_does_not_use_is_refused_before_the_notebook_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen once: the driver showed a GPU, torch was a build for CPUs, and the run went on for days."""
    mock_study.notebook(tmp_path / "notebooks" / "a.ipynb", "seed = 0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")  # no machine has so many
    done = execute(tmp_path, "a", "--gpus", "1")
    assert done.returncode == 1 and "the run asks for 1 GPU and torch" in done.stderr
    assert not (tmp_path / "out" / "a.ipynb").exists()


def test_figures_are_svg_for_pages_and_png_for_jupyterlab_and_the_same_each_time(tmp_path: Path) -> None:
    lines = ("import matplotlib.pyplot as plt", "figure, axis = plt.subplots()", "axis.plot([1, 2])")
    draw = "\n".join([*lines, "plt.close()", "figure"])
    mock_study.notebook(tmp_path / "notebooks" / "a.ipynb", "seed = 0", draw)
    seen = []
    for _ in range(2):
        done = execute(tmp_path, "a")
        assert done.returncode == 0, done.stderr
        cells = nbformat.read(tmp_path / "out" / "a.ipynb", as_version=4).cells
        seen += [o.data for cell in cells for o in cell.get("outputs", []) if "data" in o]
    # JupyterLab shows no SVG of a notebook that it did not run itself
    assert seen[0]["image/png"] == seen[1]["image/png"] and all("image/svg+xml" in data for data in seen)
    assert "<dc:date>" not in seen[0]["image/svg+xml"]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\nx = bytearray(2**33)",
            "memory is full: fewer --jobs",
        ),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate 20 MiB')", "the GPU's memory is full"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed from outside, by the system"),
        ("raise ValueError('no such ward')", "ValueError: no such ward\n"),
    ],
)
def test_known_failures_are_named_with_what_helps(tmp_path: Path, cell: str, said: str) -> None:
    mock_study.notebook(tmp_path / "notebooks" / "a.ipynb", "seed = 0", cell)
    done = execute(tmp_path, "a")
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1] + "\n"


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a small disk or a small memory")


@AS_ROOT
@pytest.mark.slow
def test_a_full_disk_is_named_and_the_next_start_works(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path)
    results = root / "results"
    results.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "small", str(results)]).returncode:
        pytest.skip("cannot mount a small disk here")
    words = ["run", "params/tiny", "--jobs", "1", "--", "--until", *mock_study.TASKS]
    try:
        fill = "(folder / 'big').write_bytes(bytes(10**6)) if not Path('room').exists() else None"
        mock_study.task_notebook(root, "text_classification", fill)
        done = mock_study.medstudy(root, *words)
        assert done.returncode == 1
        assert "No space left on device" in done.stdout or "the disk is full" in done.stdout
        (root / "room").touch()
        for big in results.rglob("big"):
            big.unlink()
        again = mock_study.medstudy(root, *words)
        assert again.returncode == 0, again.stdout + again.stderr
    finally:
        subprocess.run(["umount", str(results)], check=True)


def test_an_engines_own_error_does_not_quote_a_private_output(tmp_path: Path) -> None:
    """papermill and nbformat write an output that they cannot keep into their message and their log."""
    root = mock_study.make(tmp_path)
    (root / "secret.yaml").write_text("not a card")  # a source that cannot be read is taken for private
    strange = (
        "from IPython.display import publish_display_data\n"
        "publish_display_data({'text/plain': {'note': 'Grobblestone sleeps badly'}})\nprint('Grobblestone')"
    )
    mock_study.notebook(root / "notebooks" / "a.ipynb", PARAMETERS, strange)
    (root / "params" / "tiny" / "clinical_triage.yaml").write_text("data: secret.yaml\nn_test: 20\n")
    done = execute(root, "a", "--run", "params/tiny", "clinical_triage", "mock/a", "0")
    assert done.returncode == 1 and "FAILED" in done.stderr
    seen = done.stderr.splitlines()[-1]  # all else goes to a log in private/, as the Snakefile has it
    seen += "".join(f.read_text() for f in (root / "out").rglob("*") if f.is_file() and "private" not in f.parts)
    assert "Grobblestone" not in seen


@pytest.mark.parametrize("own", [False, True])
def test_why_private_runs_are_not_pooled_is_told_and_what_a_cell_of_ones_own_raises_is_not(
    tmp_path: Path, own: bool
) -> None:
    """The reader saw that a DataError is withheld, and had to open private/ to learn which runs differ."""
    study, notebook = tmp_path / "results" / "ward", tmp_path / "comparison.ipynb"
    for seed in (0, 1):
        run = finished(study, seed)
        (run / "private" / "source.json").write_text('{"card": "synthetic_uti", "shareable": false}')
        record = json.loads((run / "run.json").read_text())
        record["parameters"]["n_train"] = 5 + seed
        (run / "run.json").write_text(json.dumps(record))
    shutil.copy(mock_study.REPOSITORY / "notebooks" / "comparison.ipynb", notebook)
    if own:
        cell = "from medstudy.evaluation.comparison import UnlikeRuns\nraise UnlikeRuns('seeds differ: Grobblestone')"
        mock_study.notebook(notebook, "study = ''\nresults = ''", cell)
    command = [sys.executable, "-m", "medstudy.batch.run_notebook", notebook, study / "comparison.ipynb"]
    command += ["--set", "study=ward", f"results={tmp_path / 'results'}"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stderr.splitlines()[-1]
    assert ("seeds 0 and 1 differ in n_train = 5 and 6; move one of" in told) is not own, told
    assert ("its message is withheld" in told) is own and "Grobblestone" not in told
    assert "n_train = 5" not in (study / "comparison.ipynb").read_text()
