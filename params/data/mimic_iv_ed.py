"""Table of the card mimic_iv_ed: two tables joined."""

from pathlib import Path

import pandas as pd

TEXT = {"dtype": str, "keep_default_na": False, "na_values": [""]}


def load(folder: Path) -> pd.DataFrame:
    """Triage with what is known of the stay; other destinations than the three are none."""
    stays = pd.read_csv(folder / "edstays.csv.gz", **TEXT).drop(columns="subject_id")
    stays["disposition"] = stays["disposition"].where(stays["disposition"].isin(["HOME", "ADMITTED", "TRANSFER"]))
    return pd.read_csv(folder / "triage.csv.gz", **TEXT).merge(stays, on="stay_id", how="left", validate="m:1")
