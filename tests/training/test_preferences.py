"""Pairs from labels, ratings and files: what becomes a pair, what is refused and what is counted."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from medstudy.data.cases import DataError
from medstudy.data.load import load_card, load_cases
from medstudy.data.splits import Splits
from medstudy.params import ParamsError, RunParams, resolve
from medstudy.tasks import get_task
from medstudy.training.preferences import audit_pairs, make_pairs, too_few

DATA = {
    "text_classification": "synthetic_uti",
    "numeric_classification": "breast_cancer",
    "clinical_reasoning": "synthetic_vignettes",
    "summarization": "synthetic_dialogues",
    "clinical_triage": "synthetic_messages",
}


def params(source: str, file: Path | str = "", task: str = "text_classification") -> RunParams:
    return resolve(
        {"task": task, "data": DATA[task], "pair_source": source, "pair_file": str(file), "pairs_per_case": 2}
    )


def some(task: str, n: int = 20):
    card = load_card(DATA[task])
    return get_task(task, card), load_cases(card).cases[:n]


@pytest.mark.parametrize("name", list(DATA))
def test_pairs_from_labels_set_gold_against_a_wrong_answer_in_the_right_form(name: str) -> None:
    task, cases = some(name)
    made = make_pairs(params("labels", task=name), task, cases)
    by_id = {case.case_id: case for case in cases}
    assert {pair.case_id for pair in made.pairs} == set(by_id)
    for pair in made.pairs:
        case = by_id[pair.case_id]
        assert task.score(task.parse(pair.chosen), case)["correct"] == 1
        assert task.parse(pair.rejected).status == "parsed"
        assert task.score(task.parse(pair.rejected), case)["correct"] == 0
    assert made == make_pairs(params("labels", task=name), task, cases)


def test_wrong_answers_know_synonyms() -> None:
    task, cases = some("clinical_reasoning", 200)
    for case in cases:
        wrong = task.wrong_answers(case, cases, random.Random(0))
        assert all(not task.score(task.parse(text), case)["correct"] for text in wrong)


def write(file: Path, rows: list[dict]) -> Path:
    table = pd.DataFrame(rows)
    writers = {".csv": table.to_csv, ".xlsx": table.to_excel, ".parquet": table.to_parquet}
    if file.suffix == ".jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        writers[file.suffix](file, index=False)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".xlsx", ".parquet"])
def test_ratings_of_several_raters_are_averaged(tmp_path: Path, suffix: str) -> None:
    task, cases = some("summarization")
    ids = [case.case_id for case in cases]
    rated = [("good", 5), ("good", 4), ("bad", 1), ("bad", 3), ("middling", 3), ("as good", 4.5)]
    rows = [{"case_id": ids[0], "text": text, "rating": rating, "rater": i} for i, (text, rating) in enumerate(rated)]
    rows += [{"case_id": ids[1], "text": text, "rating": 3} for text in ("one", "other")]
    rows += [{"case_id": "a test case", "text": text, "rating": i} for i, text in enumerate("ab")]
    made = make_pairs(params("ratings", write(tmp_path / f"r{suffix}", rows), "summarization"), task, cases)
    best = {pair.chosen for pair in made.pairs}
    assert len(best) == 1 and best <= {"good", "as good"}
    assert [pair.rejected for pair in made.pairs] == ["bad", "middling"]  # a draw makes no pair
    audit = audit_pairs(made, Splits([], cases, [], []))["value"]
    assert audit["cases of the file that are no preference cases"] == 1
    assert audit["rows in the file"] == 10


def test_pairs_of_a_file_are_told_apart_and_counted(tmp_path: Path) -> None:
    task, cases = some("text_classification")
    said = [("no", "no!"), ("no", "yes"), ("No.", "yes"), ("no", "perhaps"), ("no", "maybe"), ("no", "never")]
    rows = [{"case_id": cases[0].case_id, "chosen": c, "rejected": r} for c, r in said]
    rows += [{"case_id": cases[1].case_id, "chosen": "yes", "rejected": "by no means"}]
    made = make_pairs(params("file", write(tmp_path / "p.jsonl", rows)), task, cases)
    seen = [(pair.case_id, pair.chosen, pair.rejected, pair.source) for pair in made.pairs]
    first, second = cases[0].case_id, cases[1].case_id
    assert seen[:2] == [(first, "no", "yes", "file"), (first, "no", "perhaps", "file")]  # two a case
    assert seen[2:] == [(second, "yes", "by no means", "file")]
    assert made.counts["identical or repeated pairs dropped"] == 2
    assert made.counts["pairs beyond pairs_per_case dropped"] == 2
    audit = audit_pairs(made, Splits(cases[1:2], cases[:1], [], []))["value"]
    counted = {"pairs": 3, "prompts covered": 2, "rejected is longer": 1, "pairs that another case has too": 0}
    counted |= {"pairs from other cases": 1, "pairs from groups of other splits": 1}
    assert audit[list(counted)].to_dict() == counted


def test_too_few_pairs_are_told_with_the_remedy() -> None:
    asked = params("labels").model_copy(update={"dpo_epochs": 2, "batch_size": 8})
    assert too_few(asked, 8).startswith("8 pairs give 2 optimiser steps: too few")
    assert "Raise n_prefer" in too_few(asked, 8)
    assert too_few(asked, 300) == ""
    assert "300 pairs give 38 optimiser steps" in too_few(asked.model_copy(update={"dpo_epochs": 1}), 300)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"case_id": "x", "chosen": "yes"}], "no column rejected"),
        ([{"case_id": "x", "chosen": "yes", "rejected": None}], "row 1: empty cell"),
        (
            [{"case_id": "x", "chosen": "yes", "rejected": "no"}],
            "none of its 1 case ids is a preference case",
        ),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, rows: list[dict], message: str) -> None:
    task, cases = some("text_classification")
    with pytest.raises(DataError, match=message):
        make_pairs(params("file", write(tmp_path / "p.csv", rows)), task, cases)
    with pytest.raises(DataError, match="give an existing file"):
        make_pairs(params("file", tmp_path / "missing.csv"), task, cases)


def test_a_source_without_its_file_is_refused() -> None:
    with pytest.raises(ParamsError, match="'ratings' and 'file' read a file"):
        params("ratings")
    with pytest.raises(ParamsError, match="pair_source = 'own_errors' with pair_file"):
        params("own_errors", "pairs.csv")


def test_pairs_from_a_card_set_gold_against_the_worse_answer_of_the_source() -> None:
    task, cases = some("clinical_triage", 4)
    worse = cases[1].gold | {"urgency": next(u for u in task.card.labels["urgency"] if u != cases[1].gold["urgency"])}
    cases[1] = replace(cases[1], details=cases[1].details | {"rejected": worse})
    made = make_pairs(params("card", task="clinical_triage"), task, cases)
    [pair] = made.pairs
    assert (pair.case_id, pair.chosen) == (cases[1].case_id, task.target(cases[1]))
    assert task.parse(pair.rejected).value == worse
    with pytest.raises(DataError, match=r"no preference case of 'synthetic_messages' .* columns.rejected"):
        make_pairs(params("card", task="clinical_triage"), task, cases[2:])
