"""A checkout in miniature: the real Snakefile and profiles, and notebooks that take only a moment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
TASKS = ("text_classification", "clinical_triage")
HEADER = """from pathlib import Path
import json, os, signal
folder = Path("results", study, model.replace("/", "-"), "{task}", f"seed{{seed}}")
folder.mkdir(parents=True, exist_ok=True)
(folder / "private").mkdir(exist_ok=True)
(folder / "private" / "starts.txt").open("a").write("x")"""
RESULTS = """for name in ("metrics", "contrasts", "gates"):
    (folder / f"{name}.json").write_text("{}")
status = {"status": "ok", "threads": os.environ["OMP_NUM_THREADS"], "cache": os.environ["HF_HOME"]}
(folder / "run.json").write_text(json.dumps(status))"""
COMPARISON = """from pathlib import Path
results = Path("results", study)
(results / "seen.txt").write_text(str(len(list(results.glob("*/*/*/run.json")))))
(results / "margin.txt").write_text(repr(margin))"""


def notebook(path: Path, parameters: str, *cells: str) -> None:
    """Write a notebook whose first cell is tagged `parameters`."""
    made = [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
    made[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)


def task_notebook(root: Path, task: str, middle: str = "answer = 42") -> None:
    """Write the notebook of a task; ``middle`` is what it does before it saves its results."""
    parameters = "study = 'tiny'\nmodel = 'mock/a'\nseed = 0\ndata = ''\nn_train = 1\nn_test = 1"
    notebook(root / "notebooks" / f"{task}.ipynb", parameters, HEADER.format(task=task), middle, RESULTS)


def make(root: Path, seeds: tuple[int, ...] = (0, 1)) -> Path:
    """Lay out ``root`` as a checkout with the study ``params/tiny``; returns ``root``."""
    shutil.copytree(REPOSITORY / "profiles", root / "profiles")
    shutil.copy(REPOSITORY / "Snakefile", root)
    study = root / "params" / "tiny"
    study.mkdir(parents=True)
    tasks: dict[str, dict[str, int]] = {task: {} for task in TASKS}
    write(study / "study.yaml", models=["mock/a"], seeds=list(seeds), tasks=tasks, margin=0.05)
    write(study / "shared.yaml", n_train=8)
    write(study / "text_classification.yaml", data="synthetic_uti", n_test=20)
    write(study / "clinical_triage.yaml", data="synthetic_messages", n_test=20)
    for task in TASKS:
        task_notebook(root, task)
    notebook(root / "notebooks" / "comparison.ipynb", "study = 'demo'\nmargin = 0.03", COMPARISON)
    return root


def write(path: Path, **values: object) -> None:
    """Write a YAML file."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def medstudy(root: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line, as a user would."""
    command = [sys.executable, "-m", "medstudy.batch.cli", *words]
    return subprocess.run(command, cwd=cwd or root, capture_output=True, text=True, env=os.environ, timeout=120)


def runs(root: Path) -> dict[str, int]:
    """How many times the notebook of each run has been started."""
    found = (root / "results" / "tiny").glob("*/*/*/private/starts.txt")
    return {f"{p.parts[-4]} {p.parts[-3]}": len(p.read_text()) for p in sorted(found)}


def record(root: Path, task: str, seed: int) -> dict[str, object]:
    """The run.json of a run."""
    path = root / "results" / "tiny" / "mock-a" / task / f"seed{seed}" / "run.json"
    return json.loads(path.read_text(encoding="utf-8"))
