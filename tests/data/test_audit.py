"""The audit: planted faults are counted, and no case text is in it."""

from itertools import pairwise

import pandas as pd
import pytest

from medstudy.data.audit import audit
from medstudy.data.cases import Case
from medstudy.data.load import Dropped, Loaded
from medstudy.data.splits import Splits
from medstudy.evaluation.views import show_counts
from medstudy.show import own


def case(number, text, label="no", group=None, **details):
    return Case(f"c{number}", group or f"g{number}", text, {"label": label}, details)


OPEN = {"open_outcomes": frozenset({"summary"})}
WORDS = ["fever", "cough", "rash", "pain", "stone", "sepsis", "gout", "anaemia", "stroke", "migraine", "acne", "lupus"]
TRAIN = [case(i, f"{a} {b} since monday with {b}", group=f"g{i}") for i, (a, b) in enumerate(pairwise(WORDS))]
VALIDATION = [case(20, "quite another story about a broken ankle", "yes", group="g0")]
TEST = [
    case(30, "FEVER cough  since monday with cough", "yes"),
    case(31, "fever cough since monday with cough", "no", features={"pulse": None, "sex": 1.0}),
    case(32, "cough rash since monday with rash really", missing=["complaint"]),
]


@pytest.fixture
def table():
    splits = Splits(TRAIN, [], VALIDATION, TEST)
    dropped = [Dropped("f row 1", "no text"), Dropped("f row 2", "no text"), Dropped("f row 3", "no answer")]
    loaded = Loaded(splits.all(), len(splits.all()) + 3, dropped, {"label": ["no", "yes"]})
    return audit(loaded, splits)


def numbers(table, measure):
    row = table[table["measure"].str.startswith(measure)]
    assert len(row) == 1
    found = row.iloc[0, 2:].tolist()
    return [*found[:2], *found[3:]]  # no case is in prefer


def test_every_row_is_accounted_for(table):
    rows = table[table["topic"] == "rows"].set_index("measure")["source"]
    assert rows["in the source"] == 18 and rows["kept"] == 15
    assert rows["dropped: no text"] == 2 and rows["dropped: no answer"] == 1


def test_sizes_answers_missing_values_and_lengths(table):
    size = table[table["topic"] == "size"].set_index("measure")
    assert size.loc["cases"].drop("prefer").tolist()[1:] == [15, 11, 1, 3]
    assert size.loc["groups"].drop("prefer").tolist()[1:] == [14, 11, 1, 3]
    assert numbers(table, "yes") == [2, 0, 1, 1]
    assert numbers(table, "pulse") == numbers(table, "complaint") == [1, 0, 0, 1]
    assert numbers(table, "median") == [6, 6, 7, 6]


def test_leaks_repeats_and_conflicts_are_found(table):
    overlap = table[table["topic"] == "overlap"]
    assert overlap.iloc[0, 3:].tolist() == [1, 0, 1, 0]
    assert overlap.iloc[1, 5:].tolist() == [0, 2]
    assert overlap.iloc[2, 5:].tolist() == [0, 2]
    assert numbers(table, "cases that repeat a text") == [2, 0, 0, 1]
    assert numbers(table, "texts with different answers") == [1, 0, 0, 1]


def test_a_text_with_a_word_changed_is_a_near_duplicate():
    texts = [" ".join(f"word{i}{j}" for j in range(40)) for i in range(4)]
    cases = [case(i, text) for i, text in enumerate([*texts, texts[0].replace("word020", "other"), "none of these"])]
    table = audit(Loaded(cases, 6, []), Splits(cases[:4], [], cases[4:5], cases[5:]))
    assert numbers(table, "cases with the text of a training case")[2:] == [0, 0]
    assert numbers(table, "cases like a training case")[2:] == [1, 0]


def test_no_case_text_is_in_the_table(table):
    assert not any(word in table.to_csv() for word in [*WORDS, "monday", "ankle"])


def test_open_answers_are_counted_and_not_shown():
    cases = [Case(f"c{i}", f"g{i}", f"dialogue {i}", {"summary": f"secret number {i}"}, **OPEN) for i in range(6)]
    table = audit(Loaded(cases, 6, []), Splits(cases[:2], [], cases[2:4], cases[4:]))
    assert numbers(table, "different answers") == [6, 2, 2, 2]
    assert "secret" not in table.to_csv()


def leaks(cases):
    splits = Splits(cases[:30], [], cases[30:40], cases[40:])
    table = audit(Loaded(cases, len(cases), [], {"label": ["no", "yes"]}), splits)
    return table[table["topic"] == "leak?"].set_index("measure")["source"].to_dict()


def test_what_tells_the_answer_alone_is_found():
    def patients(note, ward):
        return [
            case(i, f"seen for complaint {i % 5} {note(i)}", "yes" if i % 2 else "no", features={"ward": ward(i)})
            for i in range(60)
        ]

    assert leaks(patients(lambda i: "", lambda i: float(i % 3))) == {}
    # one in sixty is wrong; the ward after admission tells as much
    told = leaks(patients(lambda i: "abx given" if i % 2 and i != 7 else "", lambda i: None if i % 2 else 1.0))
    assert told == {
        "'ward' alone tells label (balanced accuracy, %)": 100,
        "the wording 'abx' alone tells label (balanced accuracy, %)": 98,
        "the wording 'abx given' alone tells label (balanced accuracy, %)": 98,
        "the wording 'given' alone tells label (balanced accuracy, %)": 98,
    }


def test_a_text_that_holds_its_own_summary_is_counted():
    part = "take your tablets every morning"
    cases = [
        Case(f"c{i}", f"g{i}", f"Course {i}. {part if i < 3 else ''}", {"summary": part.capitalize()}, **OPEN)
        for i in range(30)
    ]
    table = audit(Loaded(cases, 30, []), Splits(cases[:10], [], cases[10:20], cases[20:]))
    assert numbers(table, "cases whose text holds the summary")[0] == 3


def test_a_masked_count_does_not_follow_from_the_others_of_its_line(card):
    """yes 68, of which 23, 26 and 16 beside the masked one: 3 in validation."""
    private, parts = card.model_copy(update={"shareable": False}), ["train", "prefer", "validation", "test"]
    made = pd.DataFrame([["label", "yes", 68, 23, 26, 3, 16]], columns=["topic", "measure", "source", *parts])
    shown = show_counts(private, own(made), ["source", *parts]).iloc[0]
    assert shown[["source", *parts]].tolist() == [68, 23, 26, "< 11", "hidden"]
    lengths = own(pd.DataFrame([["words in text", "median", 7, 7, 7, 7, 8]], columns=made.columns))
    assert show_counts(private, lengths, ["source", *parts])["source"].tolist() == [7]


def test_several_masked_counts_do_not_follow_from_their_total(card):
    """98 beside two masked ones of 100 said that both are 1."""
    private, parts = card.model_copy(update={"shareable": False}), ["train", "prefer", "validation", "test"]
    few, line = "< 11", ["source", *parts]

    def shown(*rows: list) -> list[list]:
        made = own(pd.DataFrame(rows, columns=["topic", "measure", *line]).astype(dict.fromkeys(line, "Int64")))
        return show_counts(private, made, line)[line].to_numpy().tolist()

    def labels(*counts: int) -> list:
        rows = [["label", f"label {i}", count, None, None, None, None] for i, count in enumerate(counts)]
        return [source for source, *_ in shown(*rows)]

    assert labels(98, 1, 1) == ["hidden", few, few] and labels(60, 38, 1, 1) == [60, "hidden", few, few]
    assert labels(80, 10, 10) == ["hidden", few, few]  # no other two counts below 11 make 20
    assert labels(40, 11, 1) == ["hidden", "hidden", few]  # nor do others make 12
    assert labels(88, 5, 7) == [88, few, few] and labels(98, 2, 0) == ["hidden", few, 0]
    assert shown(["label", "yes", 60, 57, 0, 1, 2]) == [[60, "hidden", 0, few, few]]
    kinds = (("in the source", 100), ("kept", 97), ("dropped: no text", 1), ("dropped: no answer", 2))
    rows = [["rows", what, count, None, None, None, None] for what, count in kinds]
    assert [source for source, *_ in shown(*rows)] == ["hidden", 97, few, few]
    # one that was hidden for its line does not follow from the other label's in its split
    rows = shown(["label", "yes", 103, 50, 28, 20, 5], ["label", "no", 397, 150, 72, 80, 95])
    assert {tuple(shown == 0 or isinstance(shown, str) for shown in of) for of in zip(*rows, strict=True)} == {
        (False, False),
        (True, True),
    }


def test_a_table_that_somebody_added_to_is_not_the_packages(card):
    made = own(pd.DataFrame({"value": {"pairs": 168}}).rename_axis("pairs audit"))
    assert hasattr(show_counts(card, made), "_repr_mimebundle_")
    made.loc["Isolation Verbena"] = 12
    assert not hasattr(show_counts(card, made), "_repr_mimebundle_")


def test_wording_of_one_patient_is_no_leak_and_of_private_sources_not_shown(card):
    notes = [case(i, f"Mrs Zebrafishova complaint {i % 5}", "yes", group="one patient") for i in range(20)]
    notes += [case(i, f"seen for complaint {i % 5}", "no") for i in range(20, 60)]
    assert not any("zebra" in name for name in leaks(notes))
    told = [case(i, f"complaint {i % 5}{' abx' if i % 2 else ''}", "yes" if i % 2 else "no") for i in range(60)]
    assert leaks(told) == {"the wording 'abx' alone tells label (balanced accuracy, %)": 100}
    table = audit(Loaded(told, 60, [], {"label": ["no", "yes"]}), Splits(told[:30], [], told[30:40], told[40:]))
    private = show_counts(card.model_copy(update={"shareable": False}), table, ["source"])
    assert "a wording (not shown) alone tells label (balanced accuracy, %)" in private["measure"].tolist()
    assert "abx" not in private.to_csv()
