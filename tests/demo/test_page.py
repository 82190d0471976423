"""The page of the demo says what verdicts.csv says, and where precision fell short."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from demo.page import main
from medstudy.evaluation.verdict import COLUMNS


def test_the_page_is_what_the_study_gave(tmp_path: Path) -> None:
    study, docs = tmp_path / "demo", tmp_path / "docs"
    run = study / "builtin-llama" / "clinical_triage" / "seed0"
    run.mkdir(parents=True)
    docs.mkdir()
    told = {"seconds": {"sft": 60.0, "samples": None}, "git_commit": "abcdef0123", "finished": "2026-11-26T12:00:00"}
    (run / "run.json").write_text(json.dumps(told))
    names = (("study", "study", 0.015), ("kind", "open-ended", 0.02), ("task", "clinical_triage", 0.06))
    rows = [
        (
            scope,
            name,
            "dpo-sft_more",
            "mean",
            0.01,
            0.01 - half,
            0.01 + half,
            0.2,
            400,
            3,
            "inconclusive",
            f"{name} said.",
        )
        for scope, name, half in names
    ]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(study / "verdicts.csv", index=False)
    main(study, docs)
    text = (docs / "demo.md").read_text()
    assert "1 runs of version abcdef0, 2026-11-26, 1 minutes" in text
    assert all(f"- **inconclusive.** {name} said." in text for _, name, _ in names)
    assert (
        "| study | mean | 0.015 | 0.02 |" in text and "| clinical_triage | mean | 0.060 | 0.05, not reached |" in text
    )
    assert "<svg" in (docs / "demo.svg").read_text()
