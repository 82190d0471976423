"""From files, hub and scikit-learn to cases: no row lost, every fault named."""

import hashlib
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from made_up import ward_card

from medstudy.data.card import DataCard
from medstudy.data.cases import DataError
from medstudy.data.load import load_card, load_cases
from medstudy.data.tables import source_files
from medstudy.runs import project_root

CSV = """id,patient,note,pulse,sex,lactate,uti,code
a,p1,"Burning.\r\nFever.",80,1,2.50,1,x
b,p1,No complaints,,2.0,??,0,x
c,p2,,90,1,1,1,x
d,p3,Stone,101.6,1,0,,x
e,p4,Haematuria,99,2,12,9,x
"""
FIELDS = [
    {"column": "pulse", "wording": "Pulse", "unit": "/min", "decimals": 0},
    {"column": "sex", "wording": "Sex", "map": {"1": "male", "2": "female"}},
    {"column": "lactate", "unit": "mmol/L", "missing": ""},
]


def card(columns=None, files=(("ward.csv", None),), **load):
    """A text-classification card on csv files; `load` and `columns` override parts."""
    listed = [{"path": path} | ({"split": split} if split else {}) for path, split in files]
    return ward_card({"missing": {"*": ["9"]}} | (columns or {}), listed, **load)


@pytest.fixture
def ward(tmp_path):
    (tmp_path / "ward.csv").write_text(CSV, encoding="utf-8", newline="")
    return tmp_path


def load(columns, folder, content=None, **rest):
    if content is not None:
        (folder / "ward.csv").write_text(content, encoding="utf-8")
    loaded = load_cases(card(columns, **rest), folder)
    assert len(loaded.cases) + len(loaded.dropped) == loaded.rows_in
    return loaded


def test_rows_without_text_or_answer_are_dropped_and_counted(ward):
    loaded = load({}, ward)
    assert loaded.rows_in == 5
    assert [c.case_id for c in loaded.cases] == ["ward-1", "ward-2"]
    assert [(d.row, d.reason) for d in loaded.dropped] == [
        ("ward.csv row 3", "no text in column 'note'"),
        ("ward.csv row 4", "no answer for 'label' in column 'uti'"),
        ("ward.csv row 5", "no answer for 'label' in column 'uti'"),
    ]
    assert loaded.cases[0].text == "Burning.\nFever."
    assert loaded.cases[0].gold == {"label": "yes"}


def test_fields_become_lines_and_features(ward):
    columns = {
        "text": "{note}\n{fields}",
        "fields": FIELDS,
        "missing": {"lactate": ["??"], "uti": ["9"]},
        "case_id": "id",
    }
    first, second = load(columns | {"group_id": "patient"}, ward).cases
    assert first.text == "Burning.\nFever.\nPulse: 80 /min\nSex: male\nlactate: 2.5 mmol/L"
    assert second.text == "No complaints\nPulse: not recorded\nSex: female"
    assert second.details == {"missing": ["pulse", "lactate"], "features": {"pulse": None, "sex": 2.0, "lactate": None}}
    assert (first.case_id, first.group_id, second.group_id) == ("a", "p1", "p1")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "xlsx"])
def test_formats_give_the_same_cases(ward, kind):
    frame = pd.DataFrame({"note": ["one", "two", None], "pulse": [80.0, 90.5, None], "uti": [1, 0, 1]})
    path = ward / f"other.{kind}"
    lines = partial(frame.to_json, orient="records", lines=True)
    {"jsonl": lines, "parquet": frame.to_parquet, "xlsx": partial(frame.to_excel, index=False)}[kind](path)
    columns = {"text": "{note}\n{fields}", "fields": [{"column": "pulse", "unit": "/min"}]}
    loaded = load(columns, ward, files=[(path.name, None)], format=kind)
    assert [c.text for c in loaded.cases] == ["one\npulse: 80 /min", "two\npulse: 90.5 /min"]
    assert [c.gold["label"] for c in loaded.cases] == ["yes", "no"]
    assert [d.reason for d in loaded.dropped] == ["no text in column 'note'"]


REPEATS = "note,uti\nSame  text,1\nsame text,1\nTwo answers,0\ntwo answers,1\nOther,0\n"


def test_repeats_share_a_group_or_are_dropped(tmp_path):
    kept = load({}, tmp_path, REPEATS).cases
    assert len(kept) == 5 and len({c.group_id for c in kept}) == 3
    loaded = load({"repeats": "drop"}, tmp_path, REPEATS)
    assert [c.text for c in loaded.cases] == ["Same  text", "Other"]
    reasons = [d.reason for d in loaded.dropped]
    assert sorted(reasons) == ["repeats an earlier text"] + ["same text, different answers"] * 2


def test_a_group_in_two_given_splits_stays_in_test_only(tmp_path):
    (tmp_path / "train.csv").write_text("note,uti\nA,1\nB,0\nC,1\n")
    (tmp_path / "test.csv").write_text("note,uti\nb,0\nD,1\n")
    loaded = load({}, tmp_path, files=[("train.csv", "train"), ("test.csv", "test")])
    assert [(c.text, c.split) for c in loaded.cases] == [("A", "train"), ("C", "train"), ("b", "test"), ("D", "test")]
    assert loaded.dropped[0].row == "train.csv row 2" and "later split" in loaded.dropped[0].reason


def test_source_file_names_the_site(tmp_path):
    for site, name in (("north", "a"), ("south", "b")):
        (tmp_path / site).mkdir()
        (tmp_path / site / "ed.csv").write_text(f"note,uti\n{name},1\n{name}{name},0\n")
    files = [("north/ed.csv", "train"), ("south/ed.csv", "test")]
    cases = load({"details": {"site": "source_file"}}, tmp_path, files=files).cases
    assert [c.case_id for c in cases] == ["north/ed-1", "north/ed-2", "south/ed-1", "south/ed-2"]
    assert cases[2].details["site"] == "south/ed"


@pytest.mark.parametrize(
    ("mapping", "splits"),
    [
        ({"2018": "train", "2019": "validation", "2020": "test"}, ["train", "test", "validation", "test"]),
        ({}, "is not among the allowed (train, prefer, validation, test); extend columns.split.map"),
        ({"2018": "train", "2019": "train", "2020": "train"}, "columns.split leaves cases for ['train'] only"),
    ],
)
def test_splits_by_a_column(tmp_path, mapping, splits):
    content = "note,uti,when\na,0,2018\nb,1,2020\nc,1,2019.0\nd,0,2020\ne,1,\n"
    columns = {"split": {"column": "when", "map": mapping}}
    if isinstance(splits, str):
        with pytest.raises(DataError, match=re.escape(splits)):
            load(columns, tmp_path, content)
        return
    loaded = load(columns, tmp_path, content)
    assert [c.split for c in loaded.cases] == splits
    assert [d.reason for d in loaded.dropped] == ["no split in column 'when'"]


def test_a_worse_answer_of_the_source_is_kept_with_the_case(tmp_path):
    nurse = {"label": {"column": "nurse", "map": {"0": "no", "1": "yes"}}}
    content = "note,uti,nurse\na,1,0\nb,0,0\nc,1,\nd,0,9\n"
    cases = load({"rejected": nurse, "missing": {"nurse": ["9"]}}, tmp_path, content).cases
    assert [c.details for c in cases] == [{"rejected": {"label": "no"}}, {}, {}, {}]


def test_files_are_found_by_name_in_sub_folders(ward):
    (ward / "deep" / "er").mkdir(parents=True)
    (ward / "ward.csv").rename(ward / "deep" / "er" / "ward.csv")
    assert load({}, ward).rows_in == 5
    (ward / "deep" / "ward.csv").write_text(CSV)
    with pytest.raises(DataError, match="is there 2 times"):
        load({}, ward)


def test_a_missing_file_names_the_path_and_both_remedies(tmp_path):
    with pytest.raises(DataError, match=r"ward\.csv or a folder below, nor beside the card; set data_root .* or leave"):
        load({}, tmp_path)
    with pytest.raises(DataError, match=r"no file .*nowhere\.csv, nor beside the card; set data_root"):
        load_cases(card(files=[("nowhere.csv", None)]))
    with pytest.raises(DataError, match="is not a folder"):
        load({}, tmp_path / "nowhere")


@pytest.fixture
def served(ward):
    """The ward's folder over HTTP on this machine; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=ward))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def card_of(load):
    return DataCard.model_validate(card().model_dump() | {"load": load})


def url_card(url, sha256=""):
    return card_of({"kind": "files", "files": [{"path": "ward.csv", "url": url, "sha256": sha256}]})


def test_a_url_is_fetched_and_its_hash_is_checked(served, ward, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    right = hashlib.sha256((ward / "ward.csv").read_bytes()).hexdigest()
    assert load_cases(url_card(f"{served}/ward.csv", right)).rows_in == 5
    with pytest.raises(DataError, match="not what the card was written for"):
        load_cases(url_card(f"{served}/ward.csv", "0" * 64))
    with pytest.raises(DataError, match=r"404.*set data_root"):
        load_cases(url_card(f"{served}/none.csv"))
    monkeypatch.setattr("medstudy.data.tables.urlopen", lambda *_, **__: pytest.fail("network"))
    assert load_cases(url_card(f"{served}/ward.csv"), ward).rows_in == 5


def hub_card(**extra):
    return card_of({"kind": "hub", "path": "org/ward", "splits": {"train": "train", "test": "dev"}} | extra)


def test_hub_splits_are_mapped_to_ours(monkeypatch):
    import datasets

    asked = []

    def answer(path, config, *, split, revision):
        if revision == "none":
            raise ConnectionError("Couldn't reach the Hub")
        asked.append((path, config, split, revision))
        return datasets.Dataset.from_dict({"note": [f"{split} a", f"{split} b"], "uti": [0, 1]})

    monkeypatch.setattr(datasets, "load_dataset", answer)
    cases = load_cases(hub_card(revision="abc")).cases
    assert asked == [("org/ward", None, "train", "abc"), ("org/ward", None, "dev", "abc")]
    assert [(c.case_id, c.split) for c in cases] == [
        ("train-1", "train"), ("train-2", "train"), ("dev-1", "test"), ("dev-2", "test"),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"'org/ward', split 'train': Couldn't reach.*data_root"):
        load_cases(hub_card(revision="none"))


def test_a_hub_card_reads_local_copies_where_it_says_how(ward):
    with pytest.raises(DataError, match=r"needs load\.local"):
        load_cases(hub_card(), ward)
    local = {"format": "csv", "files": [{"path": "ward.csv"}]}
    assert load_cases(hub_card(local=local), ward).rows_in == 5


PREPARE = """import pandas as pd

def load(folder):
    visits, stays = (pd.read_csv(folder / f"{name}.csv", dtype=str) for name in ("visits", "stays"))
    return visits.merge(stays, on="stay", how="left", validate="m:1")

def broken(folder):
    raise ValueError("Grobblestone")

def text(folder):
    return "Grobblestone"
"""


def prepared(folder, function="load", shareable=False, source="mine.py"):
    """A card in `folder` whose table is made by a function beside it, from two files in a folder `data`."""
    values = card({"text": "{note} ({sex})"}).model_dump(exclude={"load"}, exclude_none=True) | {"shareable": shareable}
    (folder / "mine.py").write_text(PREPARE)
    (folder / "mine.yaml").write_text(json.dumps(values | {"load": {"prepare": f"{source}:{function}"}}))
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "visits.csv").write_text("stay,note,uti\n1,Burning,1\n2,Well,0\n1,Again,1\n3,Ill,1\n")
    (folder / "data" / "stays.csv").write_text("stay,sex\n1,male\n2,female\n")
    return load_card(folder / "mine.yaml")


def test_a_function_beside_the_card_makes_the_table(tmp_path):
    loaded = load_cases(prepared(tmp_path), tmp_path / "data")
    assert [c.text for c in loaded.cases] == ["Burning (male)", "Well (female)", "Again (male)"]
    assert [(d.row, d.reason) for d in loaded.dropped] == [("ward row 4", "no text in column 'sex'")]
    with pytest.raises(DataError, match=r"mine\.py line 4: FileNotFoundError .*visits\.csv.*; set data_root to"):
        load_cases(prepared(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("how", "private", "shown"),
    [
        ({"function": "broken"}, "line 8: ValueError (not shown: the card is private)", "ValueError Grobblestone"),
        ({"function": "text"}, "the table is a str, not a pandas DataFrame", "a str"),
        ({"function": "nothing"}, "mine.py has no function 'nothing'", "no function"),
        ({"source": "other.py"}, "other.py: load.prepare is a Python file beside the card", "no file"),
    ],
)
def test_a_function_that_makes_no_table_is_named_and_shows_no_cell(tmp_path, how, private, shown):
    for shareable, said in ((False, private), (True, shown)):
        with pytest.raises(DataError, match=re.escape(said)) as error:
            load_cases(prepared(tmp_path, shareable=shareable, **how), tmp_path / "data")
        assert shareable or "Grobblestone" not in str(error.value) + str(error.value.__cause__)


def test_a_run_depends_on_the_function_and_all_of_the_data_folder(tmp_path):
    card = prepared(tmp_path)
    kept_by_git = tmp_path / "data" / ".git" / "objects" / "ab"
    kept_by_git.mkdir(parents=True)
    (kept_by_git / "cd12").touch()
    names = [path.name for path in source_files(card, tmp_path / "data")]
    assert names == ["mine.py", "stays.csv", "visits.csv"]
    with pytest.raises(DataError, match="all of the project; set it"):
        load_cases(card, project_root())


def test_a_frame_is_taken_for_the_source_and_is_private():
    frame = pd.DataFrame({"note": ["a", "b", None], "uti": [1.0, 0.0, 1.0]}, index=[7, 7, 9])
    values = card().model_dump(exclude={"load", "shareable"})
    mine = DataCard.model_validate(values)
    loaded = load_cases(mine, frame=frame)
    assert not mine.shareable
    assert [(c.case_id, c.gold["label"]) for c in loaded.cases] == [("ward-1", "yes"), ("ward-2", "no")]
    assert [d.row for d in loaded.dropped] == ["ward row 3"]
    for how, said in (
        ({"data_root": frame}, "a table is given as frame="),
        ({}, "has no load: .* or give frame="),
        ({"frame": [1]}, "a list, not a pandas DataFrame"),
        ({"frame": frame.set_axis(["note", "note"], axis=1).assign(uti=1)}, "'note' is there twice"),
    ):
        with pytest.raises(DataError, match=said):
            load_cases(mine, **how)


@pytest.mark.network
@pytest.mark.parametrize("name", ["medical_abstracts", "medqa", "mts_dialog", "pima", "ktas", "uci_heart"])
def test_public_sources_can_be_fetched(name):
    assert len(load_cases(load_card(name)).cases) > 500
