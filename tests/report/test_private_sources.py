"""Real sources marked private run to their report, and the second net gives no false alarm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from medstudy.report.scan import PATTERNS, RULES

ROOT, DATA = Path(__file__).resolve().parents[2], os.environ.get("MEDSTUDY_REAL_DATA", "")
TASKS = {
    "text_classification": "medical_abstracts",
    "summarization": "mts_dialog",
    "clinical_triage": "ktas",
    "numeric_classification": "pima",
}
SMALL = {"n_train": 24, "n_prefer": 24, "n_valid": 12, "n_test": 24, "few_shot_k": 0, "samples_per_case": 2}
SMALL |= {"sft_epochs": 1}
SMALL |= {"lora_rank": 2, "max_new_tokens": 200, "dpo_loss": "sigmoid", "overlong": "exclude"}


@pytest.mark.slow
@pytest.mark.skipif(not DATA or not Path(DATA).is_dir(), reason="MEDSTUDY_REAL_DATA is not set")
def test_real_sources_marked_private_have_their_report(tmp_path: Path, tiny_model: Path) -> None:
    for folder in ("notebooks", "profiles"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    study = tmp_path / "params" / "ours"
    study.mkdir(parents=True)
    model = os.path.relpath(shutil.copytree(tiny_model, tmp_path / "tiny"), tmp_path)
    config = tmp_path / "tiny" / "config.json"  # its few tokens are short: real notes need many
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096}))
    (study / "study.yaml").write_text(yaml.safe_dump({"models": [model], "seeds": [0], "tasks": dict.fromkeys(TASKS)}))
    (study / "shared.yaml").write_text(yaml.safe_dump(SMALL | {"data_root": DATA}))
    for task, card in TASKS.items():
        text = (ROOT / "params" / "data" / f"{card}.yaml").read_text(encoding="utf-8")
        (study / f"{card}.yaml").write_text(text.replace("shareable: true", "shareable: false"), encoding="utf-8")
        (study / f"{task}.yaml").write_text(yaml.safe_dump({"data": f"params/ours/{card}.yaml"}))
    command = [sys.executable, "-m", "medstudy.batch.cli", "run", "params/ours", "--jobs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results" / "ours"
    index = (results / "report" / "index.html").read_text(encoding="utf-8")
    judged = pd.read_csv(results / "verdicts.csv").query("scope == 'cell'")["name"].str.split(", ").str[0]
    assert "the package" in index and set(judged) == set(TASKS)
    assert [rule for rule in (*RULES, *PATTERNS) if f"withheld: {rule}" in index] == []
    assert "source withheld" not in index and "output withheld" not in index
    assert DATA not in "".join(f.read_text(errors="replace") for f in results.glob("*/*/*/*.*") if f.suffix != ".log")
