"""Human ratings: a blinded sheet to fill in, its check, and what the raters said of the arms.

Sheets, key and ratings lie in the run's ``private/ratings/``; only ``ratings.json``, without texts, lies outside.
"""

import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import wilcoxon
from sklearn.metrics import cohen_kappa_score

from medstudy.arms import CONTRASTS
from medstudy.data.cases import DataError
from medstudy.files import write_json
from medstudy.report.look import predictions_of

SCALE = [1, 2, 3, 4, 5]


def export(run: Path, raters: Sequence[str], cases: int = 50, arms: Sequence[str] = ()) -> list[Path]:
    """Write one sheet a rater: the same answers of ``cases`` test cases in another order each, arms hidden.

    Raises:
        DataError: the run has no predictions, or not the ``arms`` asked for (default: all), or has sheets already.
    """
    table, folder = predictions_of(run, *arms), run / "private" / "ratings"
    if (folder / "key.parquet").is_file():
        raise DataError(f"{folder} holds sheets already; move it away before you export anew")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ids = sorted(table["case_id"].unique())
    drawn = random.Random(0).sample(ids, min(cases, len(ids)))
    rows = table[table["case_id"].isin(drawn)].sample(frac=1, random_state=0)
    rows = rows.assign(row=[f"r{number:04d}" for number in range(1, len(rows) + 1)])
    rows[["row", "case_id", "arm", "output"]].to_parquet(folder / "key.parquet")
    sheet = rows[["row", "text", "output"]].set_axis(["row", "case", "answer"], axis=1).assign(rating="", comment="")
    sheet = sheet.replace(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", " ", regex=True)  # xlsx has no such signs
    files = [folder / f"sheet-{rater}.xlsx" for rater in raters]
    for number, file in enumerate(files, start=1):
        sheet.sample(frac=1, random_state=number).to_excel(file, index=False)
    return files


def import_sheets(run: Path, sheets: Sequence[Path]) -> dict[str, Any]:
    """Check filled-in sheets, keep the ratings and say what they show (`summary`), also in ``ratings.json``.

    ``private/ratings/ratings.csv`` (case_id, arm, text, rating, rater) has the form of a ``pair_file`` for
    ``pair_source: ratings``, but of test cases: for another study that trains on them, never for this one.

    Raises:
        DataError: a sheet is not of this run's answers, a row is missing or there twice, or a rating is not 1 to 5.
    """
    file = run / "private" / "ratings" / "key.parquet"
    if not file.is_file():
        raise DataError(f"{file} does not exist: export the sheets first")
    key = pd.read_parquet(file).set_index("row")
    if len(key.merge(predictions_of(run), on=["case_id", "arm", "output"])) != len(key):
        raise DataError(f"{run}: the run has been done again since the export; its answers were not rated")
    key = key.rename(columns={"output": "text"})
    given = {sheet.stem.removeprefix("sheet-"): _checked(sheet, key.index) for sheet in sheets}
    ratings = pd.concat([key.assign(rating=rating, rater=rater) for rater, rating in given.items()], ignore_index=True)
    ratings.to_csv(file.with_name("ratings.csv"), index=False)
    found = summary(ratings)
    write_json(run / "ratings.json", found)
    return found


def summary(ratings: pd.DataFrame) -> dict[str, Any]:
    """Mean rating of every arm, Wilcoxon's signed-rank test of the contrasts, agreement of the raters.

    Tests are paired on cases, over the mean of the raters; agreement is Cohen's quadratic weighted kappa.
    """
    by_case = ratings.groupby(["case_id", "arm"])["rating"].mean().unstack("arm")
    arms = {arm: {"mean": float(rating.mean()), "n": int(rating.count())} for arm, rating in by_case.items()}
    found: dict[str, Any] = {"arms": arms, "contrasts": [], "agreement": []}
    for first, second in (pair for pair in CONTRASTS if set(pair) <= set(by_case)):
        difference = (by_case[first] - by_case[second]).dropna()
        p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
        row = {"contrast": f"{first}-{second}", "difference": float(difference.mean()), "p": p}
        found["contrasts"].append(row | {"test": "Wilcoxon signed-rank", "n": len(difference)})
    by_rater = ratings.pivot(index=["case_id", "arm"], columns="rater", values="rating")
    for one, other in combinations(by_rater, 2):
        kappa = float(cohen_kappa_score(by_rater[one], by_rater[other], weights="quadratic", labels=SCALE))
        row = {"raters": [one, other], "weighted_kappa": kappa if kappa == kappa else None, "n": len(by_rater)}
        found["agreement"].append(row)  # without a kappa where both gave one and the same value throughout
    return found


def _checked(file: Path, rows: pd.Index) -> pd.Series:
    """The ratings of a filled-in sheet for the ``rows`` of the key; lines are counted as spreadsheets do."""
    if file.suffix != ".xlsx":
        raise DataError(f"{file}: give the .xlsx sheet that was exported, filled in")
    sheet = pd.read_excel(file)
    if missing := [name for name in ("row", "rating") if name not in sheet]:
        raise DataError(f"{file} has no column {', '.join(missing)} (columns: {', '.join(map(str, sheet))})")
    for what, wrong in (
        ("row '{row}' was not exported from this run", ~sheet["row"].isin(rows)),
        ("row '{row}' is there twice", sheet["row"].duplicated()),
        ("rating {rating}; allowed: 1, 2, 3, 4, 5", ~sheet["rating"].isin(SCALE)),
    ):
        if wrong.any():
            raise DataError(f"{file}, line {wrong.idxmax() + 2}: {what.format(**sheet.loc[wrong.idxmax()])}")
    if lost := sorted(set(rows) - set(sheet["row"])):
        raise DataError(f"{file}: {len(lost)} rows are missing, e.g. '{lost[0]}'; every answer needs a rating")
    return sheet.set_index("row")["rating"].astype(int)
