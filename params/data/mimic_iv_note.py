"""Table of the card mimic_iv_note: parts of notes as columns."""

from pathlib import Path

import pandas as pd

AFTER = "Medications on Admission:|Discharge Medications:|Discharge Disposition:"


def load(folder: Path) -> pd.DataFrame:
    """Two sections of every note as columns; the note itself, which holds the answer, is left out."""
    notes = pd.read_csv(folder / "discharge.csv.gz", dtype=str)
    sections = {"hospital_course": ("Brief Hospital Course:", AFTER)}
    sections |= {"instructions": ("Discharge Instructions:", "Followup Instructions:")}
    for name, (start, end) in sections.items():
        notes[name] = notes["text"].str.extract(rf"(?s){start}(.*?)(?:{end}|\Z)", expand=False)
    return notes.drop(columns="text")
