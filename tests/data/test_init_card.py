"""A first card from files alone: what it guesses is right here, and `check` has nothing against it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from medstudy.data.card import load_card
from medstudy.data.cases import DataError
from medstudy.data.init_card import init_card
from medstudy.data.load import load_cases
from medstudy.params import load_study

NOTES = pd.DataFrame(
    {
        "note_id": range(1, 41),
        "Patient": [f"p{i // 2}" for i in range(40)],
        "Text": [f"Fièvre et toux, jour {i}" for i in range(40)],
        "Diagnose": ["yes", "no", "no", "no"] * 10,
    }
)
VALUES = pd.DataFrame(
    {"age": ["61", "70", "n/a", "55"] * 10, "sodium": ["136,5", "140,1", "129,0", "133,2"] * 10, "outcome": [0, 1] * 20}
)


def csv(frame: pd.DataFrame, **how: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        frame.to_csv(folder / "ward.csv", index=False, **how)
        return folder / "ward.csv"

    return write


def workbook(folder: Path) -> Path:
    with pd.ExcelWriter(folder / "ward.xlsx") as book:
        pd.DataFrame({"about": ["exported"]}).to_excel(book, sheet_name="info", index=False)
        NOTES.to_excel(book, sheet_name="2024", index=False, startrow=3)
    return folder / "ward.xlsx"


def guessed(file: Path, task: str, folder: Path) -> tuple[list[str], list]:
    """What was said, and the cases that the card gives."""
    said = list(init_card([file], task, folder))
    assert load_study(folder).runs()  # parameters that a run takes
    card = load_card(folder / "card.yaml")
    assert card.shareable is False
    return said, load_cases(card, file.parent).cases


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (csv(NOTES, sep=";", encoding="cp1252"), "separator ';', Windows-1252"),
        (csv(NOTES, sep="\t", encoding="utf-8-sig"), "separator 'tab', UTF-8"),
        (csv(NOTES, encoding="utf-16"), "UTF-16"),
        (workbook, "sheet '2024' (the largest of 2), 3 rows above the header"),
    ],
)
def test_notes_with_a_label_are_read_whatever_the_file(write: Callable[[Path], Path], why: str, tmp_path: Path) -> None:
    said, cases = guessed(write(tmp_path), "text_classification", tmp_path / "mine")
    assert why in said[0]
    assert [(c.case_id, c.group_id, c.text, c.gold) for c in cases[:2]] == [
        ("1", "p0", "Fièvre et toux, jour 0", {"label": "yes"}),
        ("2", "p0", "Fièvre et toux, jour 1", {"label": "no"}),
    ]
    assert len(cases) == 40


def test_numbers_with_commas_and_words_for_no_value(tmp_path: Path) -> None:
    _, cases = guessed(csv(VALUES, sep=";")(tmp_path), "numeric_classification", tmp_path / "mine")
    assert cases[0].details["features"] == {"age": 61.0, "sodium": 136.5}
    assert cases[2].details["features"]["age"] is None
    assert [c.gold["label"] for c in cases[:2]] == ["no", "yes"]


@pytest.mark.parametrize(
    ("frame", "task", "said"),
    [
        (NOTES, "text_clasification", "no task 'text_clasification'"),
        (NOTES[["Text"]], "text_classification", "no column looks like the answer 'label'"),
        (NOTES.set_axis(["a", "a", "b", "label"], axis=1), "text_classification", "two columns are called a"),
    ],
)
def test_what_cannot_be_guessed_is_said(frame: pd.DataFrame, task: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        list(init_card([csv(frame)(tmp_path)], task, tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()
