"""Tables as they come: each of these is read right, or its fault is named; none is silently wrong."""

import gzip
import io
import json
import re
import zipfile

import pandas as pd
import pytest
from made_up import asked
from made_up import ward_card as card

from medstudy.data import audit
from medstudy.data.cases import DataError
from medstudy.data.init_card import init_card
from medstudy.data.load import load_cases
from medstudy.data.splits import split_cases

NUMBER = {"text": "{fields}", "fields": [{"column": "x", "unit": "u"}]}
GROUPS = {"group_id": "id"}
OPEN = {"text": "{note}", "gold": {"diagnosis": {"column": "dx"}}}


def xlsx(**sheets):
    """A workbook; each sheet a list of rows."""
    with io.BytesIO() as buffer:
        with pd.ExcelWriter(buffer) as writer:
            for name, rows in sheets.items():
                pd.DataFrame(rows).to_excel(writer, sheet_name=name, index=False, header=False)
        return buffer.getvalue()


def archive(**files):
    """A zip archive of texts by name."""
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as made:
            for name, text in files.items():
                made.writestr(name, text)
        return buffer.getvalue()


def told(decimal=".", **file):
    """How a workbook is read."""
    return {"files": [{"path": "ward.csv"} | file], "format": "xlsx", "decimal": decimal}


def table(rows, header="note,uti"):
    """A csv text."""
    return "\n".join([header, *rows, ""])


PLAIN = "note,uti\na,1\nb,0\n"
SHEET = [["note", "uti"], ["a", 1], ["b", 0]]
LINES = {"format": "jsonl"}
#: Files that are no workbook which can be read, though most begin like one.
NO_BOOKS = {
    "LibreOffice": archive(mimetype="application/vnd.oasis.opendocument.spreadsheet"),
    "old, or with a password": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "binary": archive(**{"[Content_Types].xml": "<a/>", "xl/workbook.bin": ""}),
    "an archive": archive(**{"ward.csv": PLAIN}),
    "Word": archive(**{"[Content_Types].xml": "<a/>", "word/document.xml": "<a/>"}),
    "half of one": xlsx(A=SHEET)[:3000],
    "broken inside": archive(**{"[Content_Types].xml": "<a", "xl/workbook.xml": "<a/>"}),
    "half of a gzip file": gzip.compress(PLAIN.encode())[:20],
    "a broken gzip file": gzip.compress(PLAIN.encode())[:12] + b"no more of it",
}
#: content, columns, load, and the texts that are right
RIGHT = {
    "byte order mark": (("\ufeff" + PLAIN).encode(), {}, {}, ["a", "b"]),
    "UTF-16 with a mark": (PLAIN.encode("utf-16"), {}, {}, ["a", "b"]),
    "Windows-1252": ("note,uti\npatient’s,1\nb,0\n".encode("cp1252"), {}, {"encoding": "cp1252"}, ["patient’s", "b"]),
    "tabs and lines of Windows": (PLAIN.replace(",", "\t").replace("\n", "\r\n"), {}, {"sep": "\t"}, ["a", "b"]),
    "no header line, braces, a zero in front": (
     "Fièvre {x};0431\nNéant;NA\n".encode("cp1252"),
     {"gold": {"label": {"column": "icd", "map": {"0431": "yes", "NA": "no"}}}},
     {"sep": ";", "encoding": "cp1252", "names": ["note", "icd"]}, ["Fièvre {x}", "Néant"]),
    "gzip without its name": (gzip.compress(PLAIN.encode()), {}, {}, ["a", "b"]),
    "blanks around names and cells": (" note , uti \n a , 1 \nb,0\n", {}, {}, ["a", "b"]),
    "title row": (xlsx(A=[["Ward 3, 2024", None], *SHEET]), {}, told(skip_rows=1), ["a", "b"]),
    "the sheet that is named": (xlsx(A=[["x"]], B=SHEET), {}, told(sheet="B"), ["a", "b"]),
    "number cells of a sheet": (xlsx(A=[["x", "uti"], [36.5, 1], [1000.0, 0]]), NUMBER, told(decimal=","),
     ["x: 36.5 u", "x: 1000 u"]),
    "faults of formulas": (xlsx(A=[["x", "uti"], ["#N/A", 1], [2, 0]]), NUMBER, told(),
     ["x: not recorded", "x: 2 u"]),
    "line ends of other programs": (xlsx(A=[["note", "uti"], ["a_x000D_\nb_x000d_c", 1], ["d_x000D__x000A_e", 0]]),
     {}, told(), ["a\nb\nc", "d\ne"]),
    "decimal commas": ('x,uti\n"36,5",1\n"1234,5",0\n', NUMBER, {"decimal": ","}, ["x: 36.5 u", "x: 1234.5 u"]),
    "below and above the range": ("x,uti\n<0.3,1\n> 100,0\n", NUMBER, {}, ["x: <0.3 u", "x: > 100 u"]),
    "a list of words": ('{"note": ["a", "b"], "uti": 1}\n{"note": "c", "uti": 0}\n', {}, LINES, ["a, b", "c"]),
    "codes as 1 and 1.0": ("note,uti\na,1.0\nb,0.\n", {}, {}, ["a", "b"]),
    "sodium": ("note,uti\nNA,1\nb,0\n", {}, {}, ["NA", "b"]),
    "a missing mark as 9 and 9.0": ("note,uti\na,1\nb,0\nc,9.0\n", {"missing": {"uti": ["9"]}}, {}, ["a", "b"]),
}  # fmt: skip


def cases_of(folder, content, columns, load, **how):
    (folder / "ward.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    loaded = load_cases(card(columns, **({"files": [{"path": "ward.csv"}]} | load | how)), folder)
    assert len(loaded.cases) + len(loaded.dropped) == loaded.rows_in
    return loaded


@pytest.mark.parametrize(("content", "columns", "load", "texts"), RIGHT.values(), ids=RIGHT)
def test_read_right(tmp_path, content, columns, load, texts):
    cases = cases_of(tmp_path, content, columns, load).cases
    assert [case.text for case in cases] == texts
    assert [case.gold["label"] for case in cases] == ["yes", "no"]


#: content, columns, load, and words of the error
REFUSED = {
    "Windows-1252 read as latin-1": ("note,uti\npatient’s,1\n".encode("cp1252"), {}, {"encoding": "latin-1"},
     ["only Windows-1252 prints", "encoding: cp1252"]),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), {}, {}, ["bytes of 0", "utf-16-le"]),
    "backslashes before quotes": ('note,uti\n"he said \\"x\\" twice",1\n', {}, {}, ["escapechar"]),
    "UTF-8 read as Windows-1252": ("note,uti\nFièvre,1\n", {}, {"encoding": "cp1252"}, ["it is UTF-8, not cp1252"]),
    "Windows-1252 read as UTF-8": ("note,uti\nFièvre,1\n".encode("cp1252"), {}, {}, ["byte 11 is no utf-8", "cp1252"]),
    "a workbook read as csv": (xlsx(A=SHEET), {}, {}, ["format: xlsx"]),
    "a sheet that is not there": (xlsx(A=SHEET), {}, told(sheet="C"), ["no sheet 'C'", "A"]),
    "broken json": ('{"note": ', {}, LINES, ["cannot be read as jsonl", "line 1"]),
    "a table in a cell": ('{"note": {"a": 1}, "uti": 1}\n', {}, LINES, ["column 'note'", "a table within a cell"]),
    "empty file": ("", {}, {}, ["cannot be read"]),
    "cells without a name": ("note,uti\na,b,1\nc,d,0\n", {}, {}, ["Expected 2 fields in line 2, saw 3"]),
    "wrong separator": (PLAIN.replace(",", ";"), {}, {}, ["is load.sep right?"]),
    "two columns of one name": ("note,uti,note\na,1,x\nb,0,y\n", {}, {}, ["column 'note' is there twice"]),
    "wrong leak column": (PLAIN, {"exclude": ["utis"]}, {}, ["no column 'utis' (exclude)"]),
    "points where commas are said": ('x,uti\n36.5,1\n"36,5",0\n', NUMBER, {"decimal": ","},
     ["'36.5' (1 rows)", "decimal ','"]),
    "decimal comma": ('x,uti\n80,1\n"36,5",0\n', NUMBER, {}, ["'36,5' (1 rows) is not a number", "load.decimal"]),
    "not a number": ("x,uti\n80,1\nfast,0\nfast,1\n", NUMBER, {},
     ["row 2, column 'x': 'fast' (2 rows) is not a number"]),
    "a unit in the cell": ("x,uti\n80 bpm,1\n2,0\n", NUMBER, {}, ["'80 bpm'"]),
    "unknown code": ("sex,uti\n1,1\n2,0\n", {"text": "{fields}", "fields": [{"column": "sex", "map": {"1": "male"}}]},
     {}, ["column 'sex': '2' (1 rows) is not among the allowed (1)"]),
    "labels that are not foreseen": ("note,uti\na,1\nb,7\nc,x\nd,7\n", {}, {},
     ["'7' (2 rows), 'x' (1 rows)", "columns.missing.uti"]),
    "not one of the labels": ("note,uti\na,yes\nb,Yes!\n", {"gold": {"label": {"column": "uti"}}}, {},
     ["'Yes!'", "allowed (no, yes)"]),
    "one class only": ("note,uti\na,1\nb,1\n", {}, {}, ["all 2 cases have one label, 'yes'"]),
    "nothing left": ("note,uti\n,1\nb,\n", {}, {}, ["no case is left (1 x no text", "1 x no text in column 'note'"]),
    "case id twice": ("id,note,uti\n1,x,1\n1.0,y,0\n", {"case_id": "id"}, {}, ["case id '1'", "row 1", "row 2"]),
    "leading zeros": ("id,note,uti\n0012,x,1\n12,y,0\n", GROUPS, {}, ["'0012' and '12'", "leading zeros"]),
    "ids in two cases": ("id,note,uti\np1,x,1\nP1,y,0\n", GROUPS, {}, ["'p1' and 'P1'", "two patients"]),
    "ids that a spreadsheet cut": ("id,note,uti\n1.23E+11,x,1\n1,y,0\n", GROUPS, {}, ["cut by a spreadsheet"]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "columns", "load", "said"), REFUSED.values(), ids=REFUSED)
def test_refused_and_named(tmp_path, content, columns, load, said):
    with pytest.raises(DataError) as error:
        split_cases(cases_of(tmp_path, content, columns, load).cases, asked(20, 8, 16, 0, 0, n_prefer=10))
    assert all(words in str(error.value) for words in said), str(error.value)


@pytest.mark.parametrize("form", ["xlsx", "csv", ""])
@pytest.mark.parametrize("content", NO_BOOKS.values(), ids=NO_BOOKS)
def test_files_that_are_no_workbook_are_named_by_check_and_init_card(tmp_path, content, form):
    """Most were tracebacks of an import, a key or a broken archive."""
    with pytest.raises(DataError, match=r"ward\.csv cannot be read") as error:
        if form:
            cases_of(tmp_path, content, {}, {"format": form})
        (tmp_path / "ward.csv").write_bytes(content)
        list(init_card([tmp_path / "ward.csv"], "text_classification", tmp_path / "mine"))
    said = "say `format: xlsx`" if form == "csv" else "save it as .xlsx without a password, also .ods and .xlsb"
    assert said in str(error.value) or content.startswith(b"\x1f") and form != "xlsx"


WORDS = [f"word{i} on day{i % 7}" for i in range(60)]
#: content, columns and words of the notes that `medstudy check` prints
NOTED = {
    "texts that say nothing": (table(f"{'none' if i % 9 == 0 else w},{i % 2}" for i, w in enumerate(WORDS)), {},
     "'none' (7) is shown as it is"),
    "wrong signs": (table(f"{w}{' FiÃ¨vre' * (i < 4)},{i % 2}" for i, w in enumerate(WORDS)), {},
     "4 cells hold signs of a wrong encoding"),
    "a quote left open": (
        table((f'{i},"{w},{i % 2}' if i == 5 else f'{i},{w}",{i % 2}' if i == 9 else f"{i},{w},{i % 2}"
               for i, w in enumerate(WORDS)), "id,note,uti"), {}, "looks like a row"),
    "cells that were cut": (table(f"{'x' * 32767 if i == 3 else w},{i % 2}" for i, w in enumerate(WORDS)), {},
     "just the length"),
    "0 mmHg": (table((f"{w},{i % 2},{0 if i < 3 else 90 + i % 40}" for i, w in enumerate(WORDS)), "note,uti,x"),
     {"text": "{note}\n{fields}", "fields": NUMBER["fields"]}, "does 0 (3 times) mean 'not known'?"),
    "999 years": (table((f"{w},{i % 2},{999 if i < 3 else 30 + i % 40}" for i, w in enumerate(WORDS)), "note,uti,x"),
     {"text": "{note}\n{fields}", "fields": NUMBER["fields"]}, "does 999 (3 times) mean 'not known'?"),
    "small numbers that all read 0": (
     table((f"{w},{i % 2},0.0000{i % 9 + 1}" for i, w in enumerate(WORDS)), "note,uti,x"),
     {"text": "{note}\n{fields}", "fields": [{"column": "x", "decimals": 3}]},
     "x: decimals: 3 makes different values read alike"),
    "a rare label": (table(f"{w},{int(i % 10 == 0)}" for i, w in enumerate(WORDS)), {}, "label 'yes' is rare"),
    "a label word in the text": (table(f"{w} {'yes' if i % 2 else ''},{i % 2}" for i, w in enumerate(WORDS)), {},
     "'yes' alone tells label"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "columns", "said"), NOTED.values(), ids=NOTED)
def test_noted_by_check(tmp_path, content, columns, said):
    loaded = cases_of(tmp_path, content, columns, {})
    splits = split_cases(loaded.cases, asked(20, 8, 16, 0, 0, n_prefer=10))
    mine = card(columns)
    lines = list(audit.notes(mine, loaded, audit.audit(loaded, splits)))
    assert any(said in line for line in lines), lines


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (NOTED["texts that say nothing"][0], "'none' (< 11) is shown as it is"),
        (NOTED["wrong signs"][0], ": < 11 cells hold signs of a wrong encoding"),
        (table(f"{w if i > 7 else WORDS[0]},{i % 2}" for i, w in enumerate(WORDS)), "that repeat a text: < 11; see"),
        (table(f"{w if i > 7 else WORDS[0]},{i % 2}" for i, w in enumerate(WORDS)), "group holds < 11 of 60 cases"),
    ],
)
def test_notes_on_a_private_source_mask_small_counts(tmp_path, content, said):
    loaded = cases_of(tmp_path, content, {}, {}, shareable=False)
    splits = split_cases(loaded.cases, asked(20, 8, 16, 0, 0, n_prefer=10))
    lines = list(audit.notes(card(shareable=False), loaded, audit.audit(loaded, splits)))
    assert any(said in line for line in lines), lines


@pytest.mark.parametrize(
    ("content", "said"),
    [("note,uti\n,1\nb,\n", "no case is left (< 11 x no text"), ("note,uti\na,1\nb,1\n", "all < 11 cases have")],
)
def test_errors_of_a_private_source_mask_small_counts(tmp_path, content, said):
    with pytest.raises(DataError, match=re.escape(said)):
        cases_of(tmp_path, content, {}, {}, shareable=False)


def test_one_rule_for_ids_in_all_files(tmp_path):
    (tmp_path / "a.csv").write_text("id,note,uti\n1000,a,1\n0012,b,0\n")
    (tmp_path / "b.csv").write_text("id,note,uti\n1000.0,c,1\n")
    loaded = load_cases(card(GROUPS, files=[{"path": "a.csv"}, {"path": "b.csv"}]), tmp_path)
    assert [case.group_id for case in loaded.cases] == ["1000", "0012", "1000"]
    frame = pd.DataFrame({"id": [1000, "1000", 1000.0], "note": list("abc"), "uti": [1, 0, 1]})
    assert {case.group_id for case in load_cases(card(GROUPS), frame=frame).cases} == {"1000"}


def test_options_must_hold_the_answer_once(tmp_path):
    row = {"note": "Which?", "dx": "gout", "options": {"A": "gout", "B": "sepsis"}}
    columns = OPEN | {"details": {"options": "options"}}
    right = cases_of(tmp_path, json.dumps(row), columns, LINES, task="clinical_reasoning").cases
    assert right[0].details["options"] == row["options"]
    for wrong in ({"dx": "Gout, acute"}, {"options": {"A": "gout", "B": "gout"}}):
        with pytest.raises(DataError, match=r"ward.csv row 1, column 'options'.*the right answer among them"):
            cases_of(tmp_path, json.dumps(row | wrong), columns, LINES, task="clinical_reasoning")


@pytest.mark.parametrize(
    ("columns", "content"),
    [
        (NUMBER, "x,uti\n80,1\nGrobblestone,0\n"),
        ({"case_id": "id"}, "id,note,uti\nGrobblestone,x,1\nGrobblestone,y,0\n"),
        (GROUPS, "id,note,uti\nGrobblestone,x,1\ngrobblestone,y,0\n"),
        ({"gold": {"label": {"column": "uti"}}}, "note,uti\na,yes\nb,Grobblestone\n"),
        ({}, "Grobblestone,1\nb,0\n"),
        ({"text": "{Grobble stone}"}, "Grobblestone,1\nb,0\n"),
        ({}, '{"note": "Grobblestone", "uti": 1\n'),
        # what other patients' cells are mapped to
        ({"text": "{fields}", "fields": [{"column": "note", "map": {"Grobblestone": "x"}}]}, "note,uti\nb,1\nb,0\n"),
        ({"gold": {"label": {"column": "uti", "map": {"Grobblestone": "yes", "b": "no"}}}}, "note,uti\na,b\nb,c\n"),
    ],
)
def test_errors_of_a_private_source_show_no_cell(tmp_path, columns, content):
    load = LINES if content.startswith("{") else {}
    with pytest.raises(DataError, match="ward") as error:
        cases_of(tmp_path, content, columns, load, shareable=False)
    assert "grobblestone" not in (str(error.value) + str(error.value.__cause__ or "")).casefold()


def test_a_private_source_tells_how_many_values_are_allowed_and_names_labels(tmp_path):
    columns = {"text": "{fields}", "fields": [{"column": "note", "map": {"a": "x", "b": "y"}}]}
    with pytest.raises(DataError, match="is not among the 2 values of columns.fields map; extend columns.fields map"):
        cases_of(tmp_path, "note,uti\na,1\nc,0\n", columns, {}, shareable=False)
    with pytest.raises(DataError, match=re.escape("is not among the allowed (no, yes)")):
        cases_of(tmp_path, "note,uti\na,yes\nb,x\n", {"gold": {"label": {"column": "uti"}}}, {}, shareable=False)


def test_a_private_source_shows_values_that_are_nobodys_own(tmp_path):
    content = table([f"{w},{'maybe' if i < 12 else i % 2}" for i, w in enumerate(WORDS)] + ["x,Grobblestone"])
    with pytest.raises(DataError, match=re.escape("'maybe' (12 rows) and 1 other value (not shown")) as error:
        cases_of(tmp_path, content, {}, {}, shareable=False)
    assert "Grobblestone" not in str(error.value)
