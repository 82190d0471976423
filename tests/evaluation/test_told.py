"""A reader is told each thing once; verdicts.csv keeps a line a scope, name and contrast."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import rows, study

from medstudy.batch import cli
from medstudy.evaluation import views
from medstudy.evaluation.evaluate import measure
from medstudy.evaluation.scopes import BETWEEN, Cell
from medstudy.evaluation.verdict import Rules, verdict_table

TEXT, REASONING, NUMBERS = "text_classification", "clinical_reasoning", "numeric_classification"


def of_tables(task, model, tables, labels, **options):
    return Cell(task, model, measure(tables, task, labels, None), (0, 1, 2), **options)


def cell(task=TEXT, model="m", **options):
    shares = {"base": 0.1, "sft": 0.5, "sft_more": 0.5, "dpo": 0.8}
    tables = [study(shares, n=200, seed=seed) for seed in range(3)]
    return of_tables(task, model, tables, {"label": list("abcd")}, **options)


def triage():
    """Three outcomes, of which the study has the mean."""
    rng, levels, parts = np.random.default_rng(0), ["low", "mid", "high"], {"base": 0.2, "sft": 0.5, "sft_more": 0.5}
    urgency, provider = rng.choice(levels, 200), rng.choice(["nurse", "doctor"], 200)
    gold = [{"provider": p, "urgency": u} for p, u in zip(provider, urgency, strict=True)]
    labels = {"provider": ["nurse", "doctor"], "urgency": levels}
    tables = []
    for _ in range(3):
        said = {a: [g if rng.random() < s else gold[0] for g in gold] for a, s in (parts | {"dpo": 0.8}).items()}
        tables.append(pd.concat(rows(arm, gold, answers) for arm, answers in said.items()))
    return of_tables("clinical_triage", "m", tables, labels)


STUDIES = {
    "one task, one model": (lambda: [cell()], [TEXT]),
    "one task, two models": (lambda: [cell(model="a"), cell(model="b")], [TEXT, f"{TEXT}, a", f"{TEXT}, b"]),
    "two tasks of one kind": (lambda: [cell(), cell(NUMBERS)], ["study", TEXT, NUMBERS]),
    "two kinds": (lambda: [cell(), cell(REASONING)], ["study", BETWEEN, TEXT, REASONING]),
    "several outcomes": (lambda: [triage()], ["study", "clinical_triage"]),
    "a failed gate": (lambda: [cell(failed_gates=["gate"])], [f"{TEXT}, m"]),  # the cell alone has its numbers
}


@pytest.mark.parametrize("name", STUDIES)
def test_scopes_that_say_the_same_are_told_once_and_no_number_is_lost(name: str) -> None:
    made, expected = STUDIES[name]
    table = verdict_table(made(), Rules())
    told, numbers = views.told_once(table), ["contrast", "difference", "low", "high", "verdict"]
    assert list(told["name"].unique()) == expected
    assert set(table["scope"]) == {"study", "kind", "task", "cell"}
    left = table.dropna(subset="difference")[numbers].round(9).merge(told[numbers].round(9), how="left", indicator=True)
    assert set(left["_merge"]) == {"both"}


def test_what_another_scope_does_not_say_is_told_there_too() -> None:
    table = verdict_table([cell()], Rules())
    own = table["scope"] == "cell"
    other = table.assign(verdict=table["verdict"].mask(own, "inconclusive"))
    assert list(views.told_once(other)["scope"].unique()) == ["task", "cell"]
    other = table.assign(low=table["low"].mask(own, -1.0))
    assert list(views.told_once(other)["scope"].unique()) == ["task", "cell"]


def test_the_views_of_a_study_of_one_task_and_model_say_its_sentence_once() -> None:
    table = verdict_table([cell()], Rules())
    shown = [views.sentences(table, *scopes).data for scopes in (("study", "kind", "task"), ("cell",))]
    assert shown[0].count("- **") == 1 and shown[1] == "*The same is told under another heading.*"
    assert len(views.verdicts(table, "study", "kind", "task")) == 4 and views.verdicts(table, "cell") is None


def test_compare_says_a_study_of_one_task_in_one_sentence_and_the_public_study_comes_out_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(Path(__file__).resolve().parents[2] / "docs" / "public", tmp_path / "public")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", str(copy)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all as the notebooks had it"
    for folder in copy.glob("models-*/*"):
        if folder.name != "numeric_classification":
            shutil.rmtree(folder)
    cli.main(["compare", str(copy)])
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("came out otherwise")]
    assert len(said) == 1 and said[0].startswith("inconclusive: On numeric classification, neither")
