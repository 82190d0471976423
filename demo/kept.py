"""What of a finished study may be published: `python -m demo.kept results/public docs/public`.

Tables, records and training curves of every run, and its predictions without a word of a case: model outputs are left
out, open answers are a hash, labels and scores stay. `medstudy compare` computes every number again from them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pandas as pd

from medstudy.data.cases import DataError
from medstudy.evaluation.comparison import finished_runs

NAMES = ("run", "metrics", "contrasts", "gates", "baselines")


def keep(study: Path, target: Path) -> int:
    """Copy the finished runs of public data into ``target``; returns how many.

    Raises:
        DataError: a run's data may not be shown.
    """
    runs = finished_runs(study)
    for run in runs:
        if not run.record["shareable"]:
            raise DataError(f"{run.folder} is of private data: nothing is copied")
    for run in runs:
        folder = target / run.folder.relative_to(study)
        (folder / "private").mkdir(parents=True, exist_ok=True)
        for file in [run.folder / f"{name}.json" for name in NAMES]:
            if file.is_file():
                shutil.copy(file, folder)
        if (run.folder / "training").is_dir():
            shutil.copytree(run.folder / "training", folder / "training", dirs_exist_ok=True)
        without_text(run.predictions(), run.record["labels"]).to_parquet(folder / "private" / "predictions.parquet")
    return len(runs)


def without_text(predictions: pd.DataFrame, labels: dict[str, list[str]]) -> pd.DataFrame:
    """The same answers and scores; what is no label of the card is a hash, which keeps equal answers equal."""

    def hidden(text: str) -> str:
        said = {name: value if name in labels else _hash(value) for name, value in json.loads(text).items()}
        return json.dumps(said, sort_keys=True)

    told = {"output": "", **{name: predictions[name].map(hidden) for name in ("answer", "gold")}}
    return predictions.assign(**told)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


if __name__ == "__main__":
    print(f"{keep(Path(sys.argv[1]), Path(sys.argv[2]))} runs")
