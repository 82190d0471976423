"""Table of the card breast_cancer."""

from pathlib import Path

import pandas as pd
from sklearn.datasets import load_breast_cancer


def load(folder: Path) -> pd.DataFrame:
    """The table that comes with scikit-learn."""
    return load_breast_cancer(as_frame=True).frame
