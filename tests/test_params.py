"""What is refused before a kernel starts, and what the refusal says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nbformat
import papermill
import pytest

from medstudy.params import ParamsError, RunParams, load_study, read_yaml, refuse_missing, resolve
from medstudy.tasks import TASK_TYPES

ROOT = Path(__file__).resolve().parents[1]
GOOD = {"task": "summarization", "data": "synthetic_dialogues"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dpo_bata": 0.2}, "unknown parameter 'dpo_bata'; did you mean 'dpo_beta'"),
        ({"seed": "first"}, "seed = 'first'"),
        ({"seed": -1}, "seed = -1"),
        ({"n_train": 2.5}, "n_train = 2.5"),
        ({"sft_learning_rate": 0}, "sft_learning_rate = 0"),
        ({"dpo_loss": "sigmoyd"}, "dpo_loss.0 = 'sigmoyd'"),
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


def test_a_misspelt_parameter_that_papermill_injects_is_refused_in_the_notebook() -> None:
    namespace = {"data": "x", "seed": 3, "_private": 1, "In": [], "Out": {}, "Path": Path, "sead": 4}
    with pytest.raises(ParamsError, match="unknown parameter 'sead'; did you mean 'seed'"):
        RunParams.from_notebook("summarization", namespace)
    del namespace["sead"]
    assert RunParams.from_notebook("summarization", namespace).seed == 3


def test_a_notebook_may_be_run_again_in_the_same_kernel() -> None:
    params = RunParams.from_notebook("summarization", {"data": "x", "seed": 3})
    made = {"params": params, "cases": [], "answers": {}, "context": 2048, "counts": [], "base": []}
    again = RunParams.from_notebook("summarization", made | {"data": "x", "seed": 4})
    assert again.seed == 4
    with pytest.raises(ParamsError, match="unknown parameter 'n_trian'; did you mean 'n_train'"):
        RunParams.from_notebook("summarization", made | {"data": "x", "n_trian": 4})


def test_what_a_run_needs_and_is_not_installed_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = resolve(GOOD)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuse_missing(run)
    with pytest.raises(ParamsError, match=r"quantization = '4bit' needs bitsandbytes.*pip install -e '\.\[gpu"):
        refuse_missing(run.model_copy(update={"quantization": "4bit"}))


@pytest.mark.parametrize("study", ["smoke", "demo", "public", "paper"])
def test_every_study_that_ships_resolves(study: str) -> None:
    loaded = load_study(ROOT / "params" / study)
    assert len(loaded.runs()) == len(loaded.tasks) * len(loaded.models) * len(loaded.seeds)
    assert {run.study for run in loaded.runs()} == {study}


def test_an_unknown_task_and_a_missing_study_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "study.yaml").write_text("models: [m]\nseeds: [0]\ntasks: {clinical_triags: {}}\n")
    with pytest.raises(ParamsError, match="unknown task 'clinical_triags'; did you mean 'clinical_triage'"):
        load_study(folder)
    with pytest.raises(ParamsError, match="studies beside it: mine"):
        load_study(tmp_path / "other")


def test_task_files_must_not_contradict_the_study(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "study.yaml").write_text("models: [m]\nseeds: [0]\ntasks: {summarization: {}}\n")
    (folder / "shared.yaml").write_text("study: mine\n")
    (folder / "summarization.yaml").write_text("data: synthetic_dialogues\nseed: 7\n")
    with pytest.raises(ParamsError, match="seed = 7, but study.yaml says otherwise"):
        load_study(folder).runs()


@pytest.mark.parametrize("task", list(TASK_TYPES))
def test_the_notebooks_own_defaults_are_the_demo(task: str) -> None:
    """Run all cells in JupyterLab and the batch does the same; papermill reads the type of every line."""
    demo = load_study(ROOT / "params" / "demo").run(task, "builtin/llama", 0)
    inferred = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{task}.ipynb"))
    defaults = {name: eval(entry["default"]) for name, entry in inferred.items()}  # literals of our own notebook
    assert set(defaults) == set(RunParams.model_fields) - {"task"}
    assert defaults.pop("study") == "mine"  # trying something out is not to replace a run of the demo
    assert resolve(defaults | {"task": task, "study": "demo"}) == demo
    assert all(entry["inferred_type_name"] not in ("", "None") for entry in inferred.values())


@pytest.mark.parametrize("study", ["smoke", "demo", "public", "paper"])
@pytest.mark.parametrize("task", list(TASK_TYPES))
def test_plain_papermill_and_the_batch_run_the_same(study: str, task: str) -> None:
    """What a study's files leave out, a notebook takes from its own defaults and the batch from RunParams."""
    folder = ROOT / "params" / study
    inferred = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{task}.ipynb"))
    defaults = {name: eval(entry["default"]) for name, entry in inferred.items()}
    given = read_yaml(folder / "shared.yaml") | read_yaml(folder / f"{task}.yaml")
    plain = resolve(defaults | given | {"task": task, "model": "builtin/llama", "seed": 1})
    assert plain == load_study(folder).run(task, "builtin/llama", 1)


HEADINGS = [
    "The question",
    "Parameters",
    "Data",
    "The base model",
    "Supervised fine-tuning (SFT)",
    "Preference pairs",
    "Direct preference optimisation (DPO)",
    "Evaluation",
    "Figures",
    "What this shows, and what it does not",
]


@pytest.mark.parametrize("task", list(TASK_TYPES))
def test_the_notebooks_share_one_skeleton_within_its_budget(task: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{task}.ipynb", as_version=4)
    nbformat.validate(notebook)
    lines = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown").splitlines()
    assert [line[3:] for line in lines if line.startswith("## ")] == HEADINGS
    code = [[row for row in c.source.splitlines() if row.strip()] for c in notebook.cells if c.cell_type == "code"]
    sizes = sorted(map(len, code))
    assert sizes[len(sizes) // 2] <= 5
    assert sizes[-2] <= 30 and sizes[-1] <= 35  # the longest is the parameters cell, a line a parameter
    assert sum(sizes) <= 160
    assert len(notebook.cells) <= 45
    assert sum(row.startswith("def ") for c in code for row in c) <= 1
    assert not any(c.get("outputs") for c in notebook.cells)


def study_folder(folder: Path, study: str, **files: str) -> Path:
    """A params folder of these files, shared.yaml empty."""
    folder.mkdir()
    for name, text in {"shared": "", "study": study, **files}.items():
        (folder / f"{name}.yaml").write_text(text + "\n")
    return folder


def test_gpus_and_processes_are_equal(tmp_path: Path) -> None:
    study = "models: [m]\nseeds: [0]\ntasks: {summarization: {gpu: 4}}"
    for processes in (2, 4):
        task = f"data: synthetic_dialogues\nprocesses: {processes}"
        loaded = load_study(study_folder(tmp_path / f"with{processes}", study, summarization=task))
        if processes == 4:
            assert [run.processes for run in loaded.runs()] == [4]
        else:
            with pytest.raises(ParamsError, match=r"gpu: 4 in study.yaml and has processes = 2.*make them equal"):
                loaded.runs()


def test_a_seed_given_twice_and_a_built_in_model_misspelt_are_refused(tmp_path: Path) -> None:
    twice = study_folder(tmp_path / "a", "models: [m]\nseeds: [0, 0]\ntasks: {summarization: {}}")
    with pytest.raises(ParamsError, match="0 is given twice"):
        load_study(twice)
    study = "models: [builtin/llama, builtin/mistrel]\nseeds: [0]\ntasks: {summarization: {}}"
    misspelt = study_folder(tmp_path / "b", study, summarization="data: synthetic_dialogues")
    with pytest.raises(ParamsError, match=r"'builtin/mistrel': no such built-in model; did you mean 'builtin/mistral'"):
        load_study(misspelt).runs()
