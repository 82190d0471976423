"""Pairs in the forms that trainers elsewhere document; a private source is asked about first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import load_dataset
from trl.data_utils import is_conversational

from medstudy.batch.cli import main
from medstudy.report.exports import FORMS
from medstudy.training.preferences import Pair

LAST = "Fièvre \U0001f912 and\nchills\u2028\x85. Infection?"
TURNS = [("user", "An example?"), ("assistant", "yes"), ("user", LAST)]
MESSAGES = [{"role": role, "content": text} for role, text in TURNS]
PAIRS = [Pair("c1", "g1", MESSAGES, "yes", "no", "own"), Pair("c2", "g2", MESSAGES[-1:], "no", "maybe", "gold")]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


OPENAI = {"input": {"messages": MESSAGES}, "preferred_output": said("yes"), "non_preferred_output": said("no")}
#: The first pair, as the services' pages describe a line.
LINES = {
    "trl": {"prompt": MESSAGES, "chosen": said("yes"), "rejected": said("no")},
    **dict.fromkeys(("openai", "azure", "together", "fireworks"), OPENAI),
    "gemini": {
        "contents": [
            {"role": {"user": "user", "assistant": "model"}[role], "parts": [{"text": text}]} for role, text in TURNS
        ],
        "completions": [
            {"score": 1, "completion": {"role": "model", "parts": [{"text": "yes"}]}},
            {"score": 0, "completion": {"role": "model", "parts": [{"text": "no"}]}},
        ],
    },
    "nova": {
        "schemaVersion": "bedrock-conversation-2024",
        "messages": [
            *({"role": role, "content": [{"text": text}]} for role, text in TURNS),
            {
                "role": "assistant",
                "candidates": [
                    {"content": [{"text": "yes"}], "preferenceLabel": "preferred"},
                    {"content": [{"text": "no"}], "preferenceLabel": "non-preferred"},
                ],
            },
        ],
    },
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "private").mkdir()
    lines = "".join(json.dumps(vars(pair)) + "\n" for pair in PAIRS)
    (tmp_path / "private" / "pairs.jsonl").write_text(lines)
    source = {"shareable": True, "card": "synthetic_uti"}
    (tmp_path / "private" / "source.json").write_text(json.dumps(source))
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_as_its_reader_documents(run: Path, form: str) -> None:
    target = run / "out.jsonl"
    assert main(["pairs", str(run), form, str(target)]) == 0
    lines = target.read_text(encoding="utf-8").split("\n")[:-1]
    assert len(lines) == len(PAIRS) and json.loads(lines[0]) == LINES[form] and "Fièvre \U0001f912" in lines[0]
    if form == "trl":
        rows = load_dataset("json", data_files=str(target), split="train", cache_dir=str(run / "cache"))
        assert is_conversational(rows[0]) and rows.column_names == ["prompt", "chosen", "rejected"]


def test_a_private_source_needs_a_word_of_permission(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "private" / "source.json").write_text(json.dumps({"shareable": False}))
    words = ["pairs", str(run), "openai", str(run / "out.jsonl")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "gives patients' texts to the service" in error and "--allow-private" in error
    assert not (run / "out.jsonl").exists()
    assert main([*words, "--allow-private"]) == 0


@pytest.mark.parametrize(("form", "error"), [("trl", "pairs.jsonl does not exist"), ("x", "allowed: trl, openai")])
def test_what_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, error: str) -> None:
    assert main(["pairs", str(tmp_path), form, "x"]) == 2
    assert error in capsys.readouterr().err
