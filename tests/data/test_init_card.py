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
from medstudy.data.splits import split_cases
from medstudy.studies import load_study
from medstudy.tasks import get_task
from medstudy.training.chat import load_chat
from medstudy.training.prompts import fit_context

NOTES = pd.DataFrame(
    {
        "note_id": range(1, 41),
        "Patient": [f"p{i // 2}" for i in range(40)],
        "Text": [f"Fièvre et toux, jour {i}" for i in range(40)],
        "Diagnose": ["yes", "no", "no", "no"] * 10,
    }
)
VALUES = pd.DataFrame(
    {
        "Age (years)": ["61", "70", "n/a", "55"] * 10,
        "sodium": ["136,5", "140,1", "129,0", "133,2"] * 10,
        "outcome": [0, 1] * 20,
    }
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


def lines(folder: Path) -> Path:
    NOTES.to_json(folder / "ward.jsonl", orient="records", lines=True)
    return folder / "ward.jsonl"


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
        (csv(NOTES, sep="\t", encoding="utf-16"), "UTF-16"),
        (workbook, "sheet '2024' (the largest of 2), 3 rows above the header"),
        (lines, "jsonl"),
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
    said, cases = guessed(csv(VALUES, sep=";")(tmp_path), "numeric_classification", tmp_path / "mine")
    assert "decimal sign ','" in said[0]
    assert cases[0].details["features"] == {"Age (years)": 61.0, "sodium": 136.5}
    assert cases[2].details["features"]["Age (years)"] is None
    assert [c.gold["label"] for c in cases[:2]] == ["no", "yes"]


def test_thousands_are_no_decimals_and_what_excel_writes_first_is_no_header(tmp_path: Path) -> None:
    frame = pd.DataFrame({"platelets": [f"{n},500" for n in range(96, 135)] + ["1,050,000"], "sodium": ["136.5"] * 40})
    file = csv(frame.assign(dose=["0.125", "2.250"] * 20, outcome=[0, 1] * 20), sep=";")(tmp_path)
    file.write_text("sep=;\n" + file.read_text())
    said, cases = guessed(file, "numeric_classification", tmp_path / "mine")
    assert "decimal" not in said[0] and "separator ';'" in said[0]
    assert cases[0].details["features"] == {"sodium": 136.5, "dose": 0.125}
    assert "not shown to the model (exclude): platelets" in said


def test_a_remark_in_the_labels_column_is_no_label(tmp_path: Path) -> None:
    """It would stand in every report. A rare level of urgency is a label all the same."""
    frame = NOTES.assign(Diagnose=["yes", "no", "no", "no"] * 9 + ["yes", "see Mrs. Huber's chart", "unsure", "no"])
    said, cases = guessed(csv(frame)(tmp_path), "text_classification", tmp_path / "mine")
    assert {case.gold["label"] for case in cases} == {"yes", "no", "unsure"} and len(cases) == 39
    assert any("TAKEN FOR REMARKS" in line and "Huber" in line for line in said)
    assert load_card(tmp_path / "mine" / "card.yaml").labels == {"label": ["no", "unsure", "yes"]}
    # one word may be a rare label, or a name: it stays, and is asked about
    [asked] = [line for line in said if "IN ONE OR TWO ROWS ONLY" in line]
    assert "['unsure']" in asked and "columns.missing" in asked


def test_a_remark_in_a_column_of_codes_is_not_shown(tmp_path: Path) -> None:
    """It was a key of the card's map, and the model was shown it. Words of several rows are codes."""
    lives = ["home", "nursing home"] * 19 + ["home", "with Mrs. Huber"]
    frame = VALUES.assign(lives=lives, ward=["acute ward", "acute care"] * 20)
    said, cases = guessed(csv(frame, sep=";")(tmp_path), "numeric_classification", tmp_path / "mine")
    assert "Huber" not in (tmp_path / "mine" / "card.yaml").read_text() + "\n".join(said)
    assert "lives: NOT SHOWN, as 1 rows hold remarks; see columns.fields" in said
    assert "not shown to the model (exclude): lives" in said and cases[0].details["features"]["ward"] == 1.0


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (["0,00001", "0,00002"], ["0.00001", "0.00002"]),
        (["5e-05", "3e-05"], ["0.00005", "0.00003"]),
        (["0,30000000000000004", "1"], ["0.300", "1.000"]),
        (["1,50", "2"], ["1.50", "2.00"]),
        (["<0,0625", "12,5"], ["<0,0625", "12.5000"]),
    ],
)
def test_small_numbers_stay_apart(cells: list[str], texts: list[str], tmp_path: Path) -> None:
    """They were rounded to three decimals, and all read 0."""
    frame = VALUES.assign(sodium=cells * 20)
    _, cases = guessed(csv(frame, sep=";")(tmp_path), "numeric_classification", tmp_path / "mine")
    assert [case.text.split("sodium: ")[1] for case in cases[:2]] == texts


@pytest.mark.parametrize("hospital", ["hospital_id", "Hospital No"])
@pytest.mark.parametrize("patient", ["patient_id", "subject_id", "MRN"])
def test_the_patient_wins_over_the_hospital_and_ids_are_no_values(hospital: str, patient: str, tmp_path: Path) -> None:
    ids = pd.DataFrame({hospital: [1, 2] * 20, patient: [f"p{i // 2}" for i in range(40)]})
    said, cases = guessed(csv(ids.join(VALUES), sep=";")(tmp_path), "numeric_classification", tmp_path / "mine")
    assert cases[3].group_id == "p1" and f"not shown to the model (exclude): {hospital}" in said


@pytest.mark.parametrize("name", ["label", "Outcome", "class", "diagnosis", "target", "final label"])
def test_a_name_that_says_answer_wins_over_one_that_holds_a_word_of_it(name: str, tmp_path: Path) -> None:
    frame = NOTES.rename(columns={"Diagnose": name})
    frame.insert(0, "marital_status", ["single", "married"] * 20)
    frame.insert(1, "final_result", ["a", "b"] * 20)
    _, cases = guessed(csv(frame)(tmp_path), "text_classification", tmp_path / "mine")
    assert {case.gold["label"] for case in cases} == {"yes", "no"}


def test_what_is_written_when_the_answer_is_known_is_not_shown(tmp_path: Path) -> None:
    """Seen once: the diagnosis was taken for the text, the expert's level and the nurse's error for numbers."""
    n = range(40)
    visits = {
        "Chief complaint": [f"pain {i}" for i in n],
        "Diagnosis": ["a very long final diagnosis"] * 40,
    }
    visits |= {"KTAS_nurse": [3, 4] * 20, "KTAS_expert": [2, 4] * 20, "Error_group": [1, 2] * 20}
    visits |= {"HR": ["88", "?"] * 20, "ST slope": ["1", "2.0", "?", "1.0"] * 10, "Disposition": ["home", "ward"] * 20}
    said, cases = guessed(csv(pd.DataFrame(visits))(tmp_path), "clinical_triage", tmp_path / "mine")
    assert cases[0].gold == {"provider": "home", "urgency": "level 2"}
    assert cases[1].text == "pain 1\nHR: not recorded\nST slope: 2.0"
    assert "not shown to the model (exclude): Diagnosis, KTAS_nurse, Error_group" in said
    assert "urgency from the least: level 4, level 2 (1 as the most urgent)" in said


def test_words_of_urgency_are_to_be_put_in_order_by_hand(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"message": [f"words {i}" for i in range(40)], "level": ["soon", "Later", "now", "later"] * 10}
    )
    said, _ = guessed(csv(frame.assign(team=["gp", "er"] * 20))(tmp_path), "clinical_triage", tmp_path / "mine")
    assert "urgency from the least: Later, now, soon (BY THE ALPHABET: order labels.urgency by hand)" in said


@pytest.mark.parametrize(
    "name", ["Pat-Nr", "Pat.-Nr.", "Patienten-Nr.", "PatNr", "Patientennummer", "Hospital No", "patient_id", "MRN"]
)
def test_the_patients_column_is_found_or_its_absence_said(name: str, tmp_path: Path) -> None:
    labels = ["Refill", "refill", "clinical question", "Clinical  question", "?", "N/A"]
    frame = pd.DataFrame({name: [f"P{i % 60}" for i in range(120)], "clerk": [f"c{i % 30}" for i in range(120)]})
    frame = frame.assign(message=[f"words {i}" for i in range(120)], label=labels * 20)
    said, cases = guessed(csv(frame)(tmp_path), "text_classification", tmp_path / "mine")
    assert cases[0].group_id == "P0" and len(cases) == 80 and len({case.gold["label"] for case in cases}) == 2
    assert "label: ['?', 'N/A'] taken for no value" in "\n".join(said)
    said, _ = guessed(csv(frame.rename(columns={name: "x"}))(tmp_path), "text_classification", tmp_path / "other")
    assert any("NO PATIENT'S COLUMN FOUND" in line and "'x' (60 values), 'clerk' (30 values)" in line for line in said)


@pytest.mark.parametrize(
    ("frame", "task", "said"),
    [
        (NOTES, "text_clasification", "no task 'text_clasification'"),
        (NOTES[["note_id", "Text"]], "text_classification", "no column looks like the answer 'label'"),
        (NOTES[["Text"]], "text_classification", "its first line, which must name the columns"),
        (NOTES.set_axis(["a", "a", "b", "label"], axis=1), "text_classification", "two columns are called a"),
    ],
)
def test_what_cannot_be_guessed_is_said(frame: pd.DataFrame, task: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        list(init_card([csv(frame)(tmp_path)], task, tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("n", [999, 1200, 1700])
def test_a_first_study_asks_for_no_more_cases_than_there_are(tmp_path, n):
    """From 1,000 rows on it kept the notebook's sizes, which are 1,500 cases."""
    notes = pd.DataFrame(
        {"Text": [f"fever, day {i}" for i in range(n)], "Diagnose": ["yes", "no"] * (n // 2) + ["no"] * (n % 2)}
    )
    _, cases = guessed(csv(notes)(tmp_path), "text_classification", tmp_path / "study")
    drawn = split_cases(cases, load_study(tmp_path / "study").runs()[0])
    assert all(vars(drawn).values())


def test_answers_in_words_that_the_built_in_model_does_not_know_have_room(tmp_path: Path) -> None:
    """28 tokens were written for answers of 31, and the first `check` refused the study."""
    rows = [
        f"{i};Seit {i} Tagen Fieber;{('Fachärztin für Übergewicht', 'Pflegekräfte')[i % 2]};nächste Woche"
        for i in range(30)
    ]
    rows += [f"{i};Seit {i} Tagen Husten;Notaufnahme;sofort" for i in range(30, 60)]
    (tmp_path / "portal.csv").write_text("\n".join(["Pat.-Nr.;Nachricht;Provider;Urgency", *rows]))
    [*_] = init_card([tmp_path / "portal.csv"], "clinical_triage", tmp_path / "study")
    run, card = load_study(tmp_path / "study").runs()[0], load_card(tmp_path / "study" / "card.yaml")
    assert card.columns.group_id == "Pat.-Nr."
    cases, lengths = fit_context(load_cases(card, tmp_path).cases, get_task(run.task, card), load_chat(run), run)
    assert len(cases) == 60 and max(lengths.answer) == run.max_new_tokens
