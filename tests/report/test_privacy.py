"""Canaries planted in a private source stay in private/: in good, crashed and killed runs, and in logs."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from IPython.core.formatters import DisplayFormatter

from medstudy.arms import TRAINED
from medstudy.batch.cli import main
from medstudy.data.card import DataCard
from medstudy.data.cases import Case
from medstudy.report import privacy, withhold
from medstudy.report.privacy import guard_of, is_private
from medstudy.report.scan import RULES, Guard
from medstudy.report.withhold import RELEASED, SOURCE_WITHHELD, WITHHELD, Filter
from medstudy.runs import Run
from medstudy.show import aggregate
from medstudy.training.preferences import TOO_FEW

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "the zebrafish keeper from Ulverston swallowed a marble on Friday"
CANARIES = ("zebrafish", "Ulverston", "MRN-4417-QX", "17.03.2019", "marble")
#: Where a run is made to crash, each time with a case's text in the exception; the first before the cases are known.
STAGES = ("load.load_cases", "split_cases", "generation.answer_cases", "fit", "evaluate.evaluate", "gates.check_gates")


@pytest.fixture
def checkout(tmp_path: Path, tiny_model: Path) -> Path:
    """A checkout whose study runs a private source of 60 patients on a tiny model."""
    for name in ("notebooks", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    notes = [f"Case {i}: {('cough', 'dysuria')[i % 2]} since {i} days, temperature {36 + i / 20}." for i in range(60)]
    notes[17] = f"Seen 17.03.2019: {SENTENCE}."
    rows = [{"mrn": f"MRN-{4400 + i}-QX", "note": n, "uti": ("no", "yes")[i % 2]} for i, n in enumerate(notes)]
    pd.DataFrame(rows).to_csv(tmp_path / "notes.csv", index=False)
    card = {
        "name": "ours", "title": "Ours", "task": "text_classification", "question": "Infection?",
        "labels": {"label": ["no", "yes"]}, "positive": "yes",
        "load": {"kind": "files", "format": "csv", "files": [{"path": "notes.csv"}]},
        "columns": {"text": "{note}", "gold": {"label": {"column": "uti"}}, "case_id": "mrn"},
    }  # fmt: skip
    model = os.path.relpath(shutil.copytree(tiny_model, tmp_path / "tiny"), tmp_path)
    small = {"n_train": 20, "n_prefer": 10, "n_valid": 8, "n_test": 22, "few_shot_k": 1, "samples_per_case": 2}
    small |= {"sft_epochs": 1, "lora_rank": 2, "max_new_tokens": 8, "dpo_loss": "sigmoid", "data_root": str(tmp_path)}
    files = {"card": card, "shared": small, "text_classification": {"data": "params/ours/card.yaml"}}
    files["study"] = {"models": [model], "seeds": [0], "tasks": {"text_classification": {}}}
    (tmp_path / "params" / "ours").mkdir(parents=True)
    for name, values in files.items():
        (tmp_path / "params" / "ours" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "medstudy.batch.cli", "run", "params/ours", "--jobs", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=root, **pipes, text=True, start_new_session=True)


def run(root: Path, ends_well: bool = True) -> Path:
    """Run the study, which shows nothing of a patient; returns the folder of its run."""
    job = start(root)
    said = job.communicate()
    assert (job.returncode == 0) is ends_well, said
    assert seen_outside(root, *said) == []
    [source] = (root / "results" / "ours").glob("*/text_classification/seed0")
    return source


def add_cells(root: Path, name: str, *cells: nbformat.NotebookNode | str, after: str = "") -> None:
    """Put cells before the last one of a notebook, or after the one that has the word ``after``."""
    page = root / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(page, as_version=4)
    at = next((i + 1 for i, cell in enumerate(notebook.cells) if after and after in cell.source), -1)
    made = [nbformat.v4.new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    notebook.cells[at:at] = made
    nbformat.write(notebook, page)


def seen_outside(root: Path, *said: str) -> list[str]:
    """Canaries in what was said, or in the name or the bytes of a file outside private/, archives opened."""
    texts = {"terminal": "".join(said)}
    files = (path for path in (root / "results").rglob("*") if path.is_file())
    for file in (path for path in files if "private" not in path.relative_to(root).parts):
        texts[str(file)] = file.name + file.read_bytes().decode("latin-1")
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                texts[str(file)] += "".join(archive.read(name).decode("latin-1") for name in archive.namelist())
        elif file.suffix == ".gz":
            texts[str(file)] += gzip.decompress(file.read_bytes()).decode("latin-1")
    return [f"{canary} in {place}" for place, text in texts.items() for canary in CANARIES if canary in text]


@pytest.mark.slow
def test_a_good_run_shows_nothing_and_hides_small_counts(checkout: Path) -> None:
    folder = run(checkout)
    assert "zebrafish" in str(pd.read_parquet(folder / "private" / "cases.parquet")["texts"].tolist())
    adapters = list(folder.glob("private/stages/*/*/adapter/README.md"))
    assert len(adapters) == len(TRAINED) and all("do not publish" in file.read_text() for file in adapters)
    page = (checkout / "results/ours/report/index.html").read_text()
    assert "the package's own tables and figures" in page.replace("&#39;", "'")
    assert "source withheld" not in page and "output withheld" not in page  # no false alarm
    notebook = (folder / "notebook.ipynb").read_text()
    assert "< 11" in notebook and "data_root = 'private'" in notebook
    assert json.loads((folder / "run.json").read_text())["parameters"]["data_root"] == "private"
    for name, mode in (("", 0o700), ("pairs.jsonl", 0o600)):
        assert stat.S_IMODE((folder / "private" / name).stat().st_mode) == mode
    assert (folder / "private" / ".gitignore").read_text() == "*\n"


#: What a user's own cells may do; each shows or writes something of a patient.
USERS_CELLS = {
    "a table of cut texts": "pd.DataFrame([c.text[:25] for c in splits.train + splits.test], columns=['note'])",
    "two words": "print([c.text for c in loaded.cases if 'Ulverston' in c.text][0].split()[2:4])",
    "a figure's title": 'f = figures.training_figure({"sft": training_log(sft)})\nf.suptitle(note[17:40])\nf',
    "a title by pyplot": "import matplotlib.pyplot as plt\nplt.title(note)\nplt.show()",
    "an identifier": "[c.case_id for c in loaded.cases]",
    "an exception": "try:\n    {}[note]\nexcept KeyError:\n    import traceback; traceback.print_exc()",
    "counts of a user's own table": "views.show_counts(card, pd.DataFrame({'n': [c.text for c in cases]}))",
    "names counted, under no name": (
        "views.show_counts(card, pd.Series([note.split()[2], '48213']).value_counts().to_frame())"
    ),
    "files": (
        "t = pd.DataFrame({'zebrafish': [c.text for c in loaded.cases]})\n"
        "t.to_excel(run.folder / 'Ulverston.xlsx')\nt.to_parquet(run.folder / 'a.parquet')\n"
        "t.to_csv(run.folder / 'b.csv.gz')\nt.to_csv(run.folder / 'training' / 'c.txt')\n"
        "t.to_pickle(run.folder / 'd.pkl')\nt.to_csv(run.folder / 'e.log')\n(run.folder / 'g.lock').write_text(note)\n"
        "t.to_csv(run.folder / 'training' / 'f.csv')\nstudy = run.folder.parents[2]\n(study / 'figures').mkdir()\n"
        "t.to_excel(study / 'Ulverston.xlsx')\nt.to_csv(study / 'figures' / 'a.csv')"
    ),
}


@pytest.mark.slow
def test_a_users_own_cells_are_withheld_and_the_study_has_its_report(checkout: Path) -> None:
    first = "import pandas as pd\nnote = [c.text for c in loaded.cases if 'zebra' in c.text][0]"
    heading = nbformat.v4.new_markdown_cell("## The zebrafish keeper")
    add_cells(checkout, "text_classification", first, *USERS_CELLS.values(), heading)
    add_cells(checkout, "comparison", 'print(runs[0].predictions()["case_id"].tolist())')
    folder = run(checkout)
    index = (checkout / "results/ours/report/index.html").read_text()
    assert "output withheld: not one of the package" in index and "source withheld" in index
    assert "files put into private/, not looked at: 10" in index and "comparison.ipynb, cell" in index
    assert "48213" not in (folder / "notebook.ipynb").read_text()


SPOILED = """
import pathlib, sys, warnings
def broken(*_, **__):
    note = pathlib.Path("notes.csv").read_text().splitlines()[18]
    warnings.warn(note)
    print(note, file=sys.__stderr__, flush=True)
    raise ValueError(note)
{} = broken"""
STRANGE = "display({'text/plain': 1, [c.text for c in loaded.cases if 'zebra' in c.text][0]: 3}, raw=True)"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [*STAGES, "a display that the engine cannot keep"])
def test_a_crash_with_a_case_in_the_exception_shows_nothing(checkout: Path, stage: str) -> None:
    if stage in STAGES:
        look = "import pathlib\npathlib.Path('notes.csv').read_text().splitlines()[15:22]"
        add_cells(checkout, "text_classification", look, SPOILED.format(stage), after="SFTTrainer")
    else:
        add_cells(checkout, "text_classification", STRANGE)
    folder = run(checkout, ends_well=False)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed" and "withheld" in record["message"]
    assert ("ValueError" if stage in STAGES else "NotebookValidationError") in record["message"]
    if stage in STAGES:
        assert "zebrafish" in (folder / "private" / "notebook.ipynb").read_text()


@pytest.mark.slow
def test_a_killed_run_shows_nothing(checkout: Path) -> None:
    job = start(checkout)
    while not list(checkout.glob("results/ours/*/*/seed0/private/cases.parquet")):
        time.sleep(0.1)
        assert job.poll() is None, job.communicate()
    time.sleep(1)
    os.killpg(job.pid, signal.SIGKILL)
    said = job.communicate()
    time.sleep(1)
    assert seen_outside(checkout, *said) == []


NAMED = "Grobblestone, Ferdinand"
NOTES = {
    "AB 1234503": f"Seen 17.03.2019: {SENTENCE}.",
    "48213": "Anrufe an Fr\u00e4ulein Quittenbaum, Tel. 0551 / 77 31 04",
    NAMED: "患者は山田太郎、昨日から発熱。",
    "P#9-b": "acute on chronic failure",
}


@pytest.fixture(scope="module")
def known() -> Guard:
    """A guard of four patients whose card asks one question."""
    rows = [{"case_id": i, "group_id": i, "texts": [text], "ids": [i]} for i, text in NOTES.items()]
    made = Guard()
    made.add(pd.DataFrame(rows), "ours", '{"question": "Is it an infection of the keeper?"}')
    return made


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells that the package ships."""
    (tmp_path / "cells.txt").write_text("\n".join(map(withhold._digest, ("1", "## Data"))))
    monkeypatch.setattr(withhold, "SHIPPED", tmp_path / "cells.txt")


COPY, WORD, NUMBER = RULES


#: Rule -> texts that break it.
BREAKING = {
    WORD: [
        "<p>THE ZEBRAFISH</p>",
        "zebra\u00adfish, zebra\u200bfish",
        "name_Ulverston_2.csv",
        r"['swallowed\na marble\non Friday']",
        "Frau\u0308lein Quittenbaum",
        json.dumps("Fr\u00e4ulein"),
        "<text x='1'>Ferdinand</text>",
        "山田太",
    ],
    NUMBER: [
        "on 17/03/2019",
        "2019-03-17T10:00",
        "AB-1234503",
        "ab1234503",
        "id 48213",
        "call 0551-773104 or 0551/77-31-04",
        "P9b p#9-B",
    ],
    "e-mail address": ["write to anna@ward.example"],
    "access token": ["token hf_abcdefghijklmnopqrstuvwx"],
}
#: The package's own words and numbers.
NOBODYS = [
    "the keeper of an infection: accuracy 0.123456 [0.11, 0.20], p < 0.001, n 40, step 1720",
    "SFT is enough. DPO +0.010 [-0.020, +0.040] over SFT; 200 cases, 3 seeds",
    "<svg><path d='M 48213 17.03 2019 L 48213 0'/><text>DPO</text></svg>",
    '{"finished": "2026-11-26T01:44:37", "seconds": 48.213, "key": "9fcafe17bed0"}',
    "<table class='zebrafish'><td>of 48213</td></table>",
]


def test_each_rule_finds_what_it_is_for_and_nothing_else(known: Guard) -> None:
    texts = [(text, rule) for rule, breaking in BREAKING.items() for text in breaking]
    assert [text for text, rule in texts if rule not in known.rules_broken(text)] == []
    assert [text for text in NOBODYS if known.rules_broken(text, numbers=False)] == []


def test_wording_that_most_cases_share_is_no_patients() -> None:
    form = "The gentleman was seen in the outpatient clinic today because of"
    rows = [(i, f"{form} complaint number {i} and nothing else") for i in range(50)]
    made = Guard()
    made.add(pd.DataFrame([{"case_id": i, "group_id": i, "texts": [t], "ids": [str(i)]} for i, t in rows]))
    assert made.rules_broken(form) == [] and made.rules_broken("case 17") == []
    one = Guard()
    one.add(pd.DataFrame([{"case_id": i, "group_id": "one", "texts": [t], "ids": []} for i, t in rows]))
    assert COPY in one.rules_broken(form)


def executed() -> nbformat.NotebookNode:
    """A notebook as a user might leave it: shipped cells, edited ones, and outputs of every kind."""
    v4 = nbformat.v4
    own = aggregate(pd.DataFrame({"arm": ["dpo"], "n": [40]}), ["arm"])
    data, tag = DisplayFormatter().format(own)
    tagged = v4.new_output("display_data", data | {"application/x": SENTENCE}, metadata=tag | {"x": SENTENCE})
    cells = [
        v4.new_markdown_cell("## Data", attachments={"a": {"text/plain": SENTENCE}}),
        v4.new_code_cell("1", outputs=[tagged], metadata={"papermill": {"exception": SENTENCE}, "name": SENTENCE}),
        v4.new_code_cell("cases[cases.name == 'Ferdinand']", outputs=[v4.new_output("stream", text="Ferdinand")]),
        v4.new_code_cell("1", outputs=[v4.new_output("execute_result", {"image/png": "Zm9v", "text/plain": "zebra"})]),
        v4.new_code_cell(
            "1", outputs=[v4.new_output("error", ename="KeyError", evalue=SENTENCE, traceback=[SENTENCE])]
        ),
        v4.new_markdown_cell("Ferdinand"),
        v4.new_code_cell(
            "len(cases)", outputs=[v4.new_output("stream", text="4 cases")], metadata={"tags": ["release"]}
        ),
        v4.new_code_cell("names", outputs=[v4.new_output("stream", text="Ferdinand")], metadata={"tags": ["release"]}),
        v4.new_code_cell(f"data_root = '/data/Ferdinand'  # {SENTENCE}\nseed = 3\nname = 'Ferdinand'"),
    ]
    cells[-1].metadata["tags"] = ["parameters"]
    return v4.new_notebook(cells=cells, metadata={"widgets": {"state": SENTENCE}, "title": SENTENCE})


def test_only_tagged_outputs_and_shipped_sources_leave(known: Guard, shipped: None) -> None:
    notebook = executed()
    said = Filter(known).notebook(notebook)
    text = nbformat.writes(notebook)
    assert not [word for word in ("zebra", "Ferdinand", "Zm9v", "Ulverston") if word in text]
    outputs = ["".join(str(o.get("data", o.get("text"))) for o in c.get("outputs", [])) for c in notebook.cells]
    assert "dpo" in outputs[1] and "KeyError: withheld" in outputs[4]
    assert outputs[6] == f"4 cases{{'text/plain': 'output {RELEASED}'}}"
    assert notebook.cells[6].source == "len(cases)"
    assert notebook.cells[8].source == "data_root = 'private'\nseed = 3"
    assert said[:3] == [f"cell 3, output {WITHHELD}", f"cell 3, source {SOURCE_WITHHELD}", f"cell 4, output {WITHHELD}"]
    assert f"cell 8, output withheld: {WORD}" in said
    again = nbformat.reads(text, as_version=4)
    Filter(known).notebook(again)
    assert nbformat.writes(again) == text


def test_a_mark_of_an_earlier_copy_carries_no_words_of_a_cell(known: Guard) -> None:
    """Whoever can set metadata could have had any text shown as the reason why something was withheld."""
    mark = {withhold._WHY: "Grobblestone, Ferdinand"}
    cell = nbformat.v4.new_code_cell("look('Grobblestone')", metadata=mark)
    cell.outputs = [nbformat.v4.new_output("display_data", {"text/plain": "Grobblestone"}, metadata=mark)]
    said = Filter(known).notebook(notebook := nbformat.v4.new_notebook(cells=[cell]))
    assert "Grobblestone" not in nbformat.writes(notebook) + str(said) and len(said) == 2
    again = Filter(known).notebook(notebook)
    assert len(again) == 2 and "Grobblestone" not in nbformat.writes(notebook)


def test_an_error_class_of_a_cells_own_is_not_named() -> None:
    output = nbformat.v4.new_output("error", ename="UlverstonError", evalue="", traceback=[])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    assert "cell 1, output Error: withheld" in Filter(Guard()).notebook(notebook)
    assert "Ulverston" not in nbformat.writes(notebook)


def test_before_the_cases_are_known_no_output_leaves() -> None:
    notebook = executed()
    Filter(Guard(), nothing=True).notebook(notebook)
    text = nbformat.writes(notebook)
    assert not [word for word in ("zebra", "Ferdinand", "dpo", "4 cases") if word in text]


def test_a_notebook_that_ran_elsewhere_can_be_shared(tmp_path: Path, params, card, capsys) -> None:
    params = params.model_copy(update={"results": str(tmp_path / "results")})
    case = Case("c1", "g1", SENTENCE, {"label": "yes"}, {})
    Run(params).keep_source(card.model_copy(update={"shareable": False}), [case])
    notebook = executed()
    asked = f"study = {params.study!r}\nmodel = {params.model!r}\nseed = {params.seed}"
    notebook.cells.append(nbformat.v4.new_code_cell(asked, metadata={"tags": ["injected-parameters"]}))
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    words = ["share", f"{tmp_path}/mine.ipynb", f"{tmp_path}/copy.ipynb", "--results", f"{tmp_path}/results"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"cell 3, output {WITHHELD}" in said and "zebrafish" not in said
    assert "zebrafish" not in (tmp_path / "copy.ipynb").read_text()
    (tmp_path / "copy.ipynb").unlink()
    (tmp_path / "mine.csv").write_text(SENTENCE)
    assert main([words[0], f"{tmp_path}/mine.csv", *words[2:]]) == 2
    assert "mine.csv is no notebook (NotJSONError)" in (said := capsys.readouterr().err) and "zebrafish" not in said
    # with other people's runs only there is nothing to compare with
    notebook.cells[-1].source = asked.replace("seed = ", "seed = 9")
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    for results in (f"{tmp_path}/results", f"{tmp_path}/nowhere"):
        assert main([*words[:4], results]) == 2
        assert "nothing to compare" in capsys.readouterr().err
        assert not (tmp_path / "copy.ipynb").exists()


@pytest.mark.parametrize("where", ["missing", "fields", "split", "rejected", "demonstration"])
def test_words_of_a_cards_missing_values_and_maps_are_a_patients(where: str, tmp_path: Path, params, card) -> None:
    """A remark that init-card put there counted as a word that everybody may read."""
    run = Run(params.model_copy(update={"results": str(tmp_path / "results")}))
    remark = "wife of mayor Grabowska called"
    mapped = {"column": "ward", "map": {remark: "train" if where == "split" else "yes"}}
    held = {"missing": {"label": [remark]}, "fields": [mapped | {"wording": "seen on"}], "split": mapped}
    columns = card.columns.model_dump() | {"text": "{fields}" if where == "fields" else "{note}"}
    columns |= {where: held.get(where, {"label": mapped})}
    private = DataCard.model_validate(card.model_dump() | {"shareable": False, "load": None, "columns": columns})
    run.keep_source(private, [Case("c1", "g1", "Grabowska called again from the ward", {"label": "yes"}, {})])
    guard = guard_of([run.folder])
    assert guard.rules_broken("seen: Grabowska") == ["rare word of a case"] and not guard.rules_broken("the ward")


def test_a_private_notebook_is_not_shared_whole_where_its_folder_holds_a_public_run_by_now(
    tmp_path: Path, params, card
) -> None:
    params = params.model_copy(update={"results": str(tmp_path / "results")})
    public = card.model_copy(update={"shareable": True})
    Run(params).keep_source(public, [Case("c1", "g1", SENTENCE, {"label": "yes"}, {})])
    asked = f"study = {params.study!r}\nmodel = {params.model!r}\nseed = {params.seed}\ndata = "
    for data, kept in ((params.data, True), ("params/mine/card.yaml", False)):
        notebook = executed()
        cell = nbformat.v4.new_code_cell(f"{asked}{data!r}", metadata={"tags": ["injected-parameters"]})
        notebook.cells.append(cell)
        nbformat.write(notebook, tmp_path / "mine.ipynb")
        privacy.share(tmp_path / "mine.ipynb", tmp_path / "copy.ipynb", tmp_path / "results")
        assert ("zebrafish" in (tmp_path / "copy.ipynb").read_text()) is kept


def test_a_public_page_is_scanned_for_cases_of_a_private_run_beside_it(tmp_path: Path, params, card) -> None:
    study = tmp_path / "results" / params.study
    where = params.model_copy(update={"results": str(tmp_path / "results")})
    for seed, shareable in ((0, True), (1, False)):
        text = SENTENCE if seed else "nothing of anybody"
        run = Run(where.model_copy(update={"seed": seed}))
        case = Case(f"c{seed}", f"g{seed}", text, {"label": "yes"}, {})
        run.keep_source(card.model_copy(update={"shareable": shareable}), [case])
        cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text=SENTENCE)])
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), run.folder / "notebook.ipynb")
    review = privacy.Review(study)
    [public] = [run for run in review.runs if not is_private(run)]
    assert "zebrafish" not in nbformat.writes(review.notebook(public / "notebook.ipynb")) and review.kept_back


def test_a_card_that_is_taken_back_is_private_from_then_on(tmp_path: Path, params, card) -> None:
    file = tmp_path / "card.yaml"
    file.write_text(yaml.safe_dump(json.loads(card.model_dump_json(exclude_none=True)) | {"shareable": True}))
    run = Run(params.model_copy(update={"data": str(file)}))
    run.keep_source(card.model_copy(update={"shareable": True}), [Case("c1", "g1", SENTENCE, {"label": "yes"}, {})])
    assert not is_private(run.folder) and not guard_of([run.folder]).cases
    file.write_text(file.read_text().replace("shareable: true", "shareable: false"))
    assert is_private(run.folder) and guard_of([run.folder]).cases


def test_cases_keep_every_text_they_hold(params, card) -> None:
    run = Run(params)
    case = Case("c1", "g1", "text one", {"label": "yes"}, {"facts": ["fact one"], "options": {"A": "option one"}})
    run.keep_source(card, [case])
    kept = pd.read_parquet(run.private / "cases.parquet")["texts"][0]
    assert list(kept) == ["text one", "yes", "fact one", "option one"]
    assert run.facts["shareable"] is True


def test_the_hashes_that_ship_are_those_of_the_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red after a change of a notebook: call `withhold.list_shipped(Path("notebooks"))`."""
    shipped = withhold.SHIPPED.read_text()
    monkeypatch.setattr(withhold, "SHIPPED", tmp_path / "cells.txt")
    withhold.list_shipped(ROOT / "notebooks")
    assert withhold.SHIPPED.read_text() == shipped


def test_a_cell_that_a_user_added_is_withheld_and_a_shipped_one_stays() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "comparison.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("cases[cases.name == 'Ferdinand']"))
    said = Filter(Guard()).notebook(notebook)
    assert said == [f"cell {len(notebook.cells)}, source {SOURCE_WITHHELD}"]


@pytest.mark.parametrize(
    ("line", "leaves"),
    [
        ("sft_more: step 6 of 6, loss 5.992", True),
        ("clinical_triage, seed 0: ok\n", True),
        (TOO_FEW.format(12, 3, 300, 50), True),
        ("Ferdinand: step 6 of 6, loss 5.992", False),
        ("dpo: step 6 of 6, loss Ferdinand", False),
        (TOO_FEW.format(12, 3, 300, 50) + " Ferdinand", False),
    ],
)
def test_a_line_of_the_package_leaves_if_only_numbers_are_its_own(line: str, leaves: bool, shipped: None) -> None:
    output = nbformat.v4.new_output("display_data", {"text/plain": line, "text/html": "<progress>Ulverston"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    assert (Filter(Guard()).notebook(notebook) == []) is leaves
    assert (line.strip() in nbformat.writes(notebook)) is leaves and "Ulverston" not in nbformat.writes(notebook)
    again = nbformat.writes(notebook)
    Filter(Guard()).notebook(notebook)
    assert nbformat.writes(notebook) == again
