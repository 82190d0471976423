"""Human ratings: a blinded sheet to fill in, its check, and what the raters said of the arms.

Everything here holds case text and lies in the run's ``private/ratings/``; only ``ratings.json``, with
means, tests and agreement, is written beside the run's other results.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.arms import CONTRASTS
from medstudy.data.cases import DataError
from medstudy.runs import write_json

if TYPE_CHECKING:
    import pandas as pd

SCALE = (1, 2, 3, 4, 5)
KEY = "key.csv"
_NOT_IN_A_CELL = r"[\x00-\x08\x0b\x0c\x0e-\x1f]"


def export(run: Path, raters: Sequence[str], cases: int = 50, arms: Sequence[str] = (), seed: int = 0) -> list[Path]:
    """Write one sheet a rater: the same answers in another order each, arms hidden.

    Args:
        run: folder of a finished run.
        raters: names for the files, e.g. initials.
        cases: how many test cases to draw.
        arms: arms to rate; empty for all that the run has.
        seed: draws the cases and the order.

    Raises:
        DataError: the run has no predictions, or not the arms asked for.
    """
    import pandas as pd

    predictions, folder = _predictions(run), run / "private" / "ratings"
    known = list(predictions["arm"].unique())
    if missing := set(arms) - set(known):
        raise DataError(f"{run}: no arm {', '.join(missing)} (arms of this run: {', '.join(known)})")
    if (folder / KEY).is_file():
        raise DataError(f"{folder} holds sheets already; move it away before you export anew")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ids = sorted(predictions["case_id"].unique())
    drawn = random.Random(seed).sample(ids, min(cases, len(ids)))
    rows = predictions[predictions["case_id"].isin(drawn) & predictions["arm"].isin(arms or known)]
    rows = rows.sample(frac=1, random_state=seed).reset_index(drop=True)
    rows = rows.assign(row=[f"r{number:04d}" for number in range(1, len(rows) + 1)])
    rows.assign(answer_hash=rows["output"].map(_hash))[["row", "case_id", "arm", "answer_hash"]].to_csv(
        folder / KEY, index=False
    )
    texts = pd.read_parquet(run / "private" / "cases.parquet").set_index("case_id")["texts"].str[0]
    sheet = pd.DataFrame({"row": rows["row"], "case": rows["case_id"].map(texts), "answer": rows["output"]})
    sheet = sheet.assign(rating="", comment="").replace(_NOT_IN_A_CELL, " ", regex=True)
    files = [folder / f"sheet-{rater}.xlsx" for rater in raters]
    for number, file in enumerate(files, start=1):
        sheet.sample(frac=1, random_state=seed + number).to_excel(file, index=False)
    return files


def import_sheets(run: Path, sheets: Sequence[Path]) -> dict[str, Any]:
    """Check filled-in sheets, keep the ratings and say what they show.

    Writes ``private/ratings/ratings.csv`` (case_id, arm, text, rating, rater) and ``ratings.json``. The table
    has the form of a ``pair_file`` for ``pair_source: ratings``, but of test cases: for a study that trains
    on them, never for this one.

    Raises:
        DataError: a sheet is not ours, a row is missing or there twice, or a rating is not 1 to 5; names
            file and row.
    """
    import pandas as pd

    key_file = run / "private" / "ratings" / KEY
    if not key_file.is_file():
        raise DataError(f"{key_file} does not exist: export the sheets first")
    key = pd.read_csv(key_file, dtype=str, keep_default_na=False).set_index("row")
    predictions = _predictions(run).astype({"case_id": str})[["case_id", "arm", "output"]]
    key = key.reset_index().merge(predictions, "left").set_index("row")
    if (key["output"].fillna("").map(_hash) != key["answer_hash"]).any():
        raise DataError(f"{run}: the run has been done again since the export; its answers were not rated")
    parts = []
    for file in map(Path, sheets):
        sheet = _checked(file, key).set_index("row")["rating"].astype(int)
        rated = key.loc[sheet.index, ["case_id", "arm", "output"]].rename(columns={"output": "text"})
        parts.append(rated.assign(rating=sheet, rater=file.stem.removeprefix("sheet-")))
    ratings = pd.concat(parts, ignore_index=True)
    ratings.to_csv(key_file.with_name("ratings.csv"), index=False)
    found = summary(ratings)
    write_json(run / "ratings.json", found)
    return found


def summary(ratings: pd.DataFrame) -> dict[str, Any]:
    """Mean rating of every arm, Wilcoxon's signed-rank test of the contrasts, agreement of the raters.

    Tests are paired on cases, over the mean of the raters; agreement is Cohen's quadratic weighted kappa.

    Args:
        ratings: columns case_id, arm, rating, rater; one row a case, arm and rater.
    """
    from scipy.stats import wilcoxon
    from sklearn.metrics import cohen_kappa_score

    by_case = ratings.groupby(["case_id", "arm"])["rating"].mean().unstack("arm")
    contrasts = []
    for first, second in (pair for pair in CONTRASTS if set(pair) <= set(by_case)):
        difference = (by_case[first] - by_case[second]).dropna()
        p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
        row = {"contrast": f"{first}-{second}", "difference": float(difference.mean()), "p": p}
        contrasts.append(row | {"test": "Wilcoxon signed-rank", "n": len(difference)})
    by_rater = ratings.pivot(index=["case_id", "arm"], columns="rater", values="rating")
    agreement = []
    for one, other in combinations(by_rater, 2):
        both = by_rater[[one, other]].dropna().astype(int)
        kappa = cohen_kappa_score(both[one], both[other], weights="quadratic", labels=list(SCALE))
        # undefined where both raters gave one and the same value throughout
        kappa = float(kappa) if kappa == kappa else None
        agreement.append({"raters": [str(one), str(other)], "weighted_kappa": kappa, "n": len(both)})
    means = {arm: {"mean": float(by_case[arm].mean()), "n": int(by_case[arm].count())} for arm in by_case}
    return {"arms": means, "contrasts": contrasts, "agreement": agreement}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _predictions(run: Path) -> pd.DataFrame:
    import pandas as pd

    file = run / "private" / "predictions.parquet"
    if not file.is_file():
        raise DataError(f"{file} does not exist: give the folder of a finished run, results/…/seed0")
    return pd.read_parquet(file)


def _checked(file: Path, key: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    if not file.is_file() or file.suffix not in (".xlsx", ".csv"):
        raise DataError(f"{file}: give an existing .xlsx or .csv sheet")
    sheet = pd.read_excel(file) if file.suffix == ".xlsx" else pd.read_csv(file)
    missing = [name for name in ("row", "rating") if name not in sheet]
    if missing:
        raise DataError(f"{file} has no column {', '.join(missing)} (columns: {', '.join(map(str, sheet))})")
    for number, row in enumerate(sheet.to_dict("records"), start=2):  # as spreadsheets count
        if row["row"] not in key.index:
            raise DataError(f"{file}, line {number}: row '{row['row']}' was not exported from this run")
        if row["rating"] not in SCALE:
            raise DataError(f"{file}, line {number}: rating {row['rating']!r}; allowed: 1, 2, 3, 4, 5")
    if (twice := sheet.loc[sheet["row"].duplicated(), "row"]).size:
        raise DataError(f"{file}: row '{twice.iloc[0]}' is there twice")
    if lost := sorted(set(key.index) - set(sheet["row"])):
        raise DataError(f"{file}: {len(lost)} rows are missing, e.g. '{lost[0]}'; every answer needs a rating")
    return sheet
