"""Every notebook on real public files, with a tiny untrained model: nothing crashes, leaks or gets lost.

Reads the folder named by MEDSTUDY_REAL_DATA; without it there is nothing to test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from medstudy.data.card import load_card

ROOT = Path(__file__).resolve().parents[1]
REAL = os.environ.get("MEDSTUDY_REAL_DATA", "")
CARDS = {
    "text_classification": "medical_abstracts",
    "numeric_classification": "pima",
    "clinical_reasoning": "medqa",
    "summarization": "mts_dialog",
    "clinical_triage": "ktas",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(REAL).is_dir() or not REAL, reason="MEDSTUDY_REAL_DATA names no folder"),
]


@pytest.mark.parametrize(("task", "card"), CARDS.items())
def test_a_notebook_runs_on_real_cases(task: str, card: str, tiny_model: Path, tmp_path: Path) -> None:
    small = {"n_train": 8, "n_prefer": 8, "n_valid": 4, "n_test": 8, "few_shot_k": 1, "samples_per_case": 2}
    small |= {"sft_epochs": 1, "lora_rank": 2, "max_new_tokens": 4, "overlong": "truncate", "dpo_loss": "sigmoid"}
    given = {"data": card, "data_root": REAL, "model": str(tiny_model), "results": str(tmp_path), **small}
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    out = tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        f"notebooks/{task}.ipynb",
        str(out),
        "-k",
        "python3",
        *words,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [marker] = tmp_path.glob(f"mine/*/{task}/seed0/run.json")
    assert json.loads(marker.read_text())["status"] == "ok"
    predictions = pd.read_parquet(marker.parent / "private" / "predictions.parquet")
    assert (predictions.groupby("arm").size() == small["n_test"]).all()
    columns = load_card(card).columns
    assert columns is not None
    assert not set(columns.exclude) & set(columns.shown)
