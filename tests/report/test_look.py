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


def test_a_confusion_matrix_is_in_the_order_of_urgency(run: Path) -> None:
    table = look.confusion(run, "dpo")
    assert table.columns.tolist() == ["routine", "soon", "urgent", "immediate", look.UNREAD]
    assert table.loc["routine", "soon"] == table.loc["soon", look.UNREAD] == table.loc["urgent", "urgent"] == 1
    assert table.to_numpy().sum() == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda run: look.confusion(run, "dpo", "colour"), "allowed: provider, urgency"),
        (lambda run: look.wrong_answers(run, "sftt"), "allowed: sft, dpo"),
        (lambda run: look.wrong_answers(run.parent, "sft"), "has no predictions yet"),
        (lambda run: look.compare_runs(run, run), "give a finished run"),
    ],
)
def test_what_is_not_there_is_named(run: Path, asked, said: str) -> None:
    with pytest.raises(DataError, match=said):
        asked(run)


def test_two_runs_are_compared_by_what_was_asked_and_what_came_out(tmp_path: Path) -> None:
    for name, beta, value in (("a", 0.1, 0.5), ("b", 0.5, 0.6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"parameters": {"dpo_beta": beta, "seed": 0}}))
        (tmp_path / name / "metrics.json").write_text(json.dumps({"dpo": {"f1": {"value": value}}}))
    table = look.compare_runs(tmp_path / "a", tmp_path / "b")
    assert table.to_dict("split")["data"] == [[0.1, 0.5], [0.5, 0.6]]
    assert list(table.index) == [("parameter", "dpo_beta"), ("dpo", "f1")]
    columns = ["scope", "name", "outcome", "contrast", "difference", "low", "high", "verdict"]
    for name, verdict in (("a", "inconclusive"), ("b", "DPO harms")):  # two studies
        row = ["study", "study", "mean", "dpo-sft", 0.1, 0.0, 0.2, verdict]
        pd.DataFrame([row], columns=columns).to_csv(tmp_path / name / "verdicts.csv")
    [row] = look.compare_runs(tmp_path / "a", tmp_path / "b").to_dict("records")
    assert (row["verdict first"], row["verdict second"]) == ("inconclusive", "DPO harms")


def test_an_arm_answers_a_text_of_ones_own_and_nothing_is_kept(params, card) -> None:
    run = Run(params)
    run.keep_source(card, [])
    before = sorted(run.folder.rglob("*"))
    assert isinstance(look.ask(run, "base", "A cough since Monday."), str)
    assert sorted(run.folder.rglob("*")) == before
    with pytest.raises(DataError, match="no model of arm 'dpo'"):
        look.ask(run, "dpo", "A cough")
