"""Pairs in the forms that trainers elsewhere document; a private source is asked about first."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from medstudy.batch.cli import main
from medstudy.report.exports import FORMS, line_of
from medstudy.training.preferences import Pair

PROMPT = [
    {"role": "user", "content": "An example?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "Fièvre \U0001f912 and\nchills\u2028\x85. Infection?"},
]
PAIRS = [Pair("c1", "g1", PROMPT, "yes", "no", "own"), Pair("c2", "g2", PROMPT[-1:], "no", "maybe", "gold")]


def strict(**properties: object) -> dict:
    """A JSON object with these properties and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array(items: dict, least: int = 1, most: int = 100) -> dict:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


TEXT = {"type": "string", "minLength": 1}
MESSAGE = strict(role={"enum": ["system", "user", "assistant"]}, content=TEXT)
ANSWER = array(strict(role={"const": "assistant"}, content=TEXT), 1, 1)
PART = array(strict(text=TEXT))
CANDIDATE = strict(content=PART, preferenceLabel={"enum": ["preferred", "non-preferred"]})
OPENAI = strict(input=strict(messages=array(MESSAGE)), preferred_output=ANSWER, non_preferred_output=ANSWER)
COMPLETION = strict(score={"enum": [0, 1]}, completion=strict(role={"const": "model"}, parts=PART))
#: As the services' pages describe a line.
SHAPES = {
    "trl": strict(prompt=array(MESSAGE), chosen=ANSWER, rejected=ANSWER),
    **dict.fromkeys(("openai", "azure", "together", "fireworks"), OPENAI),
    "gemini": strict(
        contents=array(strict(role={"enum": ["user", "model"]}, parts=PART)),
        completions=array(COMPLETION, 2, 2),
    ),
    "nova": strict(
        schemaVersion={"const": "bedrock-conversation-2024"},
        messages=array(
            {
                "oneOf": [
                    strict(role={"enum": ["user", "assistant"]}, content=PART),
                    strict(role={"const": "assistant"}, candidates=array(CANDIDATE, 2, 2)),
                ]
            }
        ),
    ),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "private").mkdir(parents=True)
    lines = "".join(json.dumps(vars(pair)) + "\n" for pair in PAIRS)
    (folder / "private" / "pairs.jsonl").write_text(lines)
    (folder / "private" / "source.json").write_text(json.dumps({"shareable": True, "card": "synthetic_uti"}))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_shape_that_its_reader_documents(run: Path, form: str) -> None:
    target = run / "out.jsonl"
    assert main(["pairs", str(run), form, str(target)]) == 0
    lines = [json.loads(line) for line in target.read_bytes().decode().split("\n")[:-1]]
    assert len(lines) == len(PAIRS)
    for line in lines:
        jsonschema.validate(line, SHAPES[form])
    said = json.dumps(lines[0], ensure_ascii=False)
    assert "Fièvre \U0001f912 and" in said
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(lines[0] | {"more": 1}, SHAPES[form])


def test_the_last_turns_are_where_they_are_looked_for() -> None:
    gemini, nova = line_of(PAIRS[0], "gemini"), line_of(PAIRS[0], "nova")
    assert [turn["role"] for turn in gemini["contents"]] == ["user", "model", "user"]
    scores = {c["score"]: c["completion"]["parts"][0]["text"] for c in gemini["completions"]}
    assert scores == {1: "yes", 0: "no"}
    assert [turn["role"] for turn in nova["messages"]] == ["user", "assistant", "user", "assistant"]
    labels = {c["preferenceLabel"]: c["content"][0]["text"] for c in nova["messages"][-1]["candidates"]}
    assert labels == {"preferred": "yes", "non-preferred": "no"}


def test_trl_reads_its_form(run: Path) -> None:
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    main(["pairs", str(run), "trl", str(run / "out.jsonl")])
    rows = load_dataset("json", data_files=str(run / "out.jsonl"), split="train", cache_dir=str(run / "cache"))
    assert is_conversational(rows[0])
    assert rows.column_names == ["prompt", "chosen", "rejected"]


def test_a_private_source_needs_a_word_of_permission(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "private" / "source.json").write_text(json.dumps({"shareable": False}))
    words = ["pairs", str(run), "openai", str(run / "out.jsonl")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "gives patients' texts to the service" in said and "--allow-private" in said
    assert not (run / "out.jsonl").exists()
    assert main([*words, "--allow-private"]) == 0


def test_a_folder_without_pairs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", str(tmp_path), "trl", "x"]) == 2
    assert "pairs.jsonl does not exist" in capsys.readouterr().err
