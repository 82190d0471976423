"""Pairs from labels, cards, ratings and files: what becomes a pair, what is refused and what is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from medstudy.data.cases import DataError
from medstudy.data.load import load_card, load_cases
from medstudy.data.splits import Splits
from medstudy.params import ParamsError, resolve
from medstudy.tasks import get_task
from medstudy.training.preferences import audit_pairs, make_pairs, too_few


def some(data: str, source: str, file: Path | str = "", n: int = 20):
    card = load_card(data)
    asked = {"task": card.task, "data": data, "pair_source": source, "pair_file": str(file), "pairs_per_case": 2}
    return resolve(asked), get_task(card.task, card), load_cases(card).cases[:n]


@pytest.mark.parametrize("data", ["synthetic_uti", "synthetic_vignettes", "synthetic_dialogues", "synthetic_messages"])
def test_pairs_from_labels_set_gold_against_a_wrong_answer_in_the_right_form(data: str) -> None:
    params, task, cases = some(data, "labels", n=200)  # so many diagnoses have synonyms among them
    made = make_pairs(params, task, cases)
    by_id = {case.case_id: case for case in cases}
    assert {pair.case_id for pair in made.pairs} == set(by_id)
    for pair in made.pairs:
        case = by_id[pair.case_id]
        assert task.score(task.parse(pair.chosen), case)["correct"] == 1
        assert task.parse(pair.rejected).status == "parsed"
        assert task.score(task.parse(pair.rejected), case)["correct"] == 0
    assert made == make_pairs(params, task, cases)


def write(file: Path, rows: list[dict]) -> None:
    table = pd.DataFrame(rows)
    writers = {".xlsx": table.to_excel, ".parquet": table.to_parquet, ".csv": table.to_csv}
    if file.suffix == ".jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        writers[file.suffix](file, index=False)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".xlsx", ".parquet"])
def test_ratings_of_several_raters_are_averaged(tmp_path: Path, suffix: str) -> None:
    params, task, cases = some("synthetic_dialogues", "ratings", tmp_path / f"r{suffix}")
    rated = [("good", 5), ("good", 4), ("bad", 1), ("bad", 3), ("middling", 3), ("as good", 4.5)]
    rows = [{"case_id": cases[0].case_id, "text": text, "rating": rating} for text, rating in rated]
    rows += [{"case_id": cases[1].case_id, "text": text, "rating": 3} for text in ("one", "other")]
    rows += [{"case_id": "a test case", "text": text, "rating": i} for i, text in enumerate("ab")]
    write(tmp_path / f"r{suffix}", rows)
    made = make_pairs(params, task, cases)
    best = {pair.chosen for pair in made.pairs}
    assert len(best) == 1 and best <= {"good", "as good"}
    assert [pair.rejected for pair in made.pairs] == ["bad", "middling"]  # a draw makes no pair
    audit = audit_pairs(made, Splits([], cases, [], []))["value"]
    assert audit["cases of the file that are no preference cases"] == 1
    assert audit["rows in the file"] == 10


def test_pairs_of_a_file_are_told_apart_and_counted(tmp_path: Path) -> None:
    params, task, cases = some("synthetic_uti", "file", tmp_path / "p.jsonl")
    first, second = cases[0].case_id, cases[1].case_id
    said = [("no", "no!"), ("no", "yes"), ("No.", "yes"), ("no", "perhaps"), ("no", "maybe"), ("no", "never")]
    rows = [{"case_id": first, "chosen": c, "rejected": r} for c, r in said]
    write(tmp_path / "p.jsonl", [*rows, {"case_id": second, "chosen": "yes", "rejected": "by no means"}])
    made = make_pairs(params, task, cases)
    seen = [(pair.case_id, pair.chosen, pair.rejected, pair.source) for pair in made.pairs]
    assert seen[:2] == [(first, "no", "yes", "file"), (first, "no", "perhaps", "file")]  # two a case
    assert seen[2:] == [(second, "yes", "by no means", "file")]
    assert made.counts["identical or repeated pairs dropped"] == 2
    assert made.counts["pairs beyond pairs_per_case dropped"] == 2
    audit = audit_pairs(made, Splits(cases[1:2], cases[:1], [], []))["value"]
    counted = {"pairs": 3, "prompts covered": 2, "rejected is longer": 1, "pairs that another case has too": 0}
    counted |= {"pairs from other cases": 1, "pairs from groups of other splits": 1}
    assert audit[list(counted)].to_dict() == counted


def test_too_few_pairs_are_told_with_the_remedy() -> None:
    asked = some("synthetic_uti", "labels")[0].model_copy(update={"dpo_epochs": 2, "batch_size": 8})
    assert too_few(asked, 8).startswith("8 pairs give 2 optimiser steps: too few") and "n_prefer" in too_few(asked, 8)
    assert too_few(asked, 300) == ""
    assert "300 pairs give 38 optimiser steps" in too_few(asked.model_copy(update={"dpo_epochs": 1}), 300)


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        ("file", {"chosen": "yes"}, "no column rejected"),
        ("file", {"chosen": "yes", "rejected": None}, "row 1: empty cell"),
        ("file", {"chosen": "yes", "rejected": "no"}, "none of its 1 case ids is a preference case"),
        ("file", None, "give an existing file"),
        ("ratings", {"text": "yes", "rating": "good"}, "row 1: .*no number in case_id, text, rating"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, source: str, row: dict | None, message: str) -> None:
    params, task, cases = some("synthetic_uti", source, tmp_path / "p.csv")
    if row:
        write(tmp_path / "p.csv", [{"case_id": "x"} | row])
    with pytest.raises(DataError, match=message):
        make_pairs(params, task, cases)


def test_a_source_without_its_file_is_refused() -> None:
    with pytest.raises(ParamsError, match="'ratings' and 'file' read a file"):
        some("synthetic_uti", "ratings")
    with pytest.raises(ParamsError, match="pair_source = 'own_errors' with pair_file"):
        some("synthetic_uti", "own_errors", "pairs.csv")


def test_pairs_from_a_card_set_gold_against_the_worse_answer_of_the_source() -> None:
    params, task, cases = some("synthetic_messages", "card", n=4)
    worse = cases[1].gold | {"urgency": next(u for u in task.card.labels["urgency"] if u != cases[1].gold["urgency"])}
    cases[1] = replace(cases[1], details=cases[1].details | {"rejected": worse})
    [pair] = make_pairs(params, task, cases).pairs
    assert (pair.case_id, pair.chosen) == (cases[1].case_id, task.target(cases[1]))
    assert task.parse(pair.rejected).value == worse
    with pytest.raises(DataError, match=r"no preference case of 'synthetic_messages' .* columns.rejected"):
        make_pairs(params, task, cases[2:])
