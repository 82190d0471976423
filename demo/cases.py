"""The demo's cases as files: what the generators write, in params/data/demo. `python -m demo.cases` makes them anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import clinical_reasoning, clinical_triage, numeric_classification, summarization, text_classification
from medstudy.data.cases import Case

FOLDER = Path(__file__).resolve().parents[1] / "params" / "data" / "demo"
CASES, SEED = 1500, 0
#: File (and end of the card's name, ``synthetic_<file>``): its generator.
GENERATORS: dict[str, Callable[[int, int], list[Case]]] = {
    "uti": text_classification.generate,
    "urosepsis": numeric_classification.generate,
    "vignettes": clinical_reasoning.generate,
    "dialogues": summarization.generate,
    "messages": clinical_triage.generate,
}


def lines(cases: list[Case]) -> str:
    """One JSON object a line: ids, text, right answers, those of the demonstration (``nurse_…``) and details."""

    def row(c: Case) -> dict[str, Any]:
        nurse = {f"nurse_{outcome}": level for outcome, level in (c.demonstration or {}).items()}
        return {"case_id": c.case_id, "group_id": c.group_id, "text": c.text, **c.gold, **nurse, **c.details}

    rows = map(row, cases)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    for name, generate in GENERATORS.items():
        (FOLDER / f"{name}.jsonl").write_text(lines(generate(CASES, SEED)), encoding="utf-8")
