"""Table of the card n2c2_smoking: from XML."""

from pathlib import Path
from xml.etree import ElementTree

import pandas as pd


def load(folder: Path) -> pd.DataFrame:
    """One row a record; the test records are those with the answers."""
    files = [("train", "*train*.xml"), ("test", "*test*groundtruth*.xml")]
    records = [(s, r) for s, p in files for f in folder.glob(p) for r in ElementTree.parse(f).iter("RECORD")]
    if {split for split, _ in records} != {"train", "test"}:
        raise FileNotFoundError(f"{folder} needs XML files with records: {files}")
    rows = [(r.get("ID"), r.find("SMOKING").get("STATUS"), r.findtext("TEXT"), split) for split, r in records]
    return pd.DataFrame(rows, columns=["id", "status", "text", "split"])
