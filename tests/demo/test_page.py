"""The page of the demo says what verdicts.csv says, and where precision fell short."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from demo.page import main
from medstudy.evaluation.verdict import COLUMNS


def test_the_page_is_what_the_study_gave(tmp_path: Path) -> None:
    study = tmp_path / "demo"
    run = study / "builtin-llama" / "clinical_triage" / "seed0"
    run.mkdir(parents=True)
    told = {"seconds": {"sft": 60.0, "samples": None}, "git_commit": "abcdef0123", "finished": "2026-11-26T12:00:00"}
    (run / "run.json").write_text(json.dumps(told))
    rows = [("study", "study", 0.015), ("kind", "open-ended", 0.02), ("task", "clinical_triage", 0.06)]
    same = ("dpo-sft_more", "mean", 0.01)
    lines = [(*row[:2], *same, 0.01 - row[2], 0.01 + row[2], 0.2, 400, 3, "unsure", f"{row[1]} said.") for row in rows]
    pd.DataFrame(lines, columns=COLUMNS).to_csv(study / "verdicts.csv", index=False)
    main(study, tmp_path)
    text = (tmp_path / "demo.md").read_text()
    assert "1 runs of version\nabcdef0, 2026-11-26, 1 minutes" in text
    assert all(f"- **unsure.** {name} said." in text for _, name, _ in rows)
    assert "| study | mean | 0.015 | 0.02 |" in text and "triage | mean | 0.060 | 0.05, not reached |" in text
    assert "<svg" in (tmp_path / "demo.svg").read_text()
