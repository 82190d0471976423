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

    Raises:
        DataError: the run has no pairs, the form is unknown, or the cases are private and nobody allowed it.
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
    pairs = [Pair(**json.loads(row)) for row in file.read_text(encoding="utf-8").split("\n")[:-1]]
    lines = (json.dumps(line_of(pair, form), ensure_ascii=False) for pair in pairs)
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(pairs)


def line_of(pair: Pair, form: str) -> dict[str, Any]:
    """One pair as a reader of ``form`` wants it."""
    row, sides = dict(pair.row()), (pair.chosen, pair.rejected)
    if form == "trl":
        return row
    if form == "gemini":
        said = [*((m["role"], m["content"]) for m in pair.prompt), *(("assistant", side) for side in sides)]
        roles = {"user": "user", "assistant": "model"}
        *contents, better, worse = ({"role": roles[role], "parts": [{"text": text}]} for role, text in said)
        completions = [{"score": score, "completion": one} for score, one in ((1, better), (0, worse))]
        return {"contents": contents, "completions": completions}
    if form == "nova":
        turns = [{"role": m["role"], "content": [{"text": m["content"]}]} for m in pair.prompt]
        labels = zip(("preferred", "non-preferred"), sides, strict=True)
        candidates = [{"content": [{"text": text}], "preferenceLabel": label} for label, text in labels]
        messages = [*turns, {"role": "assistant", "candidates": candidates}]
        return {"schemaVersion": "bedrock-conversation-2024", "messages": messages}
    asked = {"input": {"messages": row["prompt"]}}
    return asked | {"preferred_output": row["chosen"], "non_preferred_output": row["rejected"]}
