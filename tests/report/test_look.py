"""A closer look: what the one-liners show is what the predictions hold."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from medstudy.data.cases import DataError
from medstudy.report import look
from medstudy.runs import Run

#: case -> right urgency, and what SFT and DPO said ("" could not be read).
SAID = {"c1": ("routine", "routine", "soon"), "c2": ("urgent", "soon", "urgent"), "c3": ("soon", "soon", "")}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    private = tmp_path / "seed0" / "private"
    private.mkdir(parents=True)
    rows = [
        {"case_id": case, "arm": arm, "output": said or "hm", "score_correct": float(said == gold)}
        | {"gold": json.dumps({"urgency": gold}), "answer": json.dumps({"urgency": said} if said else {})}
        for case, (gold, *both) in SAID.items()
        for arm, said in zip(("sft", "dpo"), both, strict=True)
    ]
    pd.DataFrame(rows).to_parquet(private / "predictions.parquet")
    cases = pd.DataFrame({"case_id": list(SAID), "texts": [[f"note {case}"] for case in SAID]})
    cases.to_parquet(private / "cases.parquet")
    (private / "source.json").write_text(json.dumps({"card": "synthetic_messages", "shareable": True}))
    return private.parent


def test_answers_stand_beside_their_cases(run: Path) -> None:
    assert look.wrong_answers(run, "sft").data["text"].tolist() == ["note c2"]
    assert look.wrong_answers(run, "dpo").data["output"].tolist() == ["soon", "hm"]
    table = look.side_by_side(run, "sft", "dpo", n=2).data
    assert table[["sft", "dpo"]].to_numpy().tolist() == [["routine", "soon"], ["soon", "urgent"]]


def test_a_confusion_matrix_is_in_the_order_of_urgency_and_hides_few_patients(run: Path) -> None:
    table = look.confusion(run, "dpo")
    assert table.columns.tolist() == ["routine", "soon", "urgent", "immediate", look.UNREAD]
    assert table.loc["routine", "soon"] == table.loc["soon", look.UNREAD] == table.loc["urgent", "urgent"] == 1
    assert table.to_numpy().sum() == 3
    source = run / "private" / "source.json"
    source.write_text(source.read_text().replace("true", "false"))
    private = look.confusion(run, "dpo")
    assert private.loc["routine", "soon"] == private.loc["urgent", "urgent"] == "< 11"
    assert set(private.to_numpy().flat) == {0, "< 11"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda run: look.confusion(run, "dpo", "colour"), "allowed: provider, urgency"),
        (lambda run: look.wrong_answers(run, "sftt"), "allowed: sft, dpo"),
        (lambda run: look.wrong_answers(run.parent, "sft"), "has no predictions yet"),
    ],
)
def test_what_is_not_there_is_named(run: Path, asked, said: str) -> None:
    with pytest.raises(DataError, match=said):
        asked(run)


def test_an_arm_answers_a_text_of_ones_own_and_nothing_is_kept(params, card) -> None:
    run = Run(params)
    run.keep_source(card, [])
    before = sorted(run.folder.rglob("*"))
    assert isinstance(look.ask(run, "base", "A cough since Monday."), str)
    assert sorted(run.folder.rglob("*")) == before
    with pytest.raises(DataError, match="no model of arm 'dpo'"):
        look.ask(run, "dpo", "A cough")
