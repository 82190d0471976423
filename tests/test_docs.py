"""What the documentation tells a user to do is done as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from medstudy.data.card import DataCard, load_card
from medstudy.data.load import load_cases

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_cards_are_documented_key_by_key() -> None:
    text = (ROOT / "docs" / "data_cards.md").read_text(encoding="utf-8")
    columns = DataCard.model_fields["columns"].annotation
    for name in [*DataCard.model_fields, *columns.model_fields]:
        assert f"`{name}`" in text or f"(`{name}`)" in text, name
    rows = re.findall(r"^\| .* \| (.*`.*) \|$", text.split("## What a source is")[0], re.MULTILINE)
    shipped = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(shipped) >= 8
    for name in shipped:
        assert load_card(name).name == name


def test_the_documented_function_makes_a_table(tmp_path: Path) -> None:
    code = next(code for code in blocks("data_cards.md", "python") if "def load(folder)" in code)
    (tmp_path / "labs.csv").write_text("patient;platelets\n0012;1.250,5\n7;3,5\n")
    rows = [["Ward 3"], [], [], ["patient", "sex"], ["0012", "f"]]
    pd.DataFrame(rows).to_excel(tmp_path / "stays.xlsx", sheet_name="2024", index=False, header=False)
    names: dict[str, Any] = {}
    exec(code, names)
    table = names["load"](tmp_path)
    assert table["platelets"].tolist() == [1250.5, 3.5] and table["sex"].fillna("").tolist() == ["f", ""]


def test_xml_becomes_cases(tmp_path: Path) -> None:
    for split, file in (("train", "a_train.xml"), ("test", "a_test_groundtruth.xml")):
        records = "".join(
            f'<RECORD ID="{split}{i}"><SMOKING STATUS="{status}"/><TEXT>{split} {i} &lt;b&gt;\nü</TEXT></RECORD>'
            for i, status in enumerate(["CURRENT SMOKER", "UNKNOWN", "NON-SMOKER"])
        )
        (tmp_path / file).write_text(f"<ROOT>{records}</ROOT>", encoding="utf-8")
    cases = load_cases(load_card("n2c2_smoking"), tmp_path).cases
    assert [c.gold["label"] for c in cases] == ["current smoker", "unknown", "non-smoker"] * 2
    assert (cases[0].text, cases[0].split, cases[5].case_id) == ("train 0 <b>\nü", "train", "test2")


@pytest.mark.slow
def test_a_sixth_task_as_documented(tmp_path: Path, tiny_model: Path) -> None:
    """One file, one line, one notebook, one card: then check and run know the task."""
    code, line = blocks("new_task.md", "python")
    [card] = blocks("new_task.md", "yaml")
    for name in ("notebooks", "profiles", "params"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(
        ROOT / "medstudy", tmp_path / "medstudy", ignore=shutil.ignore_patterns("base_models", "__pycache__")
    )
    shutil.copy(ROOT / "Snakefile", tmp_path)
    tasks = tmp_path / "medstudy" / "tasks"
    (tasks / "readmission.py").write_text(code)
    registered = (tasks / "__init__.py").read_text()
    registered = registered.replace("\nif TYPE", "from medstudy.tasks.readmission import Readmission\n\nif TYPE", 1)
    (tasks / "__init__.py").write_text(registered.replace("\n}", f"\n{line}}}", 1))
    notebook = (tmp_path / "notebooks" / "clinical_triage.ipynb").read_text(encoding="utf-8")
    (tmp_path / "notebooks" / "readmission.ipynb").write_text(
        notebook.replace('from_notebook(\\"clinical_triage\\"', 'from_notebook(\\"readmission\\"'),
        encoding="utf-8",
    )
    rows = [
        {"id": f"d{i}", "note": f"Discharged after {i} days with {'heart failure' if i % 2 else 'gout'}.",
         "readmitted": i % 2, "reason": "fluid" if i % 2 else "none"}
        for i in range(60)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "discharges.csv", index=False)
    study = tmp_path / "params" / "ours"
    study.mkdir()
    (study / "card.yaml").write_text(card + "shareable: true\n")
    model = os.path.relpath(shutil.copytree(tiny_model, tmp_path / "tiny"), tmp_path)
    (study / "study.yaml").write_text(yaml.safe_dump({"models": [model], "seeds": [0], "tasks": {"readmission": {}}}))
    small = {
        "n_train": 18,
        "n_prefer": 12,
        "n_valid": 6,
        "n_test": 24,
        "few_shot_k": 0,
        "samples_per_case": 2,
        "sft_epochs": 1,
    }
    (study / "shared.yaml").write_text(yaml.safe_dump(small | {"lora_rank": 2, "dpo_loss": "sigmoid"}))
    (study / "readmission.yaml").write_text("data: params/ours/card.yaml\nmax_new_tokens: 24\n")
    for words in (["check"], ["run"]):
        command = [sys.executable, "-m", "medstudy.batch.cli", *words, "params/ours"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    [run] = (tmp_path / "results" / "ours").glob("*/readmission/seed0")
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"readmission_macro_f1", "accuracy", "unparsed"} <= set(metrics["dpo"])
    verdicts = pd.read_csv(tmp_path / "results" / "ours" / "verdicts.csv")
    assert set(verdicts["verdict"]) == {"nothing to compare"}  # the model cannot write an answer
    assert {"readmission", "readmission, tiny"} <= set(verdicts["name"])
    assert "Readmission" in (tmp_path / "results" / "ours" / "comparison.ipynb").read_text()
