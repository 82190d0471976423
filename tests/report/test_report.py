"""From finished runs to cells, and to pages that ask no other host for anything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from made_up import labelled
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from medstudy import arms
from medstudy.data.cases import DataError
from medstudy.evaluation.comparison import finished_runs, save_tables, study_cells, study_tables
from medstudy.evaluation.verdict import Rules, verdict_table
from medstudy.evaluation.views import gains
from medstudy.params import resolve
from medstudy.report import pages as report
from medstudy.report.forest import save_study
from medstudy.training.gates import CHECKS


def finished(folder: Path, seed: int, gates: int = len(CHECKS), status: str = "ok") -> Path:
    """A run of twelve cases and four arms."""
    run = folder / "builtin-llama" / "text_classification" / f"seed{seed}"
    (run / "private").mkdir(parents=True)
    gold = ["yes" if i % 2 else "no" for i in range(12)]
    said = {
        arm: ["yes" if (i + turn) % 4 else "no" for i in range(12)]
        for turn, arm in enumerate(("base", "sft", "sft_more", "dpo"))
    }
    table = pd.concat(labelled("label", gold, answers, arm) for arm, answers in said.items())
    table.to_parquet(run / "private" / "predictions.parquet")
    asked = {"task": "text_classification", "model": "builtin/llama", "seed": seed, "data": "synthetic_uti"}
    record = {"status": status, "parameters": resolve(asked).model_dump(), "pairs": 4, "shareable": True}
    record |= {"seconds": {"sft": 1.0, "dpo": 2.0}, "labels": {"label": ["no", "yes"]}, "positive": "yes"}
    record |= {"stages": {"dpo": {"tokens": 400}}}
    record |= {"tried": [{"arm": "sft", "chosen": True, "n": 50, "score": 0.5, "settings": {"sft_epochs": 2}}]}
    record |= {"medstudy": "0.1", "versions": {"torch": "2.13"}, "python": "3.11"}
    record |= {"finished": "2026-01-02T03:04:05+00:00", "device": "cpu", "git_commit": "0123456789abcdef"}
    (run / "run.json").write_text(json.dumps(record))
    (run / "private" / "source.json").write_text(json.dumps({"card": "synthetic_uti", "shareable": True}))
    checked = [{"gate": f"gate {i}", "passed": True, "value": 0, "expected": ""} for i in range(gates)]
    (run / "gates.json").write_text(json.dumps(checked))
    output = new_output("stream", text="F1 0.5 <script>alert(1)</script>")
    cells = [new_markdown_cell("# A run"), new_code_cell("print(1)", outputs=[output], execution_count=1)]
    nbformat.write(new_notebook(cells=cells), run / "notebook.ipynb")
    return run


def test_only_runs_that_ended_well_count_and_a_run_without_gates_has_failed_them(tmp_path: Path) -> None:
    finished(tmp_path, 0)
    finished(tmp_path, 1, gates=0)
    finished(tmp_path, 2, status="failed")
    runs = finished_runs(tmp_path)
    assert [run.parameters["seed"] for run in runs] == [0, 1]
    assert [run.failed_gates for run in runs] == [[], ["no gate was checked"]]
    [cell] = study_cells(runs)
    assert cell.seeds == (0, 1) and cell.n_cases == 12
    assert verdict_table([cell], Rules())["verdict"].unique().tolist() == ["not valid"]


def test_the_report_is_self_contained_and_says_the_verdict_first(tmp_path: Path) -> None:
    study = tmp_path / "mine"
    with pytest.raises(DataError, match="medstudy run params/mine"):
        report.build(study)
    asked = [finished(study, seed) for seed in (0, 1)] and finished_runs(study)[0].parameters
    tables = study_tables(study_cells(finished_runs(study)), Rules(0.03))
    save_tables(study, tables)
    save_study(study, tables, 0.03)
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Comparison")]), study / "comparison.ipynb")
    (study / "report").mkdir()
    (study / "report" / "old.html").write_text("of an earlier run")
    folder = report.build(study).parent
    pages = {page.name: page.read_text() for page in folder.glob("*.html")}
    runs = {f"text_classification-builtin-llama-seed{seed}.html" for seed in (0, 1)}
    assert set(pages) == {"index.html", "comparison.html", "checklist.html"} | runs
    for text in pages.values():
        loads = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)|url\(([^)]+)\)|@import""", text)
        assert all(not re.match(r"(https?:)?//", "".join(found)) for found in loads)
        assert "<script" not in text and str(tmp_path) not in text
    assert "to be filled in by the authors" in pages["checklist.html"]
    paragraph = (folder / "methods.md").read_text()
    assert asked["sft_epochs"] != 2  # the default; 2 was chosen
    said = f"| 4 | {asked['sft_learning_rate']:g}, 2 |"  # one line for a task and its seeds
    assert said in paragraph and "(0, 1)" in paragraph and "0 of 2 runs failed" in paragraph
    assert all(arms.ARMS[arm].label in paragraph for arm in arms.TRAINED if arm != "dpo")
    assert "not valid" not in (folder / "cards/text_classification-builtin-llama-model.md").read_text()
    assert "no patient is in it" in (folder / "cards/text_classification-builtin-llama-data.md").read_text()
    index = pages["index.html"]
    places = [index.index(words) for words in ("On text classification,", "<svg", 'class="cells"', "Runs")]
    assert places == sorted(places)
    for words in ("No plan was frozen", "None, in 2 runs", "sft epochs 2 (of 1 tried on 50", *runs):
        assert words in index
    assert "macro-F1" not in index and "Holm" not in index
    seen = re.sub(r'aria-label="[^"]*"', "", index)  # words for those who do not see the figure
    assert seen.count("On text classification,") == 1 and "Over the whole study" not in seen
    assert "<details" in pages["text_classification-builtin-llama-seed0.html"]


def test_a_difference_has_the_sign_of_its_verdict_and_too_few_pairs_stand_beside_it(tmp_path: Path) -> None:
    """Under-triage fell: `+` in the sentence and the figure, and once `-` in the table."""
    numbers = [(-0.0750000001, -0.12, 0.031), (-0.08, -0.12, 0.031), (float("nan"), 0.0, 0.0)]
    rows = pd.DataFrame(numbers, columns=["difference", "low", "high"])
    texts = gains(rows.assign(outcome=["under_triage", "f1", "under_triage"]))["text"].tolist()
    assert texts == ["+.075 [-.031, +.120]", "-.080 [-.120, +.031]", ""]
    for seed in (0, 1):
        folder = finished(tmp_path, seed)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"enough_pairs": False}))
    nbformat.write(new_notebook(), tmp_path / "comparison.ipynb")
    cells = study_cells(finished_runs(tmp_path))
    save_tables(tmp_path, tables := study_tables(cells, Rules(0.03)))
    save_study(tmp_path, tables, 0.03)
    index = report.build(tmp_path).read_text()
    assert "Too few pairs or steps to expect that DPO learns from them in 2 of 2 trainings" in index
