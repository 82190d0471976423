"""Preference pairs of a run in the forms that trainers elsewhere read, one JSON line a pair.

Documented at huggingface.co/docs/trl (dataset formats), developers.openai.com (direct preference optimization; Azure,
Together and Fireworks read the same), docs.cloud.google.com (Gemini) and docs.aws.amazon.com (Nova), in November 2026.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medstudy.data.cases import DataError
from medstudy.report.privacy import is_private
from medstudy.training.preferences import Pair

FORMS = ("trl", "openai", "azure", "together", "fireworks", "gemini", "nova")


def export_pairs(run: Path, form: str, target: Path, allow_private: bool = False) -> int:
    """Write the pairs of a finished run in one of `FORMS`; returns how many.

    ``allow_private``: the file holds whole cases; of a source that may not be shown only with this.

    Raises:
        DataError: the run has no pairs, the form is unknown, or the source is private and nobody said so.
    """
    if form not in FORMS:
        raise DataError(f"unknown form '{form}' (allowed: {', '.join(FORMS)})")
    file = run / "private" / "pairs.jsonl"
    if not file.is_file():
        raise DataError(f"{file} does not exist: {run} is no run that has built its pairs")
    if is_private(run) and not allow_private:
        raise DataError(
            f"the cases of {run} may not be shown (no `shareable: true` in their data card), and pairs hold them "
            "whole: uploading gives patients' texts to the service. If this is allowed, repeat with --allow-private"
        )
    rows = file.read_text(encoding="utf-8").split("\n")[:-1]
    lines = (json.dumps(line_of(Pair(**json.loads(row)), form), ensure_ascii=False) for row in rows)
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(rows)


def line_of(pair: Pair, form: str) -> dict[str, Any]:
    """One pair as a reader of ``form`` wants it."""
    row = pair.row()
    if form == "gemini":
        roles = {"user": "user", "assistant": "model"}
        contents = [{"role": roles[m["role"]], "parts": [{"text": m["content"]}]} for m in pair.prompt]
        said = ({"role": "model", "parts": [{"text": text}]} for text in (pair.chosen, pair.rejected))
        completions = [{"score": score, "completion": one} for score, one in zip((1, 0), said, strict=True)]
        return {"contents": contents, "completions": completions}
    if form == "nova":
        turns = [{"role": m["role"], "content": [{"text": m["content"]}]} for m in pair.prompt]
        sides = (("preferred", pair.chosen), ("non-preferred", pair.rejected))
        candidates = [{"content": [{"text": text}], "preferenceLabel": label} for label, text in sides]
        messages = [*turns, {"role": "assistant", "candidates": candidates}]
        return {"schemaVersion": "bedrock-conversation-2024", "messages": messages}
    openai = {"input": {"messages": row["prompt"]}, "preferred_output": row["chosen"]}
    return dict(row) if form == "trl" else openai | {"non_preferred_output": row["rejected"]}
