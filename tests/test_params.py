"""What is refused before a kernel starts, and what the refusal says."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

from medstudy.params import ParamsError, RunParams, read_yaml, refuse_missing, resolve
from medstudy.studies import load_study
from medstudy.tasks import TASK_TYPES
from medstudy.training.checks import CONTROLS

ROOT = Path(__file__).resolve().parents[1]
GOOD = {"task": "summarization", "data": "synthetic_dialogues"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dpo_bata": 0.2}, "unknown parameter 'dpo_bata'; did you mean 'dpo_beta'"),
        ({"seed": "first"}, "seed = 'first'"),
        ({"n_train": 2.5}, "n_train = 2.5"),
        ({"sft_learning_rate": 0}, "sft_learning_rate = 0"),
        ({"dpo_loss": "sigmoyd"}, "dpo_loss.0 = 'sigmoyd': Input should be 'sigmoid', 'hinge', 'ipo'"),
        ({"dpo_beta": "nan"}, "dpo_beta = 'nan': Input should be a finite number"),
        ({"sft_learning_rate": [1e-3, 3e-3]}, "sft_learning_rate = "),
        ({"dpo_loss": []}, "dpo_loss = "),
        ({"overlong": "drop"}, "'error', 'exclude' or 'truncate'"),
        ({"study": "../elsewhere"}, "study = '../elsewhere'"),
        ({"task": "sumarization"}, "sumarization"),
        ({"data": ""}, "data = ''"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(change: dict, message: str) -> None:
    with pytest.raises(ParamsError, match=message.replace("(", r"\(")):
        resolve(GOOD | change)


def test_values_that_yaml_and_the_command_line_spoil_are_understood() -> None:
    params = resolve(GOOD | {"sft_learning_rate": "5e-7", "gradient_checkpointing": "no", "dpo_loss": "sigmoid"})
    assert params.sft_learning_rate == 5e-7
    assert params.gradient_checkpointing is False
    assert params.dpo_loss == ["sigmoid"]


def collected(*cells: str) -> RunParams:
    """Execute cells in one kernel's namespace, with their record, and collect the parameters in the last one."""
    namespace: dict[str, Any] = {"In": [""]}
    for cell in cells:
        namespace["In"].append(cell)
        if "from_notebook" not in cell:
            exec(cell, namespace)
    return RunParams.from_notebook("summarization", namespace)


CELL, COLLECT = 'data: str = "x"  # card\nseed: int = 3', 'params = RunParams.from_notebook("summarization")'
LATER = "cases, answers = [], {}\nprimary = [row for row in cases]\nnames = sorted(answers)"


def test_what_the_cell_leaves_out_is_the_shipped_notebooks_own() -> None:
    params = collected(CELL, COLLECT)
    assert (params.data, params.seed, params.samples_per_case) == ("x", 3, 2)
    assert collected(CELL, COLLECT, LATER, CELL.replace("3", "4"), COLLECT).seed == 4


@pytest.mark.parametrize("name", ["sead", "dpo_bata", "k"])
@pytest.mark.parametrize("used", [(), (CELL, COLLECT, LATER)], ids=["fresh kernel", "used kernel"])
@pytest.mark.parametrize("place", ["in the cell", "a cell of its own", "injected", "refused and run again"])
def test_a_misspelt_parameter_is_refused(name: str, used: tuple[str, ...], place: str) -> None:
    wrong = f"{name} = 0.5"
    cells = {
        "in the cell": (f"{CELL}\n{wrong}", COLLECT),
        "a cell of its own": (CELL, wrong, "import math", COLLECT),
        "injected": (CELL, f"# Parameters\n{wrong}\nseed = 2", COLLECT),
        "refused and run again": (f"{CELL}\n{wrong}", COLLECT, COLLECT),
    }[place]
    with pytest.raises(ParamsError, match=f"unknown parameter '{name}'"):
        collected(*used, *cells)
    assert collected(*used, *cells, CELL, COLLECT).seed == 3  # corrected, though the name is still there


def test_a_library_that_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    run = resolve(GOOD)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuse_missing(run)
    with pytest.raises(ParamsError, match=r"quantization = '4bit' needs bitsandbytes.*pip install -e '\.\[gpu\]'"):
        refuse_missing(run.model_copy(update={"quantization": "4bit"}))


def study_folder(folder: Path, study: str, **files: str) -> Path:
    """A params folder of these files, shared.yaml empty."""
    folder.mkdir()
    for name, text in {"shared": "", "study": study, **files}.items():
        (folder / f"{name}.yaml").write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("study", "task_file", "said"),
    [
        ("models: [m]\nseeds: [0]\ntasks: {clinical_triags: {}}", "", "unknown task 'clinical_triags'; did you mean"),
        ("models: [m]\nseeds: [0, 0]\ntasks: {summarization: {}}", "", "0 is given twice"),
        ("models: [m]\nseeds: [0]\ntasks: {summarization: {}}", "seed: 7", "seed = 7, but study.yaml says otherwise"),
        (
            "models: [builtin/mistrel]\nseeds: [0]\ntasks: {summarization: {}}",
            "data: synthetic_dialogues",
            "'builtin/mistrel': no such built-in model; did you mean 'builtin/mistral'",
        ),
        ("models: [m\n", "", "is not valid YAML"),
        ("- models", "", "must hold `name: value` lines, not a list"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(study: str, task_file: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=said):
        load_study(study_folder(tmp_path / "mine", study, summarization=task_file)).runs()


def test_a_misspelt_name_is_looked_for_in_the_file_that_has_it(tmp_path: Path) -> None:
    both = "models: [m]\nseeds: [0]\ntasks: {summarization: {}}"
    folder = study_folder(tmp_path / "mine", both, shared="n_tran: 5", summarization="data: x\nseeed: 1")
    with pytest.raises(ParamsError) as error:
        load_study(folder).runs()
    shared, own = str(error.value).splitlines()
    assert shared.startswith(f"{folder}/shared.yaml: unknown parameter 'n_tran'; did you mean 'n_train'")
    assert own.startswith(f"{folder}/summarization.yaml: unknown parameter 'seeed'")


def test_a_missing_study_is_named_with_those_beside_it(tmp_path: Path) -> None:
    study_folder(tmp_path / "mine", "")
    with pytest.raises(ParamsError, match="studies: mine"):
        load_study(tmp_path / "other")


#: Task and study of every study that ships with a file for each of its tasks.
STUDIES = [(n, t) for n in ("smoke", "demo", "public", "paper") for t in load_study(ROOT / "params" / n).tasks]


@pytest.mark.parametrize("task", [task for study, task in STUDIES if study == "demo"])
def test_the_notebooks_own_defaults_are_the_demo(task: str) -> None:
    """Run all cells in JupyterLab and the batch does the same; papermill reads the type of every line."""
    demo = load_study(ROOT / "params" / "demo").run(task, "builtin/llama", 0)
    inferred = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{task}.ipynb"))
    assert set(inferred) == set(RunParams.model_fields) - {"task"}
    assert resolve({"task": task, "study": "demo"}) == demo
    assert resolve({"task": task}).study == "mine"  # trying something out is not to replace a run of the demo
    types = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
    for name, entry in inferred.items():
        value = getattr(resolve({"task": task}), name)
        assert isinstance(value, types[entry["inferred_type_name"]]), name
        assert ast.literal_eval(entry["default"]) == (value if name != "study" else "mine"), name


@pytest.mark.parametrize(("study", "task"), STUDIES)
def test_plain_papermill_and_the_batch_run_the_same(study: str, task: str) -> None:
    folder = ROOT / "params" / study
    runs = load_study(folder).runs()
    assert len({(run.task, run.model, run.seed) for run in runs}) == len(runs) and {r.study for r in runs} == {study}
    inferred = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{task}.ipynb"))
    defaults = {name: ast.literal_eval(entry["default"]) for name, entry in inferred.items()}
    given = read_yaml(folder / "shared.yaml") | read_yaml(folder / f"{task}.yaml")
    assert set(given) <= set(defaults)
    plain = resolve(defaults | given | {"task": task, "model": "builtin/llama", "seed": 1})
    assert plain == load_study(folder).run(task, "builtin/llama", 1)


def test_defaults_are_those_of_the_project_one_works_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere those of the checkout hold; a task of one's own has the defaults of its notebook."""
    monkeypatch.chdir(tmp_path)
    assert resolve(GOOD).n_train == 100
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    text = (ROOT / "notebooks" / "summarization.ipynb").read_text(encoding="utf-8")
    changed = text.replace("n_train: int = 100", "n_train: int = 7")
    (tmp_path / "notebooks" / "summarization.ipynb").write_text(changed, encoding="utf-8")
    assert resolve(GOOD).n_train == 7
    assert resolve(GOOD | {"task": "clinical_triage"}).n_train == 100


HEADINGS = (
    "The question|Parameters|Data|The base model|Supervised fine-tuning (SFT)|Preference pairs|"
    "Direct preference optimisation (DPO)|Evaluation|Figures|What this shows, and what it does not"
)


@pytest.mark.parametrize("task", list(TASK_TYPES))
def test_the_notebooks_share_one_skeleton_within_its_budget(task: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{task}.ipynb", as_version=4)
    nbformat.validate(notebook)
    lines = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown").splitlines()
    assert "|".join(line[3:] for line in lines if line.startswith("## ")) == HEADINGS
    code = [[row for row in c.source.splitlines() if row.strip()] for c in notebook.cells if c.cell_type == "code"]
    sizes = sorted(map(len, code))
    assert sizes[len(sizes) // 2] <= 5
    # the longest is the parameters cell, a line a parameter; the next has a line a control
    assert sizes[-2] <= 14 + len(CONTROLS) and sizes[-1] == len(RunParams.model_fields) - 1
    assert sum(sizes) - sizes[-1] <= 105 + len(CONTROLS)
    assert 30 <= len(notebook.cells) <= 45
    source = "\n".join(row for c in code for row in c)
    assert not re.search(r"^\s*(def|class) |partial|globals\(|lambda|\bdisplay\(\*", source, re.MULTILINE)
    imported = [name for line in ast.walk(ast.parse(source)) if isinstance(line, ast.ImportFrom) for name in line.names]
    assert len(imported) <= 25
    assert not any(c.get("outputs") for c in notebook.cells)


@pytest.mark.parametrize("content", ["", "{", '{"worksheets": []}', '{"cells": [{"source": "x = 1"}]}'])
def test_half_a_notebook_beside_the_others_is_no_task(tmp_path: Path, monkeypatch, content: str) -> None:
    """It broke every command, and study.yaml was blamed."""
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notebooks" / "Untitled.ipynb").write_text(content)
    monkeypatch.chdir(tmp_path)
    assert resolve({"task": "summarization"}).task == "summarization"
