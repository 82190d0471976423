"""Preference pairs of a run in the forms that trainers elsewhere read, one JSON line a pair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medstudy.data.cases import DataError
from medstudy.training.preferences import Pair

Line = dict[str, Any]


def export_pairs(run: Path, form: str, target: Path, allow_private: bool = False) -> int:
    """Write the pairs of a finished run; returns how many.

    Args:
        run: its folder, ``results/<study>/<model>/<task>/seed<k>``.
        form: a key of `FORMS`.
        target: the file to write.
        allow_private: the file holds whole cases; of a source that may not be shown only with this.

    Raises:
        DataError: the run has no pairs, the form is unknown, or the source is private and nobody said so.
    """
    if form not in FORMS:
        raise DataError(f"unknown form '{form}' (allowed: {', '.join(FORMS)})")
    file, source = (run / "private" / name for name in ("pairs.jsonl", "source.json"))
    if not file.is_file():
        raise DataError(f"{file} does not exist: {run} is no run that has built its pairs")
    if not json.loads(source.read_text(encoding="utf-8"))["shareable"] and not allow_private:
        raise DataError(
            f"the cases of {run} may not be shown (their data card does not say `shareable: true`), and "
            "pairs hold them whole: uploading the file gives patients' texts to the service. If this is "
            "allowed, repeat with --allow-private"
        )
    with file.open(encoding="utf-8") as rows:
        pairs = [Pair(**json.loads(row)) for row in rows]
    lines = [json.dumps(FORMS[form](pair), ensure_ascii=False) + "\n" for pair in pairs]
    target.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _trl(pair: Pair) -> Line:
    """Conversational rows of TRL's `DPOTrainer`."""
    return dict(pair.row())


def _openai(pair: Pair) -> Line:
    """Preference rows of OpenAI, which Azure, Together and Fireworks read as well."""
    row = pair.row()
    return {
        "input": {"messages": row["prompt"]},
        "preferred_output": row["chosen"],
        "non_preferred_output": row["rejected"],
    }


def _gemini(pair: Pair) -> Line:
    """Preference rows of Gemini: contents end with the user's turn, one completion scores 1 and one 0."""

    def turn(role: str, text: str) -> Line:
        return {"role": role, "parts": [{"text": text}]}

    roles = {"user": "user", "assistant": "model"}
    return {
        "contents": [turn(roles[m["role"]], m["content"]) for m in pair.prompt],
        "completions": [
            {"score": score, "completion": turn("model", text)}
            for score, text in ((1, pair.chosen), (0, pair.rejected))
        ],
    }


def _nova(pair: Pair) -> Line:
    """Preference rows of Amazon Nova: the last turn holds two candidates."""

    def content(text: str) -> list[dict[str, str]]:
        return [{"text": text}]

    candidates = [
        {"content": content(pair.chosen), "preferenceLabel": "preferred"},
        {"content": content(pair.rejected), "preferenceLabel": "non-preferred"},
    ]
    turns: list[Line] = [{"role": m["role"], "content": content(m["content"])} for m in pair.prompt]
    return {
        "schemaVersion": "bedrock-conversation-2024",
        "messages": [*turns, {"role": "assistant", "candidates": candidates}],
    }


#: Documented at huggingface.co/docs/trl (dataset formats), developers.openai.com (direct preference
#: optimization), learn.microsoft.com, docs.together.ai, docs.fireworks.ai, docs.cloud.google.com (Gemini
#: preference tuning) and docs.aws.amazon.com (Nova, DPO), all as read in November 2026.
FORMS: dict[str, Callable[[Pair], Line]] = {
    "trl": _trl,
    "openai": _openai,
    "azure": _openai,
    "together": _openai,
    "fireworks": _openai,
    "gemini": _gemini,
    "nova": _nova,
}
